"""Images and sentences in one space: the embeddings of text-to-image person ReID.

Legend: N images, K captions, L ids of the longest, D width of the image encoder, E of the embedding, C people.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from hap.errors import HapError
from hap.models.heads import in_float32
from hap.models.text import BiLSTM, Pooling, pool
from hap.models.vit import ViT


class TextReidOutput(NamedTuple):
    image: Tensor  # (N, E) float32, not normalised
    text: Tensor  # (K, E)
    image_logits: Tensor  # (N, C), float32
    text_logits: Tensor  # (K, C)


class TextReidViT(ViT):
    """The network of the official code: the maximum over the patch tokens *before* the final norm, the maximum over a
    BiLSTM on the text encoder's tokens, and one projection and one classifier for both.

    The final norm is there, unused, so that weights of any ViT fit.

    Args:
        text: the size of the vocabulary -> the text encoder, see `hap.models.text`.
        vocabulary: that size.
        num_classes: people of the training set.
        embedding: E.
        lstm: BiLSTM between the text encoder and the maximum; without it each side has a projection of its own (for a
            text encoder that learns).
        pooling: what padding is to the maximum over a caption, see `hap.models.text.pool`.
        encoder: arguments of `ViT`.
    """

    resize_mode = "bilinear"  # of positions of another size, as the official code of this task

    def __init__(
        self,
        *,
        text: Callable[[int], Any],
        vocabulary: int,
        num_classes: int,
        embedding: int = 384,
        lstm: bool = True,
        pooling: Pooling = "zero",
        **encoder: Any,
    ):
        super().__init__(**encoder)
        if pooling not in ("zero", "batch_zero", "masked"):
            raise HapError(f"task.model.pooling={pooling}: choose zero, batch_zero or masked")
        self.norm.requires_grad_(False)
        self.text, self.pooling = text(vocabulary), pooling
        width = self.text.width
        self.lstm = BiLSTM(width, self.embed_dim) if lstm else None
        self.projection = _projection(self.embed_dim, embedding)
        self.text_projection = None if lstm else _projection(width, embedding)
        self.classifier = nn.Linear(embedding, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def image_embedding(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), normalised -> (N, E), float32."""
        outputs: Any = self.forward_intermediates(
            images, indices=1, output_fmt="NLC", intermediates_only=True
        )
        return in_float32(outputs[0].amax(1), self.projection)

    def text_embedding(self, tokens: Tensor, lengths: Tensor, longest: Tensor) -> Tensor:
        """(K, L) ids, (K,) of each, (K,) of the longest of its batch -> (K, E), float32."""
        states = self.text(tokens, lengths)
        if self.lstm is not None:
            states = self.lstm(states, lengths)
        return in_float32(
            pool(states, lengths, longest, self.pooling), self.text_projection or self.projection
        )

    def forward(  # type: ignore[override]
        self, images: Tensor, tokens: Tensor, lengths: Tensor, longest: Tensor
    ) -> TextReidOutput:
        image, text = self.image_embedding(images), self.text_embedding(tokens, lengths, longest)
        return TextReidOutput(
            image, text, in_float32(image, self.classifier), in_float32(text, self.classifier)
        )


def _projection(width: int, embedding: int) -> nn.Linear:
    layer = nn.Linear(width, embedding, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer
