"""How good an encoder is as it is: what its frozen features know of attributes and of who somebody is.

The same measure while an encoder is pre-trained (a callback) and of files side by side (`hap eval experiment=probe`).
"""

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from hap.callbacks import save_picture
from hap.console import print_table
from hap.data.base import DataModule
from hap.data.transforms import PIXEL_MEAN, PIXEL_STD
from hap.errors import HapError, printable
from hap.loggers import begin_wandb
from hap.metrics.attributes import label_recalls
from hap.metrics.frozen import answerable, knn_probability, linear_probability, map_2d, standardised
from hap.metrics.losses import sort_once
from hap.metrics.retrieval import RetrievalMetric
from hap.models.checkpoint import load_weights
from hap.models.vit import ViT
from hap.plots import Cloud, bars, clouds, draw_attention, mosaic, write_picture
from hap.record import write_results, write_start

log = logging.getLogger(__name__)

SCORES = ("knn_mA", "linear_mA", "mAP", "rank1")  # all that there are, each the better the higher
MAPPED = 10  # people who have a colour on the map
SHOWN = 6  # attributes that have a map


@dataclass(frozen=True)
class Reading:
    """What was measured of one encoder.

    Attributes:
        scores: those of `SCORES` that there are data for, from 0 to 1.
        identities: map of the people, coloured by who they are; None without people.
        attributes: maps of the images whose attributes were told, one for each of a few attributes, by its name.
    """

    scores: dict[str, float]
    identities: Cloud | None
    attributes: dict[str, Cloud]


