"""3D pose and shape from an image alone: a query looks at the patches of a ViT (HMR 2.0, Goel et al. 2023, without its
adversary).

Legend: N people, L patches, D width of the encoder, Q width of the query.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hap.body.rotations import Layout, from_6d
from hap.models.pose import PaddedViT
from hap.models.pose3d import BodyOutput, read_mean_parameters
from hap.models.weight_state import State

FOCAL, PIXELS = 5000.0, 256  # of the crop's camera
HEAD_DIM = 64


class Attention(nn.Module):
    """Of queries (N, 1, Q) to a context (N, L, C), with a norm of the queries before, added to them.

    Args:
        dim: Q.
        context_dim: C; None: the queries are their own.
        num_heads: of 64 channels each.
    """

    def __init__(self, dim: int, context_dim: int | None, num_heads: int):
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * HEAD_DIM
        self.own = context_dim is None
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(dim if context_dim is None else context_dim, 2 * inner, bias=False)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(N, 1, Q), (N, L, C) -> (N, 1, Q)."""
        normed = self.norm(x)
        keys = self.kv(normed if self.own else context).chunk(2, dim=-1)
        q, k, v = (
            t.unflatten(2, (self.num_heads, HEAD_DIM)).transpose(1, 2) for t in (self.q(normed), *keys)
        )
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention of the query to itself, to the patches, and an MLP; arguments of `Decoder`."""

    def __init__(self, dim: int, context_dim: int, num_heads: int):
        super().__init__()
        self.own = Attention(dim, None, num_heads)
        self.other = Attention(dim, context_dim, num_heads)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(N, 1, Q), (N, L, D) -> (N, 1, Q)."""
        x = self.other(self.own(x, x), context)
        return x + self.mlp(x)


class Decoder(nn.Module):
    """What is changed of the mean person.

    Args:
        dim: Q.
        context_dim: D.
        depth: layers.
        num_heads: of the attention.
    """

    def __init__(self, dim: int, context_dim: int, depth: int, num_heads: int):
        super().__init__()
        # The query is what a layer makes of the number 0, and its position, as in HMR 2.0.
        self.token = nn.Linear(1, dim)
        self.position = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(Layer(dim, context_dim, num_heads) for _ in range(depth))
        self.pose, self.betas, self.camera = nn.Linear(dim, 144), nn.Linear(dim, 10), nn.Linear(dim, 3)
        for layer in (self.pose, self.betas, self.camera):  # begins near the mean
            nn.init.xavier_uniform_(layer.weight, gain=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L, D) -> changes of pose (N, 144), betas (N, 10) and camera (N, 3)."""
        x = self.token(context.new_zeros(context.shape[0], 1, 1)) + self.position
        for layer in self.layers:
            x = layer(x, context)
        x = x[:, 0]
        return self.pose(x).float(), self.betas(x).float(), self.camera(x).float()


class Hmr2(PaddedViT):
    """
    Args:
        decoder_dim, decoder_depth, decoder_heads: sizes of the decoder.
        mean_params: an .npz with `pose`, `shape`, `cam`, to which the decoder's changes are added. None: somebody who
            faces the camera in the rest pose of the body.
        mean_layout: of the pose in it, see `hap.body.rotations.Layout`.
        encoder: arguments of `PaddedViT`. The columns of its image are the middle ones of the square crop.
    """

    needs_joints = False
    depth_eps = 0.0
    mean_pose: Tensor
    mean_betas: Tensor
    mean_camera: Tensor

    def __init__(
        self,
        *,
        decoder_dim: int = 1024,
        decoder_depth: int = 6,
        decoder_heads: int = 8,
        mean_params: str | None = None,
        mean_layout: Layout = "columns_interleaved",
        **encoder: Any,
    ):
        super().__init__(**encoder)
        self.decoder = Decoder(decoder_dim, self.embed_dim, decoder_depth, decoder_heads)
        if mean_params is None:
            pose = torch.eye(3).repeat(24, 1, 1)
            pose[0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # y of a camera points down
            mean = {
                "pose": pose[..., :2].flatten(),
                "shape": torch.zeros(10),
                "cam": torch.tensor([0.9, 0, 0]),
            }
        else:
            mean = read_mean_parameters(mean_params, mean_layout)
        for name, key in (("mean_pose", "pose"), ("mean_betas", "shape"), ("mean_camera", "cam")):
            self.register_buffer(name, mean[key])

    def forward(self, images: Tensor, joints: Tensor, mask: Tensor) -> BodyOutput:  # type: ignore[override]
        """
        Args:
            images: (N, 3, H, H), normalised, square.
            joints, mask: not looked at.
        """
        pose, betas, camera = self.decoder(self.tokens(images))
        rotations = from_6d((self.mean_pose + pose).unflatten(1, (24, 6)), "columns_interleaved")
        scale, x_shift, y_shift = (self.mean_camera + camera).unbind(1)
        depth = 2 * FOCAL / (PIXELS * scale + 1e-9)
        translation = torch.stack([x_shift, y_shift, depth], dim=1)
        return BodyOutput(rotations, self.mean_betas + betas, translation)

    def tokens(self, images: Tensor) -> Tensor:
        """(N, L, D) of the middle columns of square images (N, 3, H, H), after the norm."""
        width = self.patch_embed.img_size[1]
        left = (images.shape[3] - width) // 2
        return self.last_norm(self.run(self.embed(images[..., left : left + width])))

    def adapted(self, state: State, partial: bool) -> tuple[State, list[str]]:
        """Of an encoder, or of a 2D-pose model."""
        state, notes = super().adapted(state, partial)
        notes += self.without_experts(state)
        return {name: value for name, value in state.items() if not name.startswith("heads.")}, notes
