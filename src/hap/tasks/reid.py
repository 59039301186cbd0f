"""Person re-identification: learn to tell the training people apart, find others by their features."""

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hap.data.base import Dataset
from hap.data.files import file_id
from hap.data.reid import NOBODY, identity_in_name
from hap.errors import HapError, printable
from hap.metrics.ranking import top_matches
from hap.metrics.retrieval import RetrievalMetric
from hap.models.heads import ReidLem, ReidOutput, ReidViT
from hap.plots import OTHER, QUERY, SAME, UNKNOWN, Tile, curves, tile_rows, write_picture
from hap.tasks.base import Task

log = logging.getLogger(__name__)

NUM_STRIPS, STRIP_LENGTH = 8, 10  # queries in a picture, gallery images beside each


class Reid(Task):
    """Cross-entropy over the training people plus a triplet loss, each the mean over the model's branches.

    Evaluation ranks the gallery by the metric's distance of the embeddings; it has no loss, as its people are
    none of the training classes.

    Args:
        model: returns `ReidOutput`.
        triplet: loss on (features, identities).
        identity_weight, triplet_weight: of the two parts in the total.
        top_k: gallery images that `hap predict` lists for each query.
        zero_shot: the embedding is the encoder's class token alone; for encoders that were not fine-tuned.
    """

    inputs = ("query", "gallery")
    counts = {"num_classes": ("people", "head.weight")}  # noqa: RUF012 - never changed
    no_decay = frozenset({"cls_token", "pos_embed"})
    metric: RetrievalMetric

    def __init__(
        self,
        *args: Any,
        triplet: nn.Module,
        identity_weight: float = 0.5,
        triplet_weight: float = 0.5,
        top_k: int = 50,
        zero_shot: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if top_k < 1:
            raise HapError(f"task.top_k={top_k}: give a number of gallery images, 1 or more")
        self.top_k, self.zero_shot = top_k, zero_shot
        self.triplet, self.identity_weight, self.triplet_weight = triplet, identity_weight, triplet_weight
        self.model: ReidViT | ReidLem

    @classmethod
    def labels_of(cls, records: Sequence[Any]) -> dict[str, list[str]]:
        """`people`: the identities to train on, as the data set writes them."""
        names = {record.identity: record.person for record in records}
        return {"people": [names[identity] for identity in sorted(names)]}

    def forward(self, batch: dict[str, torch.Tensor]) -> ReidOutput:
        images = self.normalize(batch["image"])
        device = images.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if self.training or not autocast:
            return self._embed(images)
        # The 8 bits of bfloat16 are too few to tell near neighbours apart. The official code ranks in fp16.
        with torch.autocast(device, torch.float16, cache_enabled=False):  # the cache does not mix types
            return self._embed(images)

    def _embed(self, images: torch.Tensor) -> ReidOutput:
        if self.zero_shot:
            return ReidOutput([self.model.features(images)[:, 0]], [])
        return self.model(images)

    def losses(self, outputs: ReidOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}
        person = batch["identity"]
        identity = torch.stack([F.cross_entropy(x, person) for x in outputs.logits]).mean()
        triplet = torch.stack([self.triplet(x, person) for x in outputs.features]).mean()
        loss = self.identity_weight * identity + self.triplet_weight * triplet
        return {"loss": loss, "identity": identity, "triplet": triplet}

    def update_metrics(self, outputs: ReidOutput, batch: dict[str, torch.Tensor]) -> None:
        who = (batch["identity"], batch["camera"], batch["is_query"], batch["index"])
        self.metric.update(outputs.embedding, *who)

    def predictions(self, outputs: ReidOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The test feature of each image; where the cosine ranks, of length 1: two's dot product is the cosine."""
        feature = outputs.embedding.float()
        return {"feature": F.normalize(feature) if self.metric.distance == "cosine" else feature}

    def write_predictions(self, rows: dict[str, torch.Tensor], records: Sequence[Any], folder: Path) -> None:
        """`features.npz` (names, features, is_query); `rankings.csv` (query, rank, gallery, distance,
        same_person: empty where a name does not tell); `ranked_gallery.png` of the first queries.

        Images of the query's person by the query's camera are left out where the file names tell both, as in
        the evaluation. The very same file always is.
        """
        features, (who, told) = rows["feature"], people_in_names(records)
        is_query = torch.tensor([record.part == "query" for record in records])
        query, gallery = is_query.nonzero().squeeze(1), (~is_query).nonzero().squeeze(1)
        index, distance = top_matches(
            *(features[query], features[gallery]),
            *(who[query, 0], who[gallery, 0], who[query, 1], who[gallery, 1]),
            k=self.top_k,
            distance=self.metric.distance,
        )
        row, rank = (index >= 0).nonzero(as_tuple=True)
        asked, found, distance = query[row], gallery[index[row, rank]], distance[row, rank]
        known = told[asked] & told[found]
        same = who[asked, 0] == who[found, 0]

        names = np.array([record.name for record in records])
        np.savez(folder / "features.npz", names=names, features=features.numpy(), is_query=is_query.numpy())
        verdict = np.where(known.numpy(), np.where(same.numpy(), "true", "false"), "")
        # Names as the file system has them, also those that are not UTF-8.
        with open(
            folder / "rankings.csv", "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            writer = csv.writer(file)
            writer.writerow(["query", "rank", "gallery", "distance", "same_person"])
            # Through NumPy: a tensor of one index would give a name in place of an array of names.
            columns = names[asked.numpy()], (rank + 1).tolist(), names[found.numpy()], distance.tolist()
            writer.writerows(zip(*columns, verdict, strict=True))

        dataset = Dataset(records, self.trainer.datamodule.dataset("predict").transform)  # type: ignore[attr-defined]
        strips = []
        for q in query[:NUM_STRIPS].tolist():
            mine = (asked == q).nonzero().squeeze(1)[:STRIP_LENGTH]
            frames = [frame(s, k) for s, k in zip(same[mine], known[mine], strict=True)]
            strips.append(Strip(q, "", found[mine].tolist(), distance[mine].tolist(), frames))
        write_picture(folder / "ranked_gallery.png", draw_strips(dataset, strips))

    def _strips(self, dataset: Dataset, best: bool = False) -> np.ndarray:
        """The queries with the highest or the lowest average precision, and what they found."""
        lists = self.metric.ranked_lists(NUM_STRIPS, STRIP_LENGTH, best=best)
        strips = []
        for i, query in enumerate(lists.query.tolist()):
            count = int((lists.gallery[i] >= 0).sum())
            gallery, distance = lists.gallery[i, :count].tolist(), lists.distance[i, :count].tolist()
            frames = [frame(same) for same in lists.match[i, :count]]
            strips.append(Strip(query, f"AP {lists.ap[i]:.3f}", gallery, distance, frames))
        return draw_strips(dataset, strips)

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """The queries of the last evaluation with the lowest average precision."""
        dataset = self.trainer.datamodule.dataset("val")  # type: ignore[attr-defined]
        return {"worst_queries": self._strips(dataset)} if self.metric.update_called else {}

    def protocol(self) -> dict[str, Any]:
        return {"distance": self.metric.distance, "same_camera": "left out", "zero_shot": self.zero_shot}

    def report(self, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
        """`cmc.csv`, its curve, and the queries with the highest and the lowest average precision."""
        ranking = self.metric.ranking()
        cmc = ranking.cmc.numpy()
        table = np.column_stack([np.arange(1, len(cmc) + 1), cmc])
        np.savetxt(folder / "cmc.csv", table, ("%d", "%.6f"), delimiter=",", header="rank,share", comments="")
        title = f"mAP {ranking.mAP:.1%}, rank 1 {cmc[0]:.1%}, {ranking.num_valid:,} queries"
        ranks = np.arange(1, len(cmc) + 1)
        return {
            "cmc": curves(ranks, {"CMC": cmc}, "rank", "queries with a match (%)", title),
            "best_queries": self._strips(dataset, best=True),
            "worst_queries": self._strips(dataset),
        }

    def on_train_start(self) -> None:
        """Check that the people, the batch and the classifier fit each other."""
        super().on_train_start()
        loader: Any = self.trainer.train_dataloader
        size = getattr(loader.batches.plan, "images_per_identity", 1)
        if self.batch_plan.micro % size:
            raise HapError(
                f"{self.batch_plan.micro} images per device and pass split the {size} images of an identity: "
                f"change micro_batch_size, devices or data.plan.images_per_identity"
            )
        plan = self.batch_plan
        compared = plan.micro * (plan.world if getattr(self.triplet, "global_batch", False) else 1)
        if compared < 2 * size:
            raise HapError(
                f"{compared} images that are compared, {size} of an identity: a triplet needs two identities. "
                f"Change micro_batch_size, devices or data.plan.images_per_identity"
            )
        people = 1 + max(record.identity for record in loader.dataset.records)
        classes = self.model.head.out_features
        if people > classes:
            raise HapError(
                f"{people} people to train on, {classes} classes: set task.model.num_classes={people}"
            )
        if people < classes:
            log.warning("task.model.num_classes=%d, but only %d people to train on", classes, people)


def people_in_names(records: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Person and camera of each image by its file name, int64 (N, 2), and whether the name tells, bool (N,).

    Where it does not, and for distractors, who are nobody's match: a negative person of its own. All names of
    one file (links, hard links) have the same row, so that no image finds itself; each frame of a video has its own,
    and each box in a picture, of which its name says nothing.
    """
    files = [(file_id(record.path), record.frame, record.box) for record in records]
    told: dict[Any, set[tuple[int, int]]] = {}
    for file, record in zip(files, records, strict=True):
        who = identity_in_name(Path(record.file).name) if record.box is None else None
        told.setdefault(file, set()).update({who} if who else ())
    rows = {}
    for number, (file, names) in enumerate(told.items(), start=1):
        tells = len(names) == 1  # names that contradict each other do not
        person, camera = next(iter(names)) if tells else (NOBODY, 0)
        rows[file] = (-number, 0, tells) if person == NOBODY else (person, camera, tells)
    found = torch.tensor([rows[file] for file in files])
    return found[:, :2], found[:, 2].bool()


def frame(same: Any, known: Any = True) -> tuple[int, int, int]:
    return UNKNOWN if not known else SAME if same else OTHER


class Strip(NamedTuple):
    """A query and the gallery images it found, by their indices in the data set."""

    query: int
    title: str
    gallery: list[int]
    distance: list[float]
    frames: list[tuple[int, int, int]]


def draw_strips(dataset: Dataset, strips: Sequence[Strip]) -> np.ndarray:
    """A row for each query, (H, W, 3) uint8."""
    shown = sorted({index for strip in strips for index in (strip.query, *strip.gallery)})
    images = {index: dataset[0, index]["image"].permute(1, 2, 0).numpy() for index in shown}  # (H, W, 3)

    def tile(index: int, colour: tuple[int, int, int], text: str) -> Tile:
        name = re.sub(r"\.\w+(?=(#\d+)?(, box \d+)?$)", "", Path(dataset.records[index].name).name)
        return Tile(images[index], colour, (printable(name), text))

    rows = []
    for query, title, *found in strips:
        ranked = enumerate(zip(*found, strict=True), start=1)
        tiles = [tile(i, colour, f"{rank}: {d:.3f}") for rank, (i, d, colour) in ranked]
        rows.append([tile(query, QUERY, title), *tiles])
    return tile_rows(rows)
