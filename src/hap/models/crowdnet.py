"""3D pose and shape from an image and the 2D joints of a person in it (3DCrowdNet, Choi et al. 2022, on a ViT, as in
HAP's official code).

Legend: N people, D width of the encoder, J = 15 joints of the graph.
"""

import itertools
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hap.body.rotations import from_6d
from hap.errors import HapError
from hap.models.checkpoint import dense
from hap.models.pose import PaddedViT
from hap.models.pose3d import BodyOutput, SixD, VPoser, vposer_state
from hap.models.weight_state import State

CELLS = 8  # of each side of the volume in which joints are found
MAP = 64  # units of the crop's side in which 2D joints are given
SIGMA = 2.5  # of a joint's map, in these units
NUM_INPUT, NUM_GRAPH = 30, 15
FOCAL, PIXELS, BODY_SIZE = 5000.0, 256, 2.5  # of the crop's camera; the crop shows about 2.5 m
DEPTH = math.sqrt(FOCAL * FOCAL * BODY_SIZE * BODY_SIZE / (PIXELS * PIXELS))  # 48.828125 m, the farthest
EDGES = (
    (0, 1), (1, 3), (3, 5), (0, 2), (2, 4), (4, 6), (0, 7), (7, 8), (7, 9), (9, 11), (11, 13), (7, 10), (10, 12),
    (12, 14), (1, 2), (3, 4), (5, 6), (9, 10), (11, 12), (13, 14),
)  # fmt: skip


