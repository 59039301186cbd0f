"""ViT with heat-map heads: 2D pose of one data set, or of several by one encoder with experts (ViTPose, ViTPose+).

Legend: N images, K joints, D width of the encoder, h x w grid of patches.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hap.errors import HapError
from hap.models.checkpoint import dense
from hap.models.vit import LayerNorm, ViT
from hap.models.weight_state import State

PADDING = 2  # pixels around the image; the patches lie so much further up and left than in pre-training
HEATMAP_STRIDE = 4


class ExpertMlp(nn.Module):
    """MLP of a block whose last outputs are those of a data set's own layer.

    Args:
        mlp: whose sizes and first layer it takes over.
        num_experts: data sets.
        expert_dim: outputs of an expert; the first D - expert_dim are shared.
    """

    def __init__(self, mlp: Mlp, num_experts: int, expert_dim: int):
        super().__init__()
        dim, hidden = mlp.fc2.weight.shape
        self.fc1, self.act = mlp.fc1, mlp.act
        self.fc2 = nn.Linear(hidden, dim - expert_dim)
        self.experts = nn.ModuleList(nn.Linear(hidden, expert_dim) for _ in range(num_experts))
        for layer in (self.fc2, *self.experts):
            nn.init.trunc_normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, source: Tensor | int) -> Tensor:
        """x: (N, L, D); source: of all images, or (N,). All experts are computed for all images, so that each has a
        gradient on every rank."""
        hidden = self.act(self.fc1(x))
        if isinstance(source, int):
            own = self.experts[source](hidden)
        else:
            own = torch.stack(
                [expert(hidden) * (source == e)[:, None, None] for e, expert in enumerate(self.experts)]
            ).sum(0)
        return torch.cat([self.fc2(hidden), own], dim=-1)


class HeatmapHead(nn.Module):
    """Transposed convolutions from the grid of patches to a quarter of the image, two for patches of 16 pixels, and one
    channel for each joint.

    Args:
        dim: D.
        num_joints: K.
        head_dim: channels in between.
        patch_size: 8 or 16.
    """

    def __init__(self, dim: int, num_joints: int, head_dim: int, patch_size: int):
        super().__init__()
        layers: list[nn.Module] = []
        while patch_size > HEATMAP_STRIDE:
            layers += [
                nn.ConvTranspose2d(dim, head_dim, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(head_dim),
                nn.ReLU(inplace=True),
            ]
            dim, patch_size = head_dim, patch_size // 2
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(dim, num_joints, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, K, H / 4, W / 4), float32."""
        return self.final_layer(self.deconv_layers(x)).float()