class Probe(L.Callback):
    """Measures the encoder every k epochs and after the last: `probe/knn_mA` and `probe/linear_mA`, attributes told by
    the nearest neighbours and by one linear layer; `probe/mAP` and `probe/rank1`, people found again. Nothing of it
    reaches the training: neither weights nor generators change.

    Images are whole and float32 whatever the precision of the training. Every rank runs all of them, as they are few,
    and none waits for another.

    Args:
        attributes: an attribute data set: learnt on its training split, told on its test split; None for none.
        people: a re-identification data set: its test split is ranked by cosine; None for none.
        every_n_epochs: k.
        feature: `patches`, the mean of the patch tokens, or `class_token`; after the final norm, each dimension
            with mean 0 and deviation 1 over the images that are compared.
    """

    def __init__(
        self,
        attributes: DataModule | None = None,
        people: DataModule | None = None,
        every_n_epochs: int = 10,
        feature: Literal["patches", "class_token"] = "patches",
    ):
        if attributes is None and people is None:
            raise HapError("callbacks.probe: attributes and people are both null, nothing is left to measure")
        if feature not in ("patches", "class_token"):
            raise HapError(f"callbacks.probe.feature={feature!r}: patches or class_token")
        if every_n_epochs < 1:
            raise HapError(f"callbacks.probe.every_n_epochs={every_n_epochs}: at least 1")
        self.attributes, self.people = attributes, people
        self.every_n_epochs, self.feature = every_n_epochs, feature

    def on_train_start(self, trainer: Any, task: Any) -> None:
        if not isinstance(task.model, ViT):
            raise HapError("callbacks=probe measures a ViT; this task has none: callbacks.probe=null")
        self.prepare()  # bad data stops the run now, not after k epochs

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        reading = self.measure(task.model)
        task.log_dict({f"probe/{name}": value for name, value in reading.scores.items()})
        self._draw(trainer, reading)

    @rank_zero_only
    def _draw(self, trainer: Any, reading: Reading) -> None:
        for name, picture in draw_maps({"": reading}).items():
            save_picture(trainer, name, picture)

    def prepare(self) -> None:
        """Read, or draw, what is measured on. Raises HapError where it is not of the right kind."""
        kinds = (("attributes", "train", "attributes"), ("people", "test", "identities"))
        for name, split, what in kinds:
            data: DataModule | None = getattr(self, name)
            if data is None:
                continue
            try:
                records = data.records(split)
                sample = records[0].annotations()
            except HapError as error:
                raise HapError(f"callbacks.probe.{name}: {error}") from error
            if ("labels" if name == "attributes" else "identity") not in sample:
                raise HapError(
                    f"callbacks.probe.{name}: {data.root} has no {what}: data@callbacks.probe.{name}=NAME names data "
                    f"that have, callbacks.probe.{name}=null leaves them out"
                )

    def protocol(self) -> dict[str, str]:
        """What was measured on, in words."""
        said = {"feature": f"{self.feature}, standardised"}
        if self.attributes is not None:
            train, test = (self.attributes.records(split) for split in ("train", self.attributes.test_split))
            said["attributes"] = (
                f"{self.attributes.root}: {len(train):,} images to learn from, {len(test):,} told"
            )
        if self.people is not None:
            said["people"] = (
                f"{self.people.root}: {len(self.people.records(self.people.test_split)):,} images"
            )
        return said

    @torch.no_grad()
    def measure(self, encoder: ViT) -> Reading:
        """Measure an encoder where it is; it is left in the mode it was in."""
        training = encoder.training
        encoder.eval()
        scores: dict[str, float] = {}
        attributes: dict[str, Cloud] = {}
        identities = None
        with torch.random.fork_rng(devices=[]):  # a loader takes a number out of it
            if self.attributes is not None:
                told, attributes = self._attributes(encoder, self.attributes)
                scores |= told
            if self.people is not None:
                found, identities = self._people(encoder, self.people)
                scores |= found
        encoder.train(training)
        return Reading(scores, identities, attributes)

    def _attributes(self, encoder: ViT, data: DataModule) -> tuple[dict[str, float], dict[str, Cloud]]:
        known, others = (self._read(encoder, data, split) for split in ("train", data.test_split))
        names: Sequence[str] = data.records("train").attributes  # type: ignore[attr-defined]
        kept = answerable(known["labels"]) & answerable(others["labels"])
        if not kept.any():
            raise HapError(
                f"callbacks.probe.attributes: {data.root} has no attribute with both answers in training and test"
            )
        labels, truth = known["labels"][:, kept], others["labels"][:, kept]
        learnt, told = standardised(known["feature"], others["feature"])
        probabilities = {
            "knn_mA": knn_probability(learnt, labels, told),
            "linear_mA": linear_probability(learnt, labels, told),
        }
        scores = {name: float(label_recalls(p, truth).mean()) for name, p in probabilities.items()}
        points = map_2d(told)
        share = (truth == 1).sum(0) / (truth >= 0).sum(0)
        order = (share - 0.5).abs().argsort(stable=True)[:SHOWN].tolist()
        chosen = [names[i] for i in kept.nonzero().flatten().tolist()]
        return scores, {chosen[i]: Cloud(points, torch.where(truth[:, i] == 1, 0, -1)) for i in order}

    def _people(self, encoder: ViT, data: DataModule) -> tuple[dict[str, float], Cloud]:
        seen = self._read(encoder, data, data.test_split)
        (feature,) = standardised(seen["feature"])
        metric = RetrievalMetric(sync_on_compute=False)
        metric.update(feature.float(), *(seen[name] for name in ("identity", "camera", "is_query", "index")))
        found = metric.compute()
        wanted, count = seen["identity"][seen["is_query"]].unique(return_counts=True)
        coloured = wanted[count.argsort(descending=True, stable=True)[:MAPPED]]
        match = seen["identity"][:, None] == coloured  # (N, MAPPED)
        colour = torch.where(match.any(1), match.int().argmax(1), -1)
        return {name: found[name] for name in ("mAP", "rank1")}, Cloud(map_2d(feature), colour)

    def _read(self, encoder: ViT, data: DataModule, split: str) -> dict[str, Tensor]:
        """`feature` (N, D) float32 and what the records say of each image, in the order of the data, on the CPU."""
        parts = []
        for batch in data.eval_dataloader(split):
            tokens = encoder.features(normalised(batch.pop("image"), encoder)).float()
            feature = tokens[:, 0] if self.feature == "class_token" else tokens[:, 1:].mean(1)
            parts.append({"feature": feature.cpu(), **batch})
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order, kept = sort_once(columns["index"])
        return {name: values[order][kept] for name, values in columns.items()}

    @torch.no_grad()
    def attention(self, encoder: ViT, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Images of what is measured on, (n, H, W, 3) uint8, n at most `count`, and where the class token of an encoder
        in evaluation mode looks, (n, rows, columns)."""
        data = self.people or self.attributes
        assert data is not None
        dataset = data.dataset(data.test_split)
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
        images = torch.stack([dataset[0, i]["image"] for i in chosen])
        attention = encoder.class_attention(normalised(images, encoder)).unflatten(1, encoder.grid)
        return images.movedim(1, -1).numpy(), attention.cpu().numpy()


def normalised(images: Tensor, encoder: ViT) -> Tensor:
    """(N, 3, H, W) pixel levels 0..255, RGB -> float32 as the encoder takes them, where it is."""
    mean, std = (
        torch.from_numpy(x).view(3, 1, 1).to(encoder.cls_token.device) for x in (PIXEL_MEAN, PIXEL_STD)
    )
    return torch.sub(images.to(mean.device), mean).div_(std)


def evaluate_encoders(
    cfg: DictConfig, trainer: L.Trainer, options: Mapping[str, Any], run_dir: Path
) -> dict[str, float]:
    """`hap eval experiment=probe`: the encoders of `cfg.weights`, a name or several, on the device of the trainer.
    `none` is the encoder before any training.

    Args:
        options: of `load_weights`.

    Returns:
        what is written to `results.json`, see `compare`.
    """
    probe = next((c for c in trainer.callbacks if isinstance(c, Probe)), None)  # type: ignore[attr-defined]
    if probe is None:
        raise HapError("without a task there is only callbacks=probe to evaluate; experiment=NAME has a task")
    encoders: dict[str, ViT] = {}
    reports = []
    for name in map(str, cfg.weights if OmegaConf.is_list(cfg.weights) else [cfg.weights]):
        L.seed_everything(cfg.seed, verbose=False)
        encoders[name] = ViT(tuple(cfg.img_size), **cfg.model)
        if name != "none":
            reports.append(load_weights(encoders[name], name, **options))
            log.info("%s", reports[-1])
    write_start(cfg, run_dir, reports[0] if len(reports) == 1 else None)
    begin_wandb(trainer, cfg, None)
    start = time.perf_counter()
    results = compare(probe, encoders, trainer.strategy.root_device, run_dir)
    for logger in trainer.loggers:
        logger.log_metrics(results, step=0)
        logger.save()
    results["seconds"] = round(time.perf_counter() - start, 1)
    protocol = probe.protocol() | {"weights": ", ".join(printable(name) for name in encoders)}
    write_results(results, protocol, run_dir, show=False)
    return results


def compare(
    probe: Probe, encoders: Mapping[str, ViT], device: torch.device, folder: Path
) -> dict[str, float]:
    """Measure encoders one after the other: a table on the console and in `probe.csv`, pictures of all side by side.

    Returns:
        `probe/SCORE`; of several encoders `probe/SCORE/NAME`.
    """
    probe.prepare()
    readings: dict[str, Reading] = {}
    attention = []
    for name, encoder in encoders.items():
        encoder.to(device).eval()
        readings[printable(name)] = probe.measure(encoder)
        images, looks = probe.attention(encoder)
        attention.append([draw_attention(*pair) for pair in zip(images, looks, strict=True)])
        encoder.cpu()
    scores = {name: reading.scores for name, reading in readings.items()}
    names = list(next(iter(scores.values())))
    rows = [[name, *(f"{value:.4f}" for value in row.values())] for name, row in scores.items()]
    print_table(["weights", *names], rows)
    with (folder / "probe.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["weights", *names], *rows])
    pictures = draw_maps(readings) | {"probe_scores": bars(scores)}
    pictures["attention"] = mosaic(
        list(zip(images, *attention, strict=True)), ["image", *map(_short, readings)]
    )
    for name, picture in pictures.items():
        write_picture(folder / "pictures" / f"{name}.png", picture)
    alone = len(scores) == 1
    return {
        f"probe/{score}" if alone else f"probe/{score}/{name}": value
        for name, row in scores.items()
        for score, value in row.items()
    }


def draw_maps(readings: Mapping[str, Reading]) -> dict[str, np.ndarray]:
    """`map_identities` and `map_attributes` of encoders by name; of one alone, its name does not matter."""
    alone = len(readings) == 1
    people: dict[str, Cloud] = {}
    attributes: dict[str, Cloud] = {}
    for name, reading in readings.items():
        title = "" if alone else f"{_short(name)}: "
        if reading.identities is not None:
            people["people" if alone else _short(name)] = reading.identities
        shown = list(reading.attributes.items())[: SHOWN if alone else 3]
        attributes |= {f"{title}{printable(attribute)}": cloud for attribute, cloud in shown}
    pictures = {}
    if people:
        pictures["map_identities"] = clouds(people, min(3, len(people)))
    if attributes:
        pictures["map_attributes"] = clouds(attributes, 3)
    return pictures


def _short(name: str) -> str:
    """The end of a path, which tells files apart."""
    return name if len(name) <= 32 else f"...{name[-29:]}"
