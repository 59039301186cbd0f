"""Text encoders: token ids become a vector for each token, and these one for the sentence.

Legend: K captions, L ids of the longest, W width, D width of the image encoder.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hap.errors import HapError
from hap.models.checkpoint import dense
from hap.models.weight_file import read_weight_file
from hap.text.sources import BERT_ADVICE

Pooling = Literal["zero", "batch_zero", "masked"]
_NORM = {"gamma": "weight", "beta": "bias"}


class Bert(nn.Module):
    """BERT (Devlin et al., 2019) without pooler, in the layout of Hugging Face's files.

    Args:
        sizes: `vocab_size`, `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `intermediate_size`,
            `max_position_embeddings`.
        weights: file of its weights. If it is not there they have to come with a checkpoint; until then they are no
            numbers. None: it starts from nothing.
        frozen: it does not learn.
        dropout: of a frozen BERT in training: "off", or "official": off in the first epoch and on in all others, as
            the official code happens to have it. One that learns has it.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: str | None = None,
        frozen: bool = True,
        dropout: Literal["off", "official"] = "off",
    ):
        super().__init__()
        try:
            from transformers import BertConfig, BertModel
        except ImportError:
            raise HapError('BERT needs the package transformers: pip install "hap[text]"') from None
        if dropout not in ("off", "official"):
            raise HapError(f"task.model.text.dropout={dropout}: choose off or official")
        options: dict[str, Any] = {**sizes, "attn_implementation": "sdpa"}
        config = BertConfig(**options)
        self.bert: Any = BertModel(config, add_pooling_layer=False)
        self.width, self.frozen, self.dropout = sizes["hidden_size"], frozen, dropout
        self.weights = None if weights is None else Path(weights).expanduser()
        self.epoch = 0  # of the training, set by the task
        if self.weights is not None:
            if self.weights.is_file():
                self._read(self.weights)
            else:
                for parameter in self.bert.parameters():
                    nn.init.constant_(parameter, torch.nan)
        self.bert.requires_grad_(not frozen)

    @torch.no_grad()
    def _read(self, path: Path) -> None:
        state = {_renamed(name): value for name, value in read_weight_file(path).entries.items()}
        try:
            for name, wanted in self.bert.named_parameters():
                if name not in state:
                    raise HapError(f"it has no {name}: it is no BERT")
                if (shape := tuple(getattr(state[name], "shape", ()))) != wanted.shape:
                    raise HapError(f"its {name} is {shape}, its config.json says {tuple(wanted.shape)}")
                wanted.copy_(dense(name, state[name], wanted))
        except HapError as error:
            raise HapError(f"{path}: {error}") from None

    def check(self) -> None:
        """Raises HapError where its weights were not loaded."""
        if not self.bert.embeddings.word_embeddings.weight.isfinite().all():
            raise HapError(f"no file of BERT's weights: {self.weights}; {BERT_ADVICE}")

    def train(self, mode: bool = True) -> "Bert":
        super().train(mode)
        if self.frozen:
            self.bert.train(mode and self.dropout == "official" and self.epoch > 0)
        return self

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(K, L) ids, 0 behind the `lengths` (K,) -> (K, L, W)."""
        there = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        # In the form that attention takes: of another, transformers looks at the values, and waits for the device.
        mask = there[:, None, None].expand(-1, 1, tokens.shape[1], -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state


def _renamed(name: str) -> str:
    """Norms of the first release, bert-base-uncased's to this day, have names of TensorFlow's."""
    return re.sub(
        r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{_NORM[m[1]]}", name.removeprefix("bert.")
    )


class WordVectors(nn.Module):
    """A vector for each word of a vocabulary, from nothing: the text encoder of the code before BERT.

    Args:
        vocabulary: its size, with 0, which pads.
        width: of a vector.
        dropout: of the vectors.
    """

    def __init__(self, vocabulary: int, width: int = 512, dropout: float = 0.3):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def check(self) -> None:
        """It has no weights but those of the training."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(K, L) ids -> (K, L, W)."""
        return self.dropout(self.word_embeddings(tokens))


def text_encoder(vocabulary: int, sizes: Mapping[str, int] | None, **options: Any) -> Bert | WordVectors:
    """`Bert`, or where there are no `sizes` of one `WordVectors`, for a vocabulary of a size. The options are those of
    `Bert`."""
    if sizes is None:
        return WordVectors(vocabulary)
    if sizes["vocab_size"] != vocabulary:
        raise HapError(f"the vocabulary has {vocabulary:,} entries, BERT {sizes['vocab_size']:,}")
    return Bert(sizes, **options)


class BiLSTM(nn.Module):
    """One layer in both directions, without biases, their mean: (K, L, W) -> (K, L, D), zero behind the `lengths`.

    Padding never enters the recurrence: it lies behind a caption in one direction, and the other is given the caption
    turned around.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.forth, self.back = (nn.LSTM(width, out, bias=False, batch_first=True) for _ in range(2))

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        place = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
        there = place < lengths[:, None]
        turned = torch.where(there, lengths[:, None] - 1 - place, place)  # its own inverse
        forth, back = self.forth(states)[0], self.back(_rows(states, turned))[0]
        return (forth + _rows(back, turned)) / 2 * there[..., None]


def _rows(states: Tensor, place: Tensor) -> Tensor:
    return states.gather(1, place[..., None].expand_as(states))


def pool(states: Tensor, lengths: Tensor, longest: Tensor, mode: Pooling) -> Tensor:
    """The maximum over the tokens of each caption, (K, L, D) -> (K, D).

    Args:
        lengths: (K,) tokens of each.
        longest: (K,) tokens of the longest caption of its batch.
        mode: what padding is. "masked": nothing; "zero": a vector of zeros behind every caption; "batch_zero": one
            behind each that is shorter than the longest of its batch, as the official code has it: there a feature
            depends on its neighbours.
    """
    behind = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
    best = states.masked_fill(behind[..., None], -torch.inf).amax(1)
    if mode == "masked":
        return best
    padded = lengths < longest if mode == "batch_zero" else torch.ones_like(lengths, dtype=torch.bool)
    return torch.where(padded[:, None], best.clamp(min=0), best)
