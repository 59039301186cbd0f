"""Text-to-image person re-identification: find the images of a person that a sentence describes."""

import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.nn import functional as F

from hap.data.base import Dataset
from hap.data.kept import Kept, write_kept
from hap.data.text_reid import TextRecords
from hap.data.transforms import BICUBIC, resize
from hap.errors import BadSample, HapError, printable
from hap.losses import RankingLoss
from hap.metrics.ranking import top_matches
from hap.metrics.text_retrieval import TextRetrieval
from hap.models.text_reid import TextReidOutput, TextReidViT
from hap.plots import OTHER, QUERY, SAME, UNKNOWN, Tile, captioned, tile_rows, write_picture
from hap.spool import checksum
from hap.tasks.base import Task, write_rows
from hap.text.tokens import MAX_LENGTH, tokenizer_of

log = logging.getLogger(__name__)

NUM_STRIPS, STRIP_LENGTH = 8, 10  # sentences in a picture, images beside each
TEXTS_AT_ONCE = 256  # sentences that are embedded together

Colour = tuple[int, int, int]
Strip = tuple[
    str, Sequence[tuple[int, Colour, str]]
]  # a sentence; images by their index, frame, what is said of them


class TextReid(Task):
    """Cross-entropy over the training people, of image and of caption by one classifier, plus a loss that brings the
    two together.

    Evaluation ranks the images for each caption by the cosine of the embeddings; it has no loss, as its people are
    none of the training classes.

    Args:
        model: returns `TextReidOutput`.
        matching: loss on (image embeddings, text embeddings, identities).
        recipe_batch: pairs per step that the recipe was made for; another number is said at the start.
        top_k: images that `hap predict` lists for each sentence.
    """

    inputs = ("gallery",)
    takes_texts = True
    counts = {  # noqa: RUF012 - never changed
        "num_classes": ("people", "classifier.weight"),
        "vocabulary": ("vocabulary", "word_embeddings.weight"),
    }
    best_of = "rank1"
    no_decay = frozenset({"cls_token", "pos_embed"})
    metric: TextRetrieval
    model: TextReidViT
    texts: Sequence[str] = ()  # of a prediction

    def __init__(
        self, *args: Any, matching: nn.Module, recipe_batch: int = 64, top_k: int = 50, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        if top_k < 1:
            raise HapError(f"task.top_k={top_k}: give a number of images, 1 or more")
        self.matching, self.recipe_batch, self.top_k = matching, recipe_batch, top_k

    @classmethod
    def labels_of(cls, records: Sequence[Any]) -> dict[str, list[str]]:
        """`people`: the identities to train on, as the data set writes them; `vocabulary`: what the ids stand for."""
        if not isinstance(records, TextRecords):
            raise HapError("these data have no captions")
        return {"people": records.people, "vocabulary": records.tokenizer.vocabulary}

    @classmethod
    def arranged(
        cls, splits: Mapping[str, Any], labels: Mapping[str, Sequence[str]]
    ) -> Mapping[str, Sequence[Any]]:
        """The captions in the ids of the checkpoint."""
        tokenizer = tokenizer_of(labels["vocabulary"])
        return {name: records.retokenized(tokenizer) for name, records in splits.items()}

    def forward(self, batch: dict[str, torch.Tensor]) -> TextReidOutput:
        images = self.normalize(batch["image"])
        if "tokens" not in batch:  # of a prediction
            image = self.model.image_embedding(images)
            return TextReidOutput(image, image[:0], image[:0], image[:0])
        if self.training:  # one caption each; the longest is that of the batch
            tokens, lengths = batch["tokens"][:, 0], batch["lengths"][:, 0]
            return self.model(images, tokens, lengths, lengths.max().expand_as(lengths))
        there = batch["lengths"] > 0  # (N, M): images have different numbers of captions
        return self.model(images, *(batch[name][there] for name in ("tokens", "lengths", "longest")))

    def losses(self, outputs: TextReidOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}
        person = batch["identity"]
        image = F.cross_entropy(outputs.image_logits, person)
        text = F.cross_entropy(outputs.text_logits, person)
        matching = self.matching(outputs.image, outputs.text, person)
        return {"loss": image + text + matching, "identity": image + text, "matching": matching}

    def update_metrics(self, outputs: TextReidOutput, batch: dict[str, torch.Tensor]) -> None:
        image, position = (batch["lengths"] > 0).nonzero(as_tuple=True)
        index, person = batch["index"], batch["identity"]
        query = torch.ones_like(image, dtype=torch.bool)
        number = batch["first_caption"][image] + position
        self.metric.update(outputs.text, person[image], index[image], query, number)
        self.metric.update(outputs.image, person, index, torch.zeros_like(index, dtype=torch.bool), index)

    def predictions(self, outputs: TextReidOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The embedding of each image, of length 1: its dot product with that of a sentence is the cosine."""
        return {"feature": F.normalize(outputs.image)}

    def search_for(self, texts: Sequence[str]) -> None:
        self.check_texts(texts)
        self.texts = texts

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raises HapError for a sentence of which no word is known; says what else is not known, and what is cut."""
        tokenizer = tokenizer_of(self.labels["vocabulary"])
        unknown: dict[str, None] = {}  # in their order
        cut = 0
        for number, text in enumerate(texts, start=1):
            found = tokenizer.read(text)
            if not found.known:
                raise HapError(
                    f"no word of sentence {number}, {printable(text[:80])!r}, is in the vocabulary of this model"
                )
            unknown.update(dict.fromkeys(found.unknown))
            cut += found.length > MAX_LENGTH
        if unknown:
            shown = ", ".join(printable(word) for word in list(unknown)[:8])
            log.warning(
                "words that this model does not know: %s%s", shown, ", ..." if len(unknown) > 8 else ""
            )
        if cut:
            log.warning("%d sentences are longer than %d ids: their ends are not read", cut, MAX_LENGTH)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(K, E), of length 1, on the CPU. A sentence is one of a batch of its own, whatever it comes with."""
        self.eval()  # no trainer has seen to it where only sentences are embedded
        rows = tokenizer_of(self.labels["vocabulary"])(texts)
        parts = [torch.zeros(0, self.model.projection.out_features)]
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            part = rows[start : start + TEXTS_AT_ONCE]
            lengths = torch.tensor([len(row) for row in part], device=self.device)
            tokens = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
            for row, ids in zip(tokens, part, strict=True):
                row[: len(ids)] = torch.from_numpy(ids)
            feature = self.model.text_embedding(tokens.to(self.device), lengths, lengths)
            parts.append(F.normalize(feature).cpu())
        return torch.cat(parts)

    def write_predictions(self, rows: dict[str, torch.Tensor], records: Sequence[Any], folder: Path) -> None:
        """`features.npz`, see `hap.data.kept`, which `gallery=` takes again; `rankings.csv` (text, rank, gallery,
        similarity); `ranked_gallery.png` of the first sentences."""
        features = rows["feature"]
        write_kept(folder / "features.npz", records, features.numpy(), checksum(self.state_dict()))
        index, distance = top_matches(
            self.embed_texts(self.texts), features, k=min(self.top_k, len(features))
        )
        write_rows(
            folder / "rankings.csv",
            (
                {"text": text, "rank": rank, "gallery": records[i].name, "similarity": 1 - value}
                for text, row, values in zip(self.texts, index.numpy(), distance.numpy(), strict=True)
                for rank, (i, value) in enumerate(zip(row.tolist(), values.tolist(), strict=True), start=1)
            ),
        )
        strips = []
        for text, *found in zip(
            self.texts[:NUM_STRIPS], index.tolist(), (1 - distance).tolist(), strict=False
        ):
            ranked = enumerate(zip(*found, strict=True), start=1)
            tiles = [(i, UNKNOWN, f"{rank}: {value:.3f}") for rank, (i, value) in ranked]
            strips.append((text, tiles[:STRIP_LENGTH]))
        write_picture(folder / "ranked_gallery.png", self._drawn(records, strips))

    def search(self, kept: Kept, folder: Path) -> None:
        """`write_predictions` of images whose features are known. Raises HapError where another model made them."""
        self._check_ready()
        if kept.model != checksum(self.state_dict()):
            raise HapError(
                f"{kept.file} holds features of another model: give gallery=FOLDER, which makes them anew"
            )
        self.write_predictions({"feature": torch.from_numpy(kept.features)}, kept, folder)

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """The captions of the last evaluation with the lowest average precision."""
        records = self.trainer.datamodule.records("val")  # type: ignore[attr-defined]
        return {"worst_queries": self._strips(records)} if self.metric.update_called else {}

    def report(self, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
        """The captions with the highest and the lowest average precision."""
        records: Any = dataset.records
        return {"best_queries": self._strips(records, best=True), "worst_queries": self._strips(records)}

    def _strips(self, records: TextRecords, best: bool = False) -> np.ndarray:
        lists = self.metric.ranked_lists(NUM_STRIPS, STRIP_LENGTH, best=best)
        strips = []
        for i, number in enumerate(lists.query.tolist()):
            own, caption = records.caption(number)
            tiles: list[tuple[int, Colour, str]] = [(own, QUERY, f"AP {lists.ap[i]:.3f}")]
            found = (lists.gallery[i].tolist(), lists.distance[i].tolist(), lists.match[i].tolist())
            for rank, (image, distance, same) in enumerate(zip(*found, strict=True), start=1):
                tiles += (
                    [(image, SAME if same else OTHER, f"{rank}: {1 - distance:.3f}")] if image >= 0 else []
                )
            strips.append((caption, tiles))
        return self._drawn(records, strips)

    def _drawn(self, records: Sequence[Any], strips: Sequence[Strip]) -> np.ndarray:
        """A row for each sentence, (H, W, 3) uint8. An image that is not there any more is grey."""
        size: Any = self.model.patch_embed.img_size
        images = {}
        for index in {index for _, tiles in strips for index, *_ in tiles}:
            try:
                images[index] = resize(records[index].pixels(), size, BICUBIC)
            except (BadSample, OSError):
                images[index] = np.full((*size, 3), 128, np.uint8)
        rows = []
        for sentence, tiles in strips:
            row = tile_rows([[Tile(images[i], colour, (text,)) for i, colour, text in tiles]])
            rows.append(captioned(row, textwrap.wrap(printable(sentence), max(20, row.shape[1] // 7))))
        width = max(row.shape[1] for row in rows)
        wide = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
        return np.concatenate(wide)

    def protocol(self) -> dict[str, Any]:
        return {
            "distance": self.metric.distance,
            "padding": self.model.pooling,
            "mAP": "usual; mAP_trapz is the official code's",
            "other_": "without the caption's own image",
        }

    def _check_ready(self) -> None:
        self.model.text.check()

    def on_fit_start(self) -> None:  # before the first pictures
        self._check_ready()
        if self.batch_plan.total != self.recipe_batch:
            rank_zero_only(log.warning)(
                "%d pairs per step, the recipe is one of %d: another balance of the losses, and other numbers",
                self.batch_plan.total,
                self.recipe_batch,
            )

    def on_test_start(self) -> None:
        self._check_ready()

    def on_predict_start(self) -> None:
        self._check_ready()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if isinstance(self.matching, RankingLoss):
            self.matching.step = self.global_step
        if getattr(self.model.text, "epoch", self.current_epoch) != self.current_epoch:
            self.model.text.epoch = self.current_epoch
            self.model.text.train()
