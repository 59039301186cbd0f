"""Pedestrian attributes: what a person looks like, wears, carries and does, as many yes-or-no answers."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from timm.utils import ModelEmaV3

from hap.cards import Answer, attribute_card, contact_sheet
from hap.data.attribute import UNKNOWN, AttributeRecords
from hap.data.base import Dataset
from hap.errors import HapError
from hap.losses import WeightedBCE
from hap.metrics.attributes import (
    AttributeMetric,
    Scores,
    confident_mistakes,
    label_scores,
    threshold_curve,
)
from hap.models.heads import AttributeViT
from hap.plots import curves, write_picture
from hap.tasks.attribute_answers import read_answers, write_answers
from hap.tasks.base import Task, cell

log = logging.getLogger(__name__)

EMA_BATCH = 64  # images of a step for which `ema_decay` is given
NUM_CARDS = 60  # images that a prediction draws


class Attribute(Task):
    """Weighted cross-entropy over all attributes; optionally an average of the weights, which is what is evaluated.

    The shares of yes in the training labels, by which the loss is weighted, and the tuned thresholds are part of a
    checkpoint; so is the average, beside the weights that training goes on with.

    Args:
        model: returns logits (N, A).
        loss: on (logits, labels, ratio).
        ema_decay: of the average of the weights, per step of 64 images; null evaluates the weights themselves. With
            another total batch the horizon stays the same in images.
        threshold: a probability above it is a yes. "val": one for each attribute, with the highest mean of the two
            recalls on the validation split, which must not be the test split.
    """

    counts = {"num_attributes": ("attributes", "head.weight")}  # noqa: RUF012 - never changed
    any_micro_batch = True
    best_of = "mA"
    model: AttributeViT
    metric: AttributeMetric
    ratio: torch.Tensor
    thresholds: torch.Tensor

    def __init__(
        self,
        *args: Any,
        loss: WeightedBCE,
        ema_decay: float | None = None,
        threshold: float | Literal["val"] = 0.5,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if threshold != "val" and not (isinstance(threshold, float | int) and 0 <= threshold < 1):
            raise HapError(f"task.threshold={threshold}: a probability from 0 to below 1, or val")
        self.loss, self.ema_decay, self.threshold = loss, ema_decay, threshold
        self.learns_from_validation = threshold == "val"
        self.ema = ModelEmaV3(self.model).requires_grad_(False) if ema_decay is not None else None
        unknown = torch.full(self.model.head.bias.shape, torch.nan)  # type: ignore[arg-type]
        self.register_buffer("ratio", unknown)  # share of yes in the training labels
        self.register_buffer("thresholds", unknown.clone())

    @classmethod
    def labels_of(cls, records: AttributeRecords) -> dict[str, list[str]]:  # type: ignore[override]
        """`attributes`: their names, in the order of the columns of the data set."""
        return {"attributes": list(records.attributes)}

    @classmethod
    def arranged(
        cls, splits: Mapping[str, AttributeRecords], labels: Mapping[str, Sequence[str]]
    ) -> Mapping[str, AttributeRecords]:
        """Columns by name. What was one split stays one."""
        arranged = {id(records): records.arranged(labels["attributes"]) for records in splits.values()}
        return {name: arranged[id(records)] for name, records in splits.items()}

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (N, A)."""
        model = self.model if self.training or self.ema is None else self.ema
        return model(self.normalize(batch["image"]))

    def losses(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}  # that of a whole split is the metric's
        return {"loss": self.loss(outputs, batch["labels"], self.ratio)}

    def update_metrics(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        loss = self.loss.per_image(outputs, batch["labels"], self.ratio)
        self.metric.update(outputs.sigmoid(), batch["labels"], batch["index"], loss)

    def predictions(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"probability": outputs.sigmoid()}

    def _answers(self, probability: np.ndarray, labels: np.ndarray | None = None) -> list[Answer]:
        """Of one image (A,)."""
        names, threshold = self.labels["attributes"], self._decisions().cpu().numpy()
        known = np.full(len(names), UNKNOWN) if labels is None else labels
        columns = names, probability, threshold, known
        return [Answer(*values) for values in zip(*columns, strict=True)]

    def write_predictions(self, rows: dict[str, torch.Tensor], records: Sequence[Any], folder: Path) -> None:
        """`attributes.csv`, see `write_answers`; `NUM_CARDS` images at most, evenly spread, with all that is said of
        them below `pictures/`, and together in `contact_sheet.png`."""
        probability, threshold = rows["probability"].numpy(), self._decisions().cpu().numpy()
        write_answers(folder / "attributes.csv", records, self.labels["attributes"], probability, threshold)
        dataset = Dataset(records, lambda *sample: {})
        chosen = np.linspace(0, len(records) - 1, min(NUM_CARDS, len(records))).round().astype(int)
        images = [dataset.read(index)[0] for index in chosen.tolist()]
        answers = [self._answers(probability[index]) for index in chosen]
        for number, image, said in zip(chosen, images, answers, strict=True):
            write_picture(folder / "pictures" / f"{number:06d}.png", attribute_card(image, said))
        write_picture(folder / "contact_sheet.png", _sheet(images, answers))

    def read_predictions(self, path: Path, records: AttributeRecords) -> None:  # type: ignore[override]
        if self.threshold == "val":
            raise HapError("task.threshold=val needs a model; with predictions=FILE give a number")
        probability = torch.from_numpy(read_answers(path, records.names, records.attributes))
        self._start_metric()
        self.metric.threshold = self._decisions()
        self.metric.update(probability, torch.from_numpy(records.labels), torch.arange(len(records)))

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """The images, as the model sees them, with what it says of them."""
        probability, labels = self(batch).sigmoid().float().cpu().numpy(), batch["labels"].cpu().numpy()
        images = batch["image"].movedim(1, -1).cpu().numpy()
        return {
            "answers": _sheet(
                list(images), [self._answers(*row) for row in zip(probability, labels, strict=True)]
            )
        }

    def report(self, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
        """`per_attribute.csv`, what was counted for each; the measures over all thresholds, and the wrong answers that
        were given with the greatest confidence."""
        probability, labels, index = self.metric.collected()
        names, threshold = self.labels["attributes"], self.metric.threshold
        scores = label_scores(probability, labels, threshold)
        thresholds = torch.as_tensor(threshold).expand(len(names)).tolist()
        with (folder / "per_attribute.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["attribute", *Scores._fields, "threshold"])
            values = zip(*(column.tolist() for column in scores), thresholds, strict=True)
            writer.writerows([name, *map(cell, row)] for name, row in zip(names, values, strict=True))
        mistakes = [
            (row, column)
            for row, column in confident_mistakes(probability, labels, threshold).tolist()
            if dataset.problem(int(index[row])) is None  # a table of predictions needs no images
        ]
        curve = threshold_curve(probability, labels).numpy()
        pictures = {
            "thresholds": curves(
                *(curve[:, 0], {"mA": curve[:, 1], "F1": curve[:, 2]}),
                "threshold of all attributes",
                "share (%)",
            )
        }
        if mistakes:
            images = [dataset.read(int(index[row]))[0] for row, _ in mistakes]
            texts = [
                [
                    names[column],
                    f"said {probability[row, column]:.0%}",
                    f"labelled {('no', 'yes')[labels[row, column]]}",
                ]
                for row, column in mistakes
            ]
            pictures["confident_mistakes"] = contact_sheet(images, texts)
        return pictures

    def protocol(self) -> dict[str, Any]:
        tuned = "one for each attribute, tuned on the validation split"
        return {
            "attributes": len(self.ratio),
            "threshold": tuned if self.threshold == "val" else self.threshold,
            "weights": "raw" if self.ema is None else "EMA",
        }

    def _complete(self) -> None:
        """What a checkpoint has, and a model of other weights lacks: the average, which begins at the weights, and the
        shares by which the loss is weighted, in an evaluation too."""
        if not self.ratio.isnan().any():
            return
        labels = self.trainer.datamodule.records("train").labels  # type: ignore[attr-defined]
        self.ratio.copy_(torch.from_numpy(share_of_yes(labels)))
        if self.ema is not None:
            self.ema.set(self.model)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._complete()
        if self.ema is not None and self.ema_decay is not None:
            self.ema.decay = self.ema_decay ** (self.batch_plan.total / EMA_BATCH)
            left = self.ema.decay ** (self.steps_per_epoch * self.recipe.epochs)
            if left > 0.01:
                rank_zero_only(log.warning)(
                    "the average of the weights, which is evaluated, will still be %.0f %% untrained ones at the end: "
                    "for a run as short as this set task.ema_decay=null",
                    100 * left,
                )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    @property
    def needs_validation(self) -> bool:  # type: ignore[override]
        """Thresholds are tuned once; a checkpoint keeps them."""
        return self.threshold == "val" and bool(self.thresholds.isnan().any())

    def _decisions(self) -> torch.Tensor:
        """The probabilities above which an answer is yes, (A,)."""
        if self.threshold != "val":
            return torch.full_like(self.thresholds, self.threshold)
        return self.thresholds.nan_to_num(nan=0.5)  # not tuned yet

    def on_validation_epoch_start(self) -> None:
        if self.threshold == "val" and self.trainer.datamodule.val_split == "test":  # type: ignore[attr-defined]
            raise HapError(
                "task.threshold=val would tune the thresholds on the test split: data.reader.train_on=train leaves "
                "a validation split where the data set has one"
            )
        self._complete()
        super().on_validation_epoch_start()
        self.metric.threshold = 0.5 if self.threshold == "val" else self._decisions()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.threshold == "val":
            self.thresholds.copy_(self.metric.best_thresholds())

    def on_predict_start(self) -> None:
        """What would be missing at the end is told before the images are read."""
        if "attributes" not in self.labels:
            raise HapError(
                "weights=FILE does not name the attributes: give ckpt_path=FILE of a checkpoint of hap"
            )
        if self.needs_validation:
            raise HapError("task.threshold=val: the thresholds of this model were never tuned; give a number")

    def on_test_epoch_start(self) -> None:
        self._complete()
        super().on_test_epoch_start()
        self.metric.threshold = self._decisions()

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        undefined = self.metric.scores().undefined.tolist()
        for what, missing in zip(("yes", "no"), undefined, strict=True):
            names = [name for name, is_so in zip(self.labels["attributes"], missing, strict=True) if is_so]
            if names:
                rank_zero_only(log.warning)(
                    "nobody is labelled %s: %s; mA counts that recall as 0", what, ", ".join(names)
                )


def _sheet(images: Sequence[np.ndarray], answers: Sequence[Sequence[Answer]]) -> np.ndarray:
    """What is said wrongly of each person, and what each is said to have, the surest first."""
    said = [
        sorted((a for a in person if a.yes or a.wrong), key=lambda a: (not a.wrong, -a.probability))
        for person in answers
    ]
    return contact_sheet(images, said)


def share_of_yes(labels: np.ndarray) -> np.ndarray:
    """Of the known labels (N, A) of each attribute, float64 (A,)."""
    return (labels > 0).sum(0) / (labels >= 0).sum(0)
