"""Masked image modelling: HAP's pre-training model, one encoder pass for all masked views of a batch.

Legend: N images, V views, B = V x N, L = rows x cols patches, K visible, M = L - K removed, D and E widths of
encoder and decoder, p patch size, P = p x p x 3 values of a patch.
"""

from typing import NamedTuple

import torch
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from hap.errors import HapError
from hap.models.masking import Masking, num_visible, rank
from hap.models.vit import LayerNorm, ViT


class MIMOutput(NamedTuple):
    """What the pre-training losses need; the removed patches in the order of `masking.ids_removed`."""

    cls: Tensor  # (V, N, D) class tokens after the encoder's final norm
    pred: Tensor  # (V, N, M, P) predicted pixels of the removed patches
    target: Tensor  # (V, N, M, P) their true pixels
    masking: Masking  # over (V, N, L)


class MaskedAutoencoder(ViT):
    """Encoder on the visible patches, light decoder on all (MAE), for several masked views per image (HAP).

    The state dict has the official names and shapes (ViT-B: 111,820,800 values); the encoder's are timm's.
    Positions are fixed sine-cosine codes, stored but not trained.

    Args:
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of the decoder.
        mask_ratio: share of the patches that is removed.
        the others: see `ViT`.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.5,
        grad_checkpointing: bool = False,
    ):
        super().__init__(img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio)
        self.set_grad_checkpointing(grad_checkpointing)
        num_patches = self.patch_embed.num_patches
        if not 0 < num_visible(num_patches, mask_ratio) < num_patches:
            raise HapError(f"mask_ratio {mask_ratio} leaves none or all of the {num_patches} patches visible")
        self.mask_ratio = mask_ratio
        self.patch_size = patch_size

        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, decoder_embed_dim))
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        blocks = [
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)  # type: ignore[arg-type]
            for _ in range(decoder_depth)
        ]
        self.decoder_blocks = nn.Sequential(*blocks)
        self.decoder_norm = LayerNorm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size * patch_size * 3)
        self._init_pretraining()

    @torch.no_grad()
    def _init_pretraining(self) -> None:
        """As the official code: Xavier-uniform for all matrices, the patch convolution seen as one."""
        for pos_embed in (self.pos_embed, self.decoder_pos_embed):
            pos_embed.copy_(sincos_pos_embed(self.grid, pos_embed.shape[-1])).requires_grad_(False)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # (D, 3, p, p) -> (D, 3 * p * p)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """None by name: the official pre-training also decays the class and the mask token."""
        return set()

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """The part that fine-tuning starts from: a `ViT` of the same size loads it strictly."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(("decoder_", "mask_token"))
        }

    def forward(self, images: Tensor, scores: Tensor) -> MIMOutput:  # type: ignore[override]
        """
        Args:
            images: (N, 3, H, W) float, normalised with ImageNet's mean and standard deviation.
            scores: (N, V, L) masking scores of V views of each image (`hap.models.masking`).
        """
        if scores.shape[-1] != self.patch_embed.num_patches:
            raise HapError(
                f"masking scores for {scores.shape[-1]} patches, but the model has "
                f"{self.patch_embed.num_patches}: draw them on its grid {self.grid}"
            )
        masking = rank(scores.transpose(0, 1), self.mask_ratio)  # over (V, N, L)
        latent = self.encode(images, masking)  # (V, N, 1 + K, D)
        tokens = self.decode(latent, masking)  # (V, N, 1 + L, E)
        removed = tokens[:, :, 1 + masking.num_visible :]  # (V, N, M, E)
        pred = self.decoder_pred(self.decoder_norm(removed))  # (V, N, M, P)
        target = take_patches(self.patchify(images), masking.ids_removed)
        return MIMOutput(latent[:, :, 0], pred, target, masking)

    def encode(self, images: Tensor, masking: Masking) -> Tensor:
        """(N, 3, H, W) -> (V, N, 1 + K, D): class token and visible patches of every view, after the norm.

        The patches are embedded once for all views, and all views are one batch of V x N sequences.
        """
        x = self.patch_embed(images) + self.pos_embed[:, 1:]  # (N, L, D)
        x = take_patches(x, masking.ids_keep)  # (V, N, K, D)
        num_views, num_images = x.shape[:2]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(num_views, num_images, -1, -1)
        x = torch.cat([cls, x], dim=2)  # (V, N, 1 + K, D)
        x = self._run(self.blocks, x.flatten(0, 1))  # (B, 1 + K, D)
        return self.norm(x).unflatten(0, (num_views, num_images))

    def decode(self, latent: Tensor, masking: Masking) -> Tensor:
        """(V, N, 1 + K, D) -> (V, N, 1 + L, E): class token, visible and removed patches, before the norm.

        Attention does not know the order of its tokens, only their positions. So the tokens stay as ranked
        and the (constant) positions are shuffled; the official code unshuffles the tokens.
        """
        x = self.decoder_embed(latent)  # (V, N, 1 + K, E)
        mask_tokens = self.mask_token.expand(*masking.ids_removed.shape, -1)  # (V, N, M, E)
        x = torch.cat([x, mask_tokens], dim=2)  # (V, N, 1 + L, E)
        positions = F.pad(masking.ids_shuffle + 1, (1, 0))  # (V, N, 1 + L), the class token's is 0
        x = x + self.decoder_pos_embed[0][positions]
        return self._run(self.decoder_blocks, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _run(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq(blocks, x)
        return blocks(x)

    def patchify(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, P), each patch in the order (row, column, channel)."""
        (rows, cols), p = self.grid, self.patch_size
        x = images.reshape(-1, 3, rows, p, cols, p).permute(0, 2, 4, 3, 5, 1)  # (N, rows, cols, p, p, 3)
        return x.reshape(-1, rows * cols, p * p * 3)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(N, L, P) -> (N, 3, H, W), the inverse of `patchify`."""
        (rows, cols), p = self.grid, self.patch_size
        x = patches.reshape(-1, rows, cols, p, p, 3).permute(0, 5, 1, 3, 2, 4)  # (N, 3, rows, p, cols, p)
        return x.reshape(-1, 3, rows * p, cols * p)

    def paste(self, images: Tensor, removed: Tensor, masking: Masking) -> Tensor:
        """Pictures: (N, 3, H, W) images with the (V, N, M, P) pixels in place of their removed patches.

        Returns:
            (V, N, 3, H, W).
        """
        patches = self.patchify(images).expand(len(removed), -1, -1, -1)  # (V, N, L, P)
        ids = masking.ids_removed.unsqueeze(-1).expand_as(removed)  # (V, N, M, P)
        patches = patches.scatter(2, ids, removed.to(patches.dtype))
        return self.unpatchify(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])


def take_patches(x: Tensor, ids: Tensor) -> Tensor:
    """(N, L, C), (V, N, K) -> (V, N, K, C): the patches `ids` of each image, for every view."""
    x = x.expand(len(ids), -1, -1, -1)  # (V, N, L, C)
    return x.gather(2, ids.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))


def sincos_pos_embed(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D codes (1, 1 + L, dim): [sin(column), cos(column), sin(row), cos(row)], each dim / 4 wide, of
    wavelengths from 2 pi to 10000 x 2 pi patches; zeros for the class token."""
    if dim % 4:
        raise HapError(f"a 2-D sine-cosine position needs a width that is a multiple of 4, not {dim}")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, cols = (torch.arange(size, dtype=torch.float64).outer(omega) for size in grid)
    rows = rows[:, None].expand(-1, grid[1], -1)  # (rows, cols, dim / 4)
    cols = cols[None].expand(grid[0], -1, -1)
    codes = torch.cat([cols.sin(), cols.cos(), rows.sin(), rows.cos()], dim=-1).flatten(0, 1)  # (L, dim)
    return torch.cat([codes.new_zeros(1, dim), codes])[None].float()
