"""Linear blend skinning: parameters of people -> their meshes (SMPL, Loper et al. 2015).

Legend: N people, V vertices, J = 24 joints.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hap.body.arrays import GENDERS, NUM_BETAS, Bodies, BodyArrays
from hap.errors import HapError


class Mesh(NamedTuple):
    """`vertices` (N, V, 3) and posed `joints` (N, J, 3), float32, metres."""

    vertices: Tensor
    joints: Tensor


class BodyModel(nn.Module):
    """Always float32, also under autocast: at 24 m half precision knows depths to 16 mm. No parameters, and nothing of
    it is saved: the model is its owners' to give away.

    Coordinates are apart, (N, 3, V), within: skinning is then sums of long rows.
    """

    template: Tensor
    moves: Tensor
    weights: Tensor
    rest: Tensor
    rest_moves: Tensor

    def __init__(self, arrays: BodyArrays):
        super().__init__()
        count = len(arrays.v_template)
        self.parents = arrays.parents
        self.levels = _levels(arrays.parents)
        moves = torch.cat([_tensor(arrays.shapedirs), _tensor(arrays.posedirs)], dim=2)  # (V, 3, 10 + 207)
        mean, moved = arrays.rest_joints
        buffers = {
            "template": _tensor(arrays.v_template).T.flatten(),
            "moves": moves.permute(2, 1, 0).reshape(-1, 3 * count).contiguous(),
            "weights": _tensor(arrays.weights).T.contiguous(),
            "rest": _tensor(mean),
            "rest_moves": _tensor(moved).flatten(0, 1),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, rotations: Tensor, betas: Tensor, trans: Tensor | None = None) -> Mesh:
        """
        Args:
            rotations: (N, J, 3, 3), of each joint relative to its parent. The root turns about its own joint.
            betas: (N, 10).
            trans: (N, 3), added.
        """
        if betas.shape[-1] != NUM_BETAS:
            raise HapError(f"betas have {betas.shape[-1]} numbers, not {NUM_BETAS}")
        with torch.autocast(rotations.device.type, enabled=False):
            rotations, betas = rotations.float(), betas.float()
            eye = torch.eye(3, device=rotations.device)
            features = (rotations[:, 1:] - eye).flatten(1)
            moves = torch.cat([betas, features], dim=1)
            points = torch.addmm(self.template, moves, self.moves).unflatten(1, (3, -1))  # (N, 3, V)
            rest = self.rest + (betas @ self.rest_moves.T).unflatten(1, (-1, 3))  # (N, J, 3)
            turned, joints = self._chain(rotations, rest)
            shift = joints - (turned @ rest[..., None]).squeeze(-1)
            blended = (turned.flatten(2).mT @ self.weights).unflatten(1, (3, 3))  # (N, 3, 3, V)
            vertices = (blended * points[:, None]).sum(2) + shift.mT @ self.weights
            if trans is not None:
                vertices, joints = vertices + trans.float()[..., None], joints + trans.float()[:, None]
            return Mesh(vertices.mT, joints)

    def _chain(self, rotations: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations in space (N, J, 3, 3) and places (N, J, 3) of all joints, level by level of the tree."""
        offsets = rest[:, 1:] - rest[:, list(self.parents[1:])]
        turned, places = [rotations[:, :1]], [rest[:, :1]]
        above = torch.zeros(1, dtype=torch.long)  # where in the level before
        for joints, parents in self.levels:
            above = parents.to(rotations.device)
            rotation = turned[-1][:, above]
            offset = offsets[:, joints[0] - 1 : joints[-1]]
            places.append(places[-1][:, above] + (rotation @ offset[..., None]).squeeze(-1))
            turned.append(rotation @ rotations[:, joints[0] : joints[-1] + 1])
        return torch.cat(turned, dim=1), torch.cat(places, dim=1)


def _levels(parents: tuple[int, ...]) -> list[tuple[range, Tensor]]:
    """Runs of joints whose parents are all in the run before, and where there. SMPL numbers its joints by levels."""
    levels, before = [], range(1)
    while before.stop < len(parents):
        stop = before.stop
        while stop < len(parents) and parents[stop] in before:
            stop += 1
        joints = range(before.stop, stop)
        if not joints:
            raise HapError(
                f"joint {before.stop} hangs on joint {parents[before.stop]}, not on the level above"
            )
        levels.append((joints, torch.tensor([parents[j] - before.start for j in joints])))
        before = joints
    return levels


def _tensor(array: object) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


class GenderedBody(nn.Module):
    """The bodies of a set, each for its people.

    Attributes:
        neutral, male, female: the latter two may be None.
        joints30, h36m: (30, V) and (17, V), regressors of joints of posed meshes; the latter may be None.
    """

    neutral: BodyModel
    joints30: Tensor
    h36m: Tensor | None

    def __init__(self, bodies: Bodies):
        super().__init__()
        self.bodies = bodies
        for gender in GENDERS:
            arrays = getattr(bodies, gender)
            self.add_module(gender, None if arrays is None else BodyModel(arrays))
        self.register_buffer("joints30", _tensor(bodies.joints30), persistent=False)
        h36m = None if bodies.h36m is None else _tensor(bodies.h36m)
        self.register_buffer("h36m", h36m, persistent=False)

    def forward(self, rotations: Tensor, betas: Tensor, trans: Tensor, gender: Tensor) -> Tensor:
        """Vertices (N, V, 3); gender (N,), places in `GENDERS`, the rest as of `BodyModel`.

        Raises:
            HapError: there is no body of somebody's gender.
        """
        result = rotations.new_empty(len(rotations), 3, len(self.bodies.neutral.v_template))
        for number in gender.unique().tolist():
            self.bodies.of(number)
            mine = gender == number
            mesh = getattr(self, GENDERS[number])(rotations[mine], betas[mine], trans[mine])
            result[mine] = mesh.vertices.mT
        return result.mT