class PaddedViT(ViT):
    """ViT whose patches begin 2 pixels outside the image, without a class token: the position of the class token is
    added to every patch. A norm of its own ends it, as the encoder's final norm is not taken from pre-training.

    Args:
        load_final_norm: begin with the final norm of pre-trained weights; the official code does not, as its names
            differ.
        encoder: arguments of `ViT`.
    """

    blocks: Any  # of timm; nn.Module's attributes are not typed

    def __init__(self, *, load_final_norm: bool = False, **encoder: Any):
        super().__init__(**encoder)
        self.load_final_norm = load_final_norm
        self.patch_embed.proj.padding = (PADDING, PADDING)
        del self.cls_token, self.norm
        self.last_norm = LayerNorm(self.embed_dim)

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), normalised -> tokens (N, L, D), row by row."""
        return self.patch_embed(images) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]

    def run(self, x: Tensor, blocks: slice = slice(None), source: Tensor | int = 0) -> Tensor:
        """Tokens (N, L, D) through some of the blocks."""
        for block in self.blocks[blocks]:
            if self.grad_checkpointing and self.training:
                x = checkpoint(self._block, block, x, source, use_reentrant=False)
            else:
                x = self._block(block, x, source)
        return x

    def _block(self, block: Any, x: Tensor, source: Tensor | int) -> Tensor:
        return block(x)

    def to_map(self, x: Tensor) -> Tensor:
        """Tokens (N, L, D) -> (N, D, h, w)."""
        return x.mT.unflatten(2, self.grid)

    def adapted(self, state: State, partial: bool) -> tuple[State, list[str]]:
        """Weights of an encoder in the names of this one, and what is to be known of them.

        Args:
            partial: whether what does not fit is left out, not refused.
        """
        state, notes = dict(state), []
        final_norm = {f"last_{name}": state.pop(name) for name in list(state) if name.startswith("norm.")}
        if self.load_final_norm:
            state |= final_norm
        elif final_norm:
            notes.append(
                "its final norm is not taken, as in the official code; task.model.load_final_norm=true takes it"
            )
        state.pop("cls_token", None)
        return state, notes

    def without_experts(self, state: State) -> list[str]:
        """Take the experts out of a state dict of ViTPose+ that was split; what is to be known of it.

        Raises:
            HapError: it was not.
        """
        experts = [name for name in state if ".mlp.experts." in name]
        if not experts:
            return []
        if _rows(state, "blocks.0.mlp.fc2.bias") != self.embed_dim:
            raise HapError(
                "it is one encoder for several data sets: split it first (python scripts/split_pose2d.py FILE), "
                "or train with task=pose2d_multi"
            )
        for name in experts:
            del state[name]
        return [f"{len(experts)} parameters of experts that its own last layers replace are left out"]


class PoseViT(PaddedViT):
    """Padded ViT with a head of heat maps for each data set.

    Args:
        num_joints: K, channels of every head.
        num_sources: data sets, each with a head, and where there are several with an expert in every block.
        head_dim: channels of the transposed convolutions.
        encoder: arguments of `PaddedViT`.
    """

    heads: Any

    def __init__(self, *, num_joints: int, num_sources: int = 1, head_dim: int = 256, **encoder: Any):
        super().__init__(**encoder)
        patch_size = self.patch_embed.patch_size[0]
        if patch_size not in (8, 16):
            raise HapError(
                f"patch_size={patch_size}: heat maps of a quarter of the image need patches of 8 or 16"
            )
        self.num_sources = num_sources
        if num_sources > 1:
            for block in self.blocks:
                block.mlp = ExpertMlp(block.mlp, num_sources, self.embed_dim // 4)
        self.heads = nn.ModuleList(
            HeatmapHead(self.embed_dim, num_joints, head_dim, patch_size) for _ in range(num_sources)
        )

    def feature_map(self, images: Tensor, source: Tensor | int) -> Tensor:
        """
        Args:
            images: (N, 3, H, W), normalised.
            source: data set of all images, or of each (N,).

        Returns:
            (N, D, h, w), after the norm.
        """
        return self.to_map(self.last_norm(self.run(self.embed(images), source=source)))

    def _block(self, block: Any, x: Tensor, source: Tensor | int) -> Tensor:
        if self.num_sources == 1:
            return block(x)
        x = x + block.drop_path1(block.attn(block.norm1(x)))
        return x + block.drop_path2(block.mlp(block.norm2(x), source))

    def forward(self, images: Tensor, source: Tensor | int) -> list[Tensor]:  # type: ignore[override]
        """
        Args:
            images: (N, 3, H, W), normalised.
            source: data set of each image (N,): then every head sees every image; or one for all: its head alone.

        Returns:
            heat maps (N, K, H / 4, W / 4), float32, one tensor for each head.
        """
        x = self.feature_map(images, source)
        heads = [self.heads[source]] if isinstance(source, int) else self.heads
        return [head(x) for head in heads]

    def adapted(self, state: State, partial: bool) -> tuple[State, list[str]]:
        """Weights of an encoder, or of a pose model, in the names and shapes of this one; and what is to be known.

        Experts begin as the last rows of the encoder's layer, all alike.

        Args:
            partial: whether heads of other joints are left out, not refused.

        Raises:
            HapError: heads of other joints, or several experts where the model has one.
        """
        state, notes = super().adapted(state, partial)
        notes += self._check_heads(state, partial)
        experts = any(".mlp.experts." in name for name in state)
        if self.num_sources == 1:
            notes += self.without_experts(state)
        elif not experts:
            self._give_experts(state)
        return state, notes

    def _check_heads(self, state: State, partial: bool) -> list[str]:
        joints = self.heads[0].final_layer.out_channels
        notes = []
        for name in [name for name in state if name.endswith("final_layer.weight")]:
            if (found := _rows(state, name)) in (None, joints):
                continue
            if not partial:
                raise HapError(
                    f"{name} puts out {found} joints, the model {joints}: weights_partial=true leaves its last layer "
                    "out, to train a new one"
                )
            notes.append(f"{name} is of {found} joints and left out")
            for part in ("weight", "bias"):
                state.pop(f"{name.removesuffix('weight')}{part}", None)
        return notes

    def _give_experts(self, state: State) -> None:
        """Rows of a plain encoder's last layers: shared, then those that every expert begins with."""
        for i, block in enumerate(self.blocks):
            shared = block.mlp.fc2.out_features
            for part, wanted in block.mlp.fc2.named_parameters():
                name = f"blocks.{i}.mlp.fc2.{part}"
                if _rows(state, name) != self.embed_dim:
                    continue  # not of this encoder, which is told where all names are compared
                rows = dense(name, state[name], wanted)
                state[name] = rows[:shared]
                state |= {
                    f"blocks.{i}.mlp.experts.{e}.{part}": rows[shared:] for e in range(self.num_sources)
                }


def _rows(state: State, name: str) -> int | None:
    """Length of a parameter's first axis; None where it is not there or has none."""
    shape = getattr(state.get(name), "shape", ())
    return shape[0] if shape else None


def split_experts(state: Mapping[str, Tensor], source: int, num_joints: int) -> dict[str, Tensor]:
    """State dict of the plain model that is one data set's part of a model for several (ViTPose+).

    Args:
        state: of a `PoseViT` with several sources.
        source: which of them.
        num_joints: channels that its head keeps, the first ones.
    """
    plain, head, own = {}, f"heads.{source}.", f".mlp.experts.{source}."
    for name, value in state.items():
        if name.startswith(head):
            cut = value[:num_joints] if ".final_layer." in name else value
            plain["heads.0." + name.removeprefix(head)] = cut.clone()
        elif ".mlp.fc2." in name:
            expert = state[name.replace(".mlp.fc2.", own)]
            plain[name] = torch.cat([value, expert])
        elif not name.startswith("heads.") and ".mlp.experts." not in name:
            plain[name] = value.clone()
    return plain
