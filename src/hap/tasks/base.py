"""The part of training that is the same for every task."""

import csv
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torchmetrics import Metric

from hap.data.base import Dataset, Record
from hap.data.samplers import BatchPlan
from hap.data.transforms import PIXEL_MEAN, PIXEL_STD
from hap.errors import HapError
from hap.optim import Recipe

log = logging.getLogger(__name__)


class Task(L.LightningModule):
    """Steps, logging, optimiser and the life cycle of the metric.

    A subclass says what is its own, and overrides no step:

    - `forward(batch) -> outputs`
    - `losses(outputs, batch) -> {"loss": total, part: ...}`, scalars
    - `update_metrics(outputs, batch)`, when it has a metric
    - `predictions(outputs, batch) -> {name: tensor}`, a row for each image, for `hap predict` to write
    - `pictures(batch) -> {name: image}`
    - `report(folder, dataset) -> {name: image}`, what a test leaves besides the scores
    - `protocol() -> {name: text}`, how the scores were measured

    Args:
        model: the network.
        recipe: optimiser and schedule.
        metric: computes {name: float} over a split; logged as `val/name` and `test/name`.
        compile: fuse the model's kernels with torch.compile (minutes at the first step, then faster).
        seed: of what is random in the model during training (drop path); each step derives its own.
    """

    model: Any  # the subclass knows which; nn.Module's attributes are not typed
    mean: torch.Tensor
    std: torch.Tensor
    inputs: tuple[str, ...] = ("input",)  # the folders of images that `hap predict` needs
    whole_pictures = False  # whether boxes of `hap predict` are regions of pictures, or images of their own
    takes_joints = False  # whether `keypoints=FILE` of `hap predict` is for it
    takes_texts = False  # whether `text=` of `hap predict` is for it, which then searches a gallery
    any_micro_batch = False  # whether a step has the same gradient however it is cut into passes
    # Arguments of the model that the data knows: {argument: (the labels that it counts, the end of the
    # name of the parameter as long)}.
    counts: Mapping[str, tuple[str, str]] = {}
    labels: Mapping[
        str, Sequence[str]
    ] = {}  # names of the classes, in the order of outputs; set by the runner
    description: dict[str, Any] | None = None  # what a checkpoint says of itself; set by the runner
    best_of: str | None = None  # the score by which the best epoch is kept, where validation is not the test
    lowest_is_best = False  # whether that score is an error
    learns_from_validation = False  # whether a checkpoint has to be written again after it
    needs_validation = False  # whether a test has to wait for what is learned there
    zero_shot = False  # whether to score an encoder that was not trained for the task
    no_decay: frozenset[str] = frozenset()  # parameters that are never decayed, besides one-dimensional ones

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        metric: Metric | None = None,
        compile: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.recipe, self.metric, self.seed = model, recipe, metric, seed
        self.batch_plan = BatchPlan(total=1, micro=1)  # set by the runner when the devices are known
        self.steps_per_epoch = self.schedule_steps = 1  # set by the runner; see Recipe.build
        self.flops_per_image = float("nan")  # set by the runner: forward and backward
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)
        if compile:
            self.model.compile(dynamic=False)  # else the second batch size makes one slower kernel for all

    @classmethod
    def labels_of(cls, records: Sequence[Any]) -> dict[str, list[str]]:
        """Names of the classes, in the order of the model's outputs, from the training records."""
        return {}

    @classmethod
    def arranged(
        cls, splits: Mapping[str, Any], labels: Mapping[str, Sequence[str]]
    ) -> Mapping[str, Sequence[Any]]:
        """The splits of a data set for a model with these classes, as a checkpoint names them. Raises HapError where
        they do not go together."""
        return splits

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def update_metrics(self, outputs: Any, batch: dict[str, torch.Tensor]) -> None:
        """Nothing to do for a task without a metric."""

    def predictions(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def write_predictions(
        self, rows: dict[str, torch.Tensor], records: Sequence[Record], folder: Path
    ) -> None:
        """Write what `predictions` gave for the records, row by row: one array each, and the file names."""
        arrays: dict[str, Any] = {name: value.float().numpy() for name, value in rows.items()}
        np.savez(folder / "predictions.npz", names=np.array([r.name for r in records]), **arrays)

    def search_for(self, texts: Sequence[str]) -> None:
        """Of a task that takes texts: those of the prediction to come. Raises HapError for one that it cannot read."""
        raise NotImplementedError

    def search(self, kept: Any, folder: Path) -> None:
        """Of a task that takes texts: `write_predictions` of images whose features are known."""
        raise NotImplementedError

    def read_predictions(self, path: Path, records: Sequence[Record]) -> None:
        """Hand somebody's predictions for the records, read from a file, to the metric."""
        raise HapError("this task does not evaluate predictions=FILE; give ckpt_path=FILE of a model")

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Pictures of a small batch by name, RGB (H, W, 3) uint8."""
        return {}

    def report(self, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
        """After a test on the data set: write tables to the run folder, return pictures by name, RGB (H, W, 3)
        uint8."""
        return {}

    def protocol(self) -> dict[str, Any]:
        """What has to be known of the scores to compare them, for `results.json`."""
        return {}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) pixel levels 0..255, RGB -> float32, ImageNet mean and standard deviation."""
        return torch.sub(images, self.mean).div_(self.std)  # one copy, not two

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # The state of the generator is a function of the position, so a resumed run needs none of the past.
        position = (self.seed, self.global_step, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        losses = self.losses(self(batch), batch)
        self.log_dict(
            {f"train/{k}": v.detach() for k, v in losses.items()}
        )  # prog_bar=True reads each at once
        return losses["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, once they are unscaled and all passes of the step are in."""
        if self.recipe.clip_norm is None:
            return
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.log("train/grad_norm", norm)
        self.log("train/clipped", (norm > self.recipe.clip_norm).float(), on_step=False, on_epoch=True)

    def _eval_step(self, batch: dict[str, torch.Tensor], stage: str) -> None:
        outputs = self(batch)
        losses = self.losses(outputs, batch)
        size = len(batch["index"])
        self.log_dict({f"{stage}/{k}": v for k, v in losses.items()}, sync_dist=True, batch_size=size)
        self.update_metrics(outputs, batch)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self._eval_step(batch, "val")

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self._eval_step(batch, "test")

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return {"index": batch["index"], **self.predictions(self(batch), batch)}

    def _start_metric(self) -> None:
        if self.metric is not None:
            self.metric.reset()

    def _finish_metric(self, stage: str) -> None:
        if self.metric is not None:
            self.log_dict({f"{stage}/{k}": v for k, v in self.metric.compute().items()}, rank_zero_only=False)

    def on_validation_epoch_start(self) -> None:
        self._start_metric()

    def on_test_epoch_start(self) -> None:
        self._start_metric()

    def on_validation_epoch_end(self) -> None:
        self._finish_metric("val")

    def on_test_epoch_end(self) -> None:
        self._finish_metric("test")

    # By now the callbacks have drawn what they need: the features of a whole split are not kept while training.
    def on_validation_end(self) -> None:
        self._start_metric()

    def on_test_end(self) -> None:
        self._start_metric()

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        return self.recipe.build(
            self.model, self.batch_plan.total, self.steps_per_epoch, self.schedule_steps, self.no_decay
        )

    def on_train_start(self) -> None:
        """A resumed run has the learning rate and decay of its configuration, not those in the checkpoint."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        before = max(group["lr"] for group in optimizer.param_groups)
        scheduler: Any = self.lr_schedulers()
        configured, schedule = self._optimizer()
        scheduler.base_lrs = schedule.base_lrs
        for group, wanted, peak in zip(
            optimizer.param_groups, configured.param_groups, schedule.base_lrs, strict=True
        ):
            lr = peak * scheduler.lr_lambdas[0](scheduler.last_epoch)
            group.update({key: value for key, value in wanted.items() if key != "params"} | {"lr": lr})
        now = max(group["lr"] for group in optimizer.param_groups)
        if not math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-12):
            rank_zero_only(log.warning)(
                "the learning rate goes on at %.3g, not at %.3g as in the checkpoint's run: epochs, warm-up or peak "
                "(task.recipe) are not what they were",
                *(now, before),
            )

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self._optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulate"] = self.batch_plan.accumulate
        if self.description is not None:
            checkpoint["hap"] = self.description
            if licence := (self.description.get("weights") or {}).get("licence"):
                checkpoint["licence"] = licence  # which what is trained from others' weights may have to keep
        checkpoint["grid"] = "{}x{}".format(
            *self.model.grid
        )  # of the position embedding, for who loads it elsewhere

    def check_checkpoint(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Raises HapError where its weights fit, but mean something else than they do here."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts passes. On another number of devices, or with other micro-batches, a step has another
        number of them: the position within the epoch is counted anew."""
        before, now = checkpoint["accumulate"], self.batch_plan.accumulate
        if before == now or "loops" not in checkpoint:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            unfinished = (
                counts["ready"] - counts["completed"]
            )  # 1: the checkpoint is written before the pass counts
            for name in ("ready", "started", "processed"):
                counts[name] = counts[name] // before * now
            counts["completed"] = counts["ready"] - unfinished


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table of results, CSV, of one row at least."""
    rows = iter(rows)
    first = next(rows)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, first)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in chain([first], rows))


def cell(value: float | str) -> str:
    """Of a table of results. What is undefined is empty, as spreadsheets leave it out of a mean."""
    return str(value) if isinstance(value, int | str) else "" if math.isnan(value) else f"{value:.6g}"