def joint_maps(joints: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A Gaussian for each joint, read off on a coarser grid.

    Args:
        joints: (N, 30, 2), x, y in 64ths of the crop.
        mask: (N, 30), 0 for an empty map.
        grid: rows and columns; the values are those at every so manieth row and column of a map of 64 x 64.

    Returns:
        (N, 30, *grid).
    """
    rows, columns = (torch.arange(n, device=joints.device) * (MAP / n) for n in grid)
    x, y = joints[..., 0, None] - columns, joints[..., 1, None] - rows
    x, y = (-0.5 * (t / SIGMA).square() for t in (x, y))
    return (x[:, :, None] + y[..., None]).exp() * mask[..., None, None]


def adjacency() -> Tensor:
    """(J, J), of the skeleton with its left-right links, normalised by the degrees."""
    a = torch.eye(NUM_GRAPH)
    for i, j in EDGES:
        a[i, j] = a[j, i] = 1
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale


class GraphBlock(nn.Module):
    """A layer and a batch norm for each joint, then the mean over neighbours.

    Args:
        dim_in, dim_out: features of a joint.
    """

    adjacency: Tensor

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(NUM_GRAPH, dim_out, dim_in))
        self.bias = nn.Parameter(torch.zeros(NUM_GRAPH, dim_out))
        self.norm = nn.BatchNorm1d(NUM_GRAPH * dim_out)
        self.register_buffer("adjacency", adjacency(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, J, dim_in) -> (N, J, dim_out)."""
        x = torch.einsum("nji,joi->njo", x, self.weight) + self.bias
        x = self.norm(x.flatten(1)).unflatten(1, (NUM_GRAPH, -1))
        return F.relu(self.adjacency @ x)


class RotationNet(nn.Module):
    """From features at the joints to the parameters of the body.

    Args:
        dim: of the features.
        graph_dim: of a joint within.
    """

    def __init__(self, dim: int, graph_dim: int):
        super().__init__()
        self.first = GraphBlock(dim + 4, graph_dim)
        self.pairs = nn.ModuleList(
            nn.Sequential(GraphBlock(graph_dim, graph_dim), GraphBlock(graph_dim, graph_dim))
            for _ in range(4)
        )
        width = NUM_GRAPH * graph_dim
        self.root_pose_out, self.shape_out, self.cam_out = (nn.Linear(width, n) for n in (6, 10, 3))
        for layer in (self.root_pose_out, self.shape_out, self.cam_out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features with place and score (N, J, dim + 4) -> (N, J x graph_dim)."""
        x = self.first(x)
        for pair in self.pairs:
            x = x + pair(x)
        return x.flatten(1)


class CrowdNet(PaddedViT):
    """
    Args:
        feature_dim: channels that the heads see.
        graph_dim: of a joint in the graph network.
        vposer: file of VPoser v1, by which 32 numbers become a pose, see `VPoser`; None: `SixD`.
        vposer_dropout: of its hidden layer in training.
        vposer_neurons: of its hidden layers.
        adapter_trainable: the layer from the encoder to the heads learns; the official code leaves it as it was drawn.
        cell_centres: a cell of the volume is where its middle is; in the official code the last eighth of every side of
            the crop cannot be reached.
        encoder: arguments of `PaddedViT`; the grid of patches has to be 16 x 16.
    """

    needs_joints = True
    depth_eps = 1e-4  # metres, added to depths in the projection

    def __init__(
        self,
        *,
        vposer: str | None = None,
        vposer_dropout: float = 0.0,
        vposer_neurons: int = 512,
        feature_dim: int = 2048,
        graph_dim: int = 128,
        adapter_trainable: bool = True,
        cell_centres: bool = False,
        **encoder: Any,
    ):
        super().__init__(**encoder)
        if self.grid != (2 * CELLS, 2 * CELLS):
            raise HapError(
                f"img_size and patch_size make {self.grid[0]} x {self.grid[1]} patches, the network is made for 16 x 16"
            )
        fuse = nn.Conv2d(self.embed_dim + NUM_INPUT, self.embed_dim, 3, padding=1)
        self.pose2feat = nn.Sequential(fuse, nn.BatchNorm2d(self.embed_dim), nn.ReLU())
        self.adapter = nn.Conv2d(self.embed_dim, feature_dim, 1).requires_grad_(adapter_trainable)
        self.position_net = nn.Conv2d(feature_dim, NUM_GRAPH * CELLS, 1)
        for layer in (fuse, self.position_net):
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.rotation_net = RotationNet(feature_dim, graph_dim)
        width = NUM_GRAPH * graph_dim
        self.pose_decoder = (
            SixD(width) if vposer is None else VPoser(width, vposer, vposer_neurons, vposer_dropout)
        )
        self.cell_centres = cell_centres

    def forward(self, images: Tensor, joints: Tensor, mask: Tensor) -> BodyOutput:  # type: ignore[override]
        """
        Args:
            images: (N, 3, H, W), square.
            joints: (N, 30, 2), x, y in 64ths of the crop.
            mask: (N, 30), which are there.
        """
        feature = self.features_of(images, joints, mask)
        coord, score = self.positions(feature)
        place = coord.detach()
        at = place[:, :, None, :2] / (CELLS - 1) * 2 - 1
        at = F.grid_sample(feature.float(), at, align_corners=True).squeeze(3)
        x = torch.cat([at.mT, place, score.detach()], dim=2)
        x = self.rotation_net(x)
        heads = self.rotation_net
        root = from_6d(heads.root_pose_out(x).float(), "columns_interleaved")
        body = self.pose_decoder(x)
        hands = torch.eye(3, device=x.device).expand(x.shape[0], 2, 3, 3)
        camera = heads.cam_out(x).float()
        translation = torch.cat([camera[:, :2], DEPTH * camera[:, 2:].sigmoid()], dim=1)
        rotations = torch.cat([root[:, None], body, hands], dim=1)
        return BodyOutput(rotations, heads.shape_out(x).float(), translation, coord, score)

    def features_of(self, images: Tensor, joints: Tensor, mask: Tensor) -> Tensor:
        """What the heads see, (N, feature_dim, 8, 8). The joints join the image after the first block."""
        x = self.to_map(self.run(self.embed(images), slice(1)))
        x = self.pose2feat(torch.cat([x, joint_maps(joints, mask, self.grid).to(x.dtype)], dim=1))
        x = self.to_map(self.last_norm(self.run(x.flatten(2).mT, slice(1, None))))
        return self.adapter(x[:, :, ::2, ::2])

    def positions(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Expected places of the joints (N, J, 3), x, y, z in cells, and how much lies there (N, J, 1)."""
        logits = self.position_net(feature).float().unflatten(1, (NUM_GRAPH, CELLS))  # (N, J, z, y, x)
        share = logits.flatten(2).softmax(2).unflatten(2, (CELLS, CELLS, CELLS))
        cells = torch.arange(CELLS, device=share.device, dtype=share.dtype)
        coord = torch.stack([(share.sum(axes) * cells).sum(2) for axes in ((2, 3), (2, 4), (3, 4))], dim=2)
        at = coord.flatten(0, 1)[:, None, None, None] / (CELLS - 1) * 2 - 1
        score = F.grid_sample(share.flatten(0, 1)[:, None], at, align_corners=True)
        return coord, score.reshape(*coord.shape[:2], 1)

    def to_units(self, coord: Tensor) -> Tensor:
        """Cells -> 64ths of the crop."""
        return (coord + 0.5 * self.cell_centres) * (MAP / CELLS)

    def adapted(self, state: State, partial: bool) -> tuple[State, list[str]]:
        """Of an encoder, of a 2D-pose model, or of the official code's whole network."""
        state, notes = super().adapted(state, partial)
        notes += self.without_experts(state)
        state = {name: value for name, value in state.items() if not name.startswith("heads.")}
        if any(".fcbn_list." in name for name in state):
            state = _from_official(state)
        return state, notes


# Names of the official code that are others here.
RENAMED = {
    r"^pose2feat\.conv\.": "pose2feat.",
    r"^vit_conv_layer\.": "adapter.",
    r"^position_net\.conv\.0\.": "position_net.",
    r"^rotation_net\.pose_out\.0\.": "pose_decoder.latent.",
    r"^(rotation_net\.\w+_out)\.0\.": r"\1.",
}


def _from_official(state: State) -> State:
    """Names of the official code -> ours; the layers of the 15 joints become one. The body model and the encoder of
    VPoser are left out."""
    ours: State = {}
    for name, value in state.items():
        if name.startswith(("human_model_layer.", "vposer.")):
            continue
        for pattern, named in RENAMED.items():
            name = re.sub(pattern, named, name)
        ours[name] = value
    for name, layer in _official_blocks().items():
        for place, part in (("0.weight", "weight"), ("0.bias", "bias"), *_norm_parts()):
            values = [ours.pop(f"{name}.fcbn_list.{j}.{place}", None) for j in range(NUM_GRAPH)]
            if all(value is not None for value in values):
                stacked = _stacked(f"{name}.fcbn_list", values)
                if part.startswith("norm."):  # a counter of batches is the same for all
                    stacked = stacked.flatten() if stacked.ndim > 1 else stacked[0]
                ours[f"{layer}.{part}"] = stacked
    if any(name.startswith("vposer.") for name in state):
        ours |= {f"pose_decoder.{name}": value for name, value in vposer_state(state).items()}
    return ours


def _norm_parts() -> list[tuple[str, str]]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [(f"1.{part}", f"norm.{part}") for part in parts]


def _official_blocks() -> dict[str, str]:
    """Names of the official graph blocks, and ours."""
    start = "rotation_net.graph_block"
    pairs = itertools.product(range(4), range(2))
    return {f"{start}.0": "rotation_net.first"} | {
        f"{start}.{i + 1}.graph_block{k + 1}": f"rotation_net.pairs.{i}.{k}" for i, k in pairs
    }


def _stacked(name: str, values: list[Any]) -> Tensor:
    tensors = [dense(name, value, torch.empty(0, dtype=torch.long)) for value in values]  # of any type
    if len({tensor.shape for tensor in tensors}) > 1:
        raise HapError(f"{name} has layers of several sizes")
    return torch.stack(tensors)
