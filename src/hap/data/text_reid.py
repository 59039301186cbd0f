"""People with descriptions: images, captions and identities, as sorted records.

In training a record is an image with one of its captions; in validation and test it is an image of the gallery with
all of its captions, which are the queries.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hap.data.decoding import Encoded
from hap.data.files import read_file
from hap.text.tokens import Tokenizer

_SIDE = re.compile(r"\b(left|right)\b", re.I)
QUERY_BATCH = 64  # captions in a batch of the official evaluation


class Described(NamedTuple):
    """One image as an annotation file has it.

    Attributes:
        name: path below the root.
        person: its identity, as the data set writes it.
        captions: as they are written, of any number.
    """

    name: str
    person: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextRecord(Encoded):
    """One image with its captions, as ids.

    Attributes:
        root: folder of the data set.
        name: path of the image below it.
        person: the identity as the data set writes it.
        identity: its number in the split, from 0 without gaps.
        captions: as they are written.
        first: number of its first caption in the split.
        tokens: int32 (M, L), padded with 0 for M captions, the most that an image of the split has.
        lengths: int64 (M,) ids of each; 0 where there is no such caption.
        longest: int64 (M,) ids of the longest caption of its batch of 64 in the official evaluation.
    """

    root: Path
    name: str
    person: str
    identity: int
    captions: tuple[str, ...]
    first: int
    tokens: np.ndarray
    lengths: np.ndarray
    longest: np.ndarray

    def encoded(self) -> bytes:
        return read_file(self.root / self.name)

    def annotations(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "first_caption": self.first,
            "tokens": self.tokens.astype(np.int64),
            "lengths": self.lengths,
            "longest": self.longest,
            "names_side": names_side(self.captions),
        }


def names_side(captions: Sequence[str]) -> bool:
    """Whether a caption tells left from right: mirrored, its image is another."""
    return any(_SIDE.search(caption) for caption in captions)


class TextRecords(Sequence[TextRecord]):
    """The records of a split, with captions that were tokenised once.

    Args:
        items: images in the order of the file.
        tokenizer: makes that of the captions, when it is needed: a checkpoint has one of its own.
        pairs: a record for each caption (training), or for each image.
        source: name of the data set and protocol, for the results.
    """

    def __init__(
        self,
        root: Path,
        items: Sequence[Described],
        tokenizer: Callable[[], Tokenizer],
        pairs: bool,
        source: str,
    ):
        self.root, self.items, self.pairs, self.protocol = root, items, pairs, source
        self._tokenizer = tokenizer
        # Numbered in the order in which they come first, as the official code does.
        self.people = list(dict.fromkeys(item.person for item in items))
        self._identity = {person: number for number, person in enumerate(self.people)}
        counts = [len(item.captions) for item in items]
        self._first: np.ndarray = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self._most = 1 if pairs else max(counts)
        self._image = np.repeat(np.arange(len(items)), counts) if pairs else np.arange(len(items))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer()

    @cached_property
    def _ids(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all captions C: ids (C, L), padded, how many they are (C,), and of the longest in the batch (C,)."""
        rows = self.tokenizer(self.texts)
        lengths = np.array([len(row) for row in rows], np.int64)
        tokens = np.zeros((len(rows), lengths.max(initial=1)), np.int32)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        starts = np.arange(0, len(rows), QUERY_BATCH)
        longest = np.repeat(np.maximum.reduceat(lengths, starts), QUERY_BATCH)[: len(rows)]
        return tokens, lengths, longest

    def retokenized(self, tokenizer: Tokenizer) -> "TextRecords":
        return TextRecords(self.root, self.items, lambda: tokenizer, self.pairs, self.protocol)

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, index: int) -> TextRecord:  # type: ignore[override]
        image = int(self._image[index])
        item, first = self.items[image], int(self._first[image])
        captions: tuple[str, ...] = item.captions
        if self.pairs:
            first, own = range(len(self))[index], range(len(self))[index] - first  # of a negative index, too
            captions = captions[own : own + 1]
        rows = slice(first, first + len(captions))
        tokens, lengths, longest = (self._padded(values[rows]) for values in self._ids)
        return TextRecord(
            root=self.root,
            name=item.name,
            person=item.person,
            identity=self._identity[item.person],
            captions=captions,
            first=first,
            tokens=tokens,
            lengths=lengths,
            longest=longest,
        )

    def _padded(self, values: np.ndarray) -> np.ndarray:
        rows = np.zeros((self._most, *values.shape[1:]), values.dtype)
        rows[: len(values)] = values
        return rows

    def caption(self, number: int) -> tuple[int, str]:
        """The image of a caption, and the caption."""
        image = int(np.searchsorted(self._first, number, side="right")) - 1
        return image, self.items[image].captions[number - int(self._first[image])]

    @property
    def names(self) -> Iterator[str]:
        return (self.items[image].name for image in self._image.tolist())

    @property
    def texts(self) -> list[str]:
        """All captions, by their numbers."""
        return [caption for item in self.items for caption in item.captions]

    def checksums(self) -> dict[str, Any]:
        """What tells one training split from another, besides the images: people and captions."""
        words = hashlib.sha256("\0".join(self.texts).encode("utf-8", "surrogatepass"))
        people = hashlib.sha256(
            "\0".join(item.person for item in self.items).encode("utf-8", "surrogatepass")
        )
        return {
            "people": len(self.people),
            "identities": people.hexdigest()[:12],
            "captions": words.hexdigest()[:12],
            "vocabulary": hashlib.sha256("\0".join(self.tokenizer.vocabulary).encode()).hexdigest()[:12],
        }


def cut_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """Ids (..., L) without the padding that no caption of the batch needs, if it has any; in pieces, too."""
    if "tokens" in batch:
        tokens, lengths = batch["tokens"], batch["lengths"]
        whole = not isinstance(tokens, list)
        longest = max(1, *(int(part.max()) for part in ([lengths] if whole else lengths)))
        batch["tokens"] = tokens[..., :longest] if whole else [part[..., :longest] for part in tokens]
    return batch
