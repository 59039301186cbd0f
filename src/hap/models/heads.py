"""What stands on the encoder in the downstream tasks.

Legend: N images, h x w grid of patches, D width of the encoder, C people of the training set, A attributes.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from hap.models.vit import LayerNorm, ViT


class ReidOutput(NamedTuple):
    """One entry per branch."""

    features: list[Tensor]  # (N, D) and, with a local branch, (N, 2 D): what the triplet loss compares
    logits: list[Tensor]  # (N, C) each, float32

    @property
    def embedding(self) -> Tensor:
        """The test feature, (N, D) or (N, 3 D). Not normalised: the whole vector is, not each branch."""
        return torch.cat(self.features, dim=1)


class ReidViT(ViT):
    """Plain ViT: the class token after the final norm is the feature, a linear layer on it names the person.

    Args:
        num_classes: people of the training set.
        encoder: arguments of `ViT`.
    """

    def __init__(self, *, num_classes: int, **encoder: Any):
        super().__init__(**encoder)
        self.head = classifier(self.embed_dim, num_classes)

    def forward(self, images: Tensor) -> ReidOutput:  # type: ignore[override]
        """images: (N, 3, H, W), normalised."""
        feature = self.forward_features(images)[:, 0]
        return ReidOutput([feature], [in_float32(feature, self.head)])


class ReidLem(ViT):
    """ViT with the locality enhanced module (MALE): a convolutional branch beside the class token.

    The branch reads the patch tokens *before* the final norm. Each branch classifies behind a batch-norm neck
    without bias (Luo et al., 2019) and is compared in front of it. Its convolutions and `conv_fc` keep
    PyTorch's initialisation, as in the official code. Over several processes its batch norms need
    `trainer.sync_batchnorm=true` for the result of one.

    Args:
        num_classes: people of the training set.
        encoder: arguments of `ViT`.
    """

    def __init__(self, *, num_classes: int, **encoder: Any):
        super().__init__(**encoder)
        dim, local_dim = self.embed_dim, 2 * self.embed_dim
        self.head = classifier(dim, num_classes)
        self.bn = bn_neck(dim)
        halve = nn.Sequential(nn.Conv2d(dim, local_dim, 1, stride=2, bias=False), nn.BatchNorm2d(local_dim))
        self.conv_head = nn.Sequential(  # a Bottleneck puts out four times its second argument
            Bottleneck(dim, local_dim // 4, stride=2, downsample=halve),
            Bottleneck(local_dim, local_dim // 4),
            Bottleneck(local_dim, local_dim // 4),
        )
        self.conv_fc = nn.Linear(local_dim, num_classes)
        self.conv_fc_norm = LayerNorm(local_dim)
        self.conv_bn = bn_neck(local_dim)

    def forward(self, images: Tensor) -> ReidOutput:  # type: ignore[override]
        """images: (N, 3, H, W), normalised."""
        # tokens (N, 1 + hw, D) after the final norm, patches (N, D, h, w) before it
        outputs: Any = self.forward_intermediates(images, indices=1, output_fmt="NCHW")
        tokens, (patches,) = outputs
        local = self.conv_head(patches).mean(dim=(2, 3))  # (N, 2 D, h / 2, w / 2) -> (N, 2 D)
        features = [tokens[:, 0], self.conv_fc_norm(local)]
        logits = [
            in_float32(features[0], self.bn, self.head),
            in_float32(features[1], self.conv_bn, self.conv_fc),
        ]
        return ReidOutput(features, logits)


class AttributeViT(ViT):
    """Plain ViT: the mean of the patch tokens after the final norm, a linear layer on it for all attributes.

    The class token takes part in the attention and is left out of the mean. The head keeps PyTorch's initialisation,
    as in the official code.

    Args:
        num_attributes: A.
        encoder: arguments of `ViT`.
    """

    def __init__(self, *, num_attributes: int, **encoder: Any):
        super().__init__(**encoder)
        self.head = nn.Linear(self.embed_dim, num_attributes)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """images: (N, 3, H, W), normalised. Returns logits (N, A), float32."""
        return in_float32(self.forward_features(images)[:, 1:].mean(dim=1), self.head)


def classifier(dim: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def in_float32(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply the layers outside autocast: 8 bits of a bfloat16 logit are too few for hundreds of classes."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device)  # not for tensors without storage
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        x = x.float()
        for layer in layers:
            x = layer(x)
    return x


def bn_neck(dim: int) -> nn.BatchNorm1d:
    """Batch norm whose bias stays 0, so that classes are told apart by angle around the origin."""
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck
