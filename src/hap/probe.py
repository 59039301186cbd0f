"""How well an encoder finds people again, measured while it is pre-trained."""

import logging
from typing import Any

import lightning as L
import torch

from hap.data.base import DataModule
from hap.metrics.retrieval import RetrievalMetric

log = logging.getLogger(__name__)


class Probe(L.Callback):
    """Every k epochs, person re-identification by the class token of the encoder as it is: `probe/mAP`,
    `probe/rank1`. The images are whole, the people of the data's test split; nothing is trained on them.

    Every rank runs all images, as the set is small, and none waits for another.

    Args:
        data: a person re-identification data set, a small one.
        every_n_epochs: k.
    """

    def __init__(self, data: DataModule, every_n_epochs: int = 10):
        self.data, self.every_n_epochs = data, every_n_epochs
        self.metric = RetrievalMetric(sync_on_compute=False)

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.data.setup()  # bad data stops the run now, not after k epochs

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        self.metric.reset()
        task.eval()
        with torch.no_grad():
            for batch in self.data.test_dataloader():
                images = task.normalize(batch["image"].to(task.device))
                feature = task.model.features(images)[:, 0].float()  # (N, D)
                who = (batch[name].to(task.device) for name in ("identity", "camera", "is_query", "index"))
                self.metric.update(feature, *who)
        task.train()
        scores = self.metric.compute()
        self.metric.reset()
        task.log_dict({f"probe/{name}": scores[name] for name in ("mAP", "rank1")})
