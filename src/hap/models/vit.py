"""The plain vision transformer that every task shares, on timm's blocks and with timm's parameter names.

Legend: N images, L = rows x cols patches (row-major), D embedding width.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hap.config import CONF_DIR
from hap.errors import HapError
from hap.models.checkpoint import load_weights

log = logging.getLogger(__name__)

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class ViT(VisionTransformer):
    """Vision transformer for images of any size that the patches tile.

    LayerNorm eps 1e-6, biases everywhere, class token, learned position embedding (1, 1 + L, D), no head.
    Attention is PyTorch's fused kernel.

    Args:
        img_size: height and width in pixels.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0 at the first.
        grad_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ):
        height, width = img_size
        if height % patch_size or width % patch_size:
            raise HapError(
                f"image size {height}x{width} is not a multiple of patch size {patch_size}: "
                "change img_size or patch_size"
            )
        if embed_dim % num_heads:
            raise HapError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        super().__init__(
            img_size=(height, width),
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            norm_layer=LayerNorm,
            num_classes=0,
            global_pool="",
            weight_init="skip",
        )
        self.depth = depth
        self.set_grad_checkpointing(grad_checkpointing)
        _init_parameters(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.patch_embed.grid_size

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise lr decay: 0 for the embeddings, i + 1 for block i, depth + 1
        for all that follows."""
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1

    def features(self, images: Tensor) -> Tensor:
        """
        Args:
            images: (N, 3, H, W) float, normalised with ImageNet's mean and standard deviation.

        Returns:
            (N, 1 + L, D): class token, then patches, after the final norm.
        """
        return self.forward_features(images)

    def class_attention(self, images: Tensor) -> Tensor:
        """Where the class token looks in the last block, the mean over the heads. The fused kernel keeps no weights,
        so they are computed here.

        Args:
            images: as for `features`.

        Returns:
            (N, L), from 0 to 1; what a row lacks of 1 is on the class token itself.
        """
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(images))))
        x = self.blocks[:-1](x)
        last: Any = self.blocks[-1]
        attention = last.attn
        qkv = attention.qkv(last.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, 1 + L, D / heads)
        query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
        weights = (attention.scale * query @ key.transpose(-2, -1)).softmax(-1)  # (N, heads, 1, 1 + L)
        return weights[:, :, 0, 1:].mean(1)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """The same as `features`."""
        return self.features(images)


def _init_parameters(vit: ViT) -> None:
    """As the official fine-tuning code: truncated normal of std 0.02 (timm draws the class token with 1e-6);
    the patch convolution keeps PyTorch's default."""
    nn.init.trunc_normal_(vit.cls_token, std=0.02)
    nn.init.trunc_normal_(vit.pos_embed, std=0.02)
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def create_encoder(
    name: str,
    img_size: tuple[int, int] = (256, 128),
    weights: str | Path | None = None,
    source: str = "auto",
    drop_path: float = 0.0,
    **options: Any,
) -> ViT:
    """Builds an encoder by name, with pre-trained weights if a file or a name of one is given.

    Args:
        name: `vit_tiny`, `vit_small`, `vit_base`, `vit_large` or `vit_huge`.
        img_size: height and width in pixels.
        weights, source, options: see `hap.models.checkpoint.load_weights`; the options are `entry`, `prefix`,
            `grid`, `sha256` and `partial`.
        drop_path: stochastic-depth rate of the last block.

    Example:
        >>> encoder = create_encoder("vit_base", weights="timm:vit_base_patch16_224.mae")
        >>> tokens = encoder(images)  # (N, 3, 256, 128) -> (N, 1 + 128, 768)
    """
    sizes = {path.stem: path for path in sorted((CONF_DIR / "model").glob("vit_*.yaml"))}
    if name not in sizes:
        raise HapError(f"there is no encoder {name!r}: choose one of {', '.join(sizes)}")
    encoder = ViT(img_size=img_size, drop_path=drop_path, **OmegaConf.load(sizes[name]))  # type: ignore[arg-type]
    if weights is not None:
        log.info("%s", load_weights(encoder, weights, source, **options))
    return encoder
