"""Tokenisers: a sentence becomes a row of ids, by a vocabulary that a checkpoint keeps.

Two kinds: BERT's word pieces, and whole words as the code before it had them (spec of the task, 2.6 and 2.7).
"""

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hap.errors import HapError

log = logging.getLogger(__name__)

MAX_LENGTH = 100  # ids of a caption in the official code
PAD, PAD_WORD = 0, "[PAD]"
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Of people, in words that any vocabulary for this task knows: one that does not is not the one it is taken for.
KNOWN = "a man in a black shirt and a woman with a red bag"


class Reading(NamedTuple):
    """What a vocabulary makes of a sentence: `known`, how many of its words, or pieces of words, are in it; `unknown`,
    the words that are not; `length`, in ids, before it is cut."""

    known: int
    unknown: list[str]
    length: int


class Tokenizer(ABC):
    """Sentences -> ids from 1; 0 pads.

    Args:
        vocabulary: what the ids stand for, in their order.
    """

    def __init__(self, vocabulary: Sequence[str]):
        self.vocabulary = list(vocabulary)

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 (L,) for each sentence, L from 1 to `MAX_LENGTH`: a longer one is cut, as the official code does."""

    @abstractmethod
    def read(self, text: str) -> Reading: ...


class WordPieces(Tokenizer):
    """BERT's, lower-cased, between [CLS] and [SEP]: nothing is cleaned before, and a cut sentence has lost its [SEP],
    as in the official code.

    Raises:
        HapError: `tokenizers` is not installed, or it is not the vocabulary of an uncased English BERT.
    """

    def __init__(self, vocabulary: Sequence[str]):
        super().__init__(vocabulary)
        try:
            from tokenizers.implementations import BertWordPieceTokenizer
        except ImportError:
            raise HapError('word pieces need the package tokenizers: pip install "hap[text]"') from None
        ids = {piece: number for number, piece in enumerate(self.vocabulary)}
        if lost := [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in ids]:
            raise HapError(f"the vocabulary has no {', '.join(lost)}: it is not BERT's")
        if ids["[PAD]"] != PAD:
            raise HapError(f"[PAD] is number {ids['[PAD]']} of the vocabulary, not 0: it is not BERT's")
        if cased := [piece for piece in ids if piece != piece.lower() and not piece.startswith("[")]:
            raise HapError(
                f"the vocabulary has {cased[0]!r}: it is that of a cased BERT; take bert-base-uncased"
            )
        self.unknown = ids["[UNK]"]
        self._encoder = BertWordPieceTokenizer(vocab=ids, lowercase=True)
        if any(self.unknown in row for row in self([KNOWN])):
            raise HapError(
                f"the vocabulary does not know all words of {KNOWN!r}: it is none of lower-cased English"
            )

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows = self._encoder.encode_batch([_clean(text) for text in texts])
        return [np.array(row.ids[:MAX_LENGTH], np.int32) for row in rows]

    def read(self, text: str) -> Reading:
        text = _clean(text)
        row = self._encoder.encode(text, add_special_tokens=False)
        unknown = [text[slice(*at)] for i, at in zip(row.ids, row.offsets, strict=True) if i == self.unknown]
        named = sum(any(c.isalnum() for c in piece) for piece in row.tokens)  # "[UNK]", too
        return Reading(named - len(unknown), unknown, len(row.ids) + 2)


def _clean(text: str) -> str:
    """Bytes that are no text: the tokeniser takes none, and leaves out what stands for them."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


class Words(Tokenizer):
    """Whole words, lower-cased; punctuation, and words that are not in the vocabulary, are left out (the code before
    BERT). Number 0 of the vocabulary is `PAD_WORD`."""

    def __init__(self, vocabulary: Sequence[str]):
        super().__init__(vocabulary)
        if not self.vocabulary or self.vocabulary[PAD] != PAD_WORD:
            raise HapError(f"the vocabulary does not begin with {PAD_WORD}: it is not one of words")
        self._ids = {word: number for number, word in enumerate(self.vocabulary)}

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows = [[self._ids[word] for word in words(text) if word in self._ids] for text in texts]
        return [np.array(row[:MAX_LENGTH] or [PAD], np.int32) for row in rows]

    def read(self, text: str) -> Reading:
        found = words(text)
        unknown = [word for word in found if word not in self._ids]
        known = len(found) - len(unknown)
        return Reading(known, unknown, known)


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def words_of(texts: Iterable[str], at_least: int = 2) -> list[str]:
    """The vocabulary of `Words`: those that occur `at_least` so often, in the order in which they come first."""
    counts = Counter(word for text in texts for word in words(text))
    found = [word for word, count in counts.items() if count >= at_least]
    if not found:
        raise HapError(f"no word of the captions is there {at_least} times: there is no vocabulary to learn")
    return [PAD_WORD, *found]


def tokenizer_of(vocabulary: Sequence[str]) -> Tokenizer:
    """The tokeniser of a checkpoint, by the vocabulary that it keeps."""
    return WordPieces(vocabulary) if "[CLS]" in vocabulary else Words(vocabulary)
