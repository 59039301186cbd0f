"""Person re-identification: learn to tell the training people apart, find others by their features."""

import logging
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hap.errors import HapError
from hap.metrics.retrieval import RetrievalMetric
from hap.models.heads import ReidLem, ReidOutput, ReidViT
from hap.plots import mosaic
from hap.tasks.base import Task

log = logging.getLogger(__name__)


class Reid(Task):
    """Cross-entropy over the training people plus a triplet loss, each the mean over the model's branches.

    Evaluation ranks the gallery by the cosine distance of the embeddings; it has no loss, as its people are
    none of the training classes.

    Args:
        model: returns `ReidOutput`.
        triplet: loss on (features, identities).
        identity_weight, triplet_weight: of the two parts in the total.
    """

    no_decay = frozenset({"cls_token", "pos_embed"})
    metric: RetrievalMetric

    def __init__(
        self,
        *args: Any,
        triplet: nn.Module,
        identity_weight: float = 0.5,
        triplet_weight: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.triplet, self.identity_weight, self.triplet_weight = triplet, identity_weight, triplet_weight
        self.model: ReidViT | ReidLem

    def forward(self, batch: dict[str, torch.Tensor]) -> ReidOutput:
        images = self.normalize(batch["image"])
        device = images.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if self.training or not autocast:
            return self.model(images)
        # The 8 bits of bfloat16 are too few to tell near neighbours apart. The official code ranks in fp16.
        with torch.autocast(device, torch.float16, cache_enabled=False):  # the cache does not mix types
            return self.model(images)

    def losses(self, outputs: ReidOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}
        person = batch["identity"]
        identity = torch.stack([F.cross_entropy(x.float(), person) for x in outputs.logits]).mean()
        triplet = torch.stack([self.triplet(x, person) for x in outputs.features]).mean()
        loss = self.identity_weight * identity + self.triplet_weight * triplet
        return {"loss": loss, "identity": identity, "triplet": triplet}

    def update_metrics(self, outputs: ReidOutput, batch: dict[str, torch.Tensor]) -> None:
        who = (batch["identity"], batch["camera"], batch["is_query"], batch["index"])
        self.metric.update(outputs.embedding, *who)

    def predictions(self, outputs: ReidOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The test feature of each image, of length 1: the dot product of two is the cosine."""
        return {"embedding": F.normalize(outputs.embedding.float())}

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """The queries of the last evaluation with the lowest average precision, a column each, the nearest
        gallery images below them: the same person in a green frame, another in a red one."""
        try:
            lists = self.metric.ranked_lists(num_queries=len(batch["index"]), k=8)
        except RuntimeError:  # nothing has been ranked yet
            return {}
        dataset = self.trainer.datamodule.dataset("val")  # type: ignore[attr-defined]

        def picture(index: int, frame: tuple[int, int, int]) -> np.ndarray:
            image = dataset[0, index]["image"].permute(1, 2, 0).numpy().copy()  # (H, W, 3)
            return cv2.rectangle(image, (0, 0), (image.shape[1] - 1, image.shape[0] - 1), frame, thickness=6)

        columns = [
            [
                picture(query, (60, 130, 255)),
                *(
                    picture(i, (40, 190, 70) if same else (225, 50, 50))
                    for i, same in zip(near, match, strict=True)
                ),
            ]
            for query, near, match in zip(
                lists.query.tolist(), lists.gallery.tolist(), lists.match.tolist(), strict=True
            )
            if min(near) >= 0
        ]
        return {"hardest_queries": mosaic(columns, ["query", *map(str, range(1, 9))])} if columns else {}

    def on_train_start(self) -> None:
        """Check that the people, the batch and the classifier fit each other."""
        loader: Any = self.trainer.train_dataloader
        size = getattr(loader.batch_sampler.plan, "images_per_identity", 1)
        if self.batch_plan.micro % size:
            raise HapError(
                f"{self.batch_plan.micro} images per device and pass split the {size} images of an identity: "
                f"change micro_batch_size, devices or data.plan.images_per_identity"
            )
        people = 1 + max(record.identity for record in loader.dataset.records)
        classes = self.model.head.out_features
        if people > classes:
            raise HapError(
                f"{people} people to train on, {classes} classes: set task.model.num_classes={people}"
            )
        if people < classes:
            log.warning("task.model.num_classes=%d, but only %d people to train on", classes, people)
