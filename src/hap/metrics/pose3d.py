"""How far predicted bodies are from the true ones, as 3DPW is scored.

Legend: N people in frames, V vertices, K points. Coordinates are metres, errors millimetres. Joints are the 17 that
Human3.6M's regressor gives of a posed mesh (`hap.body.joints.H36M`), and of these the 14 of `EVALUATED`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hap.body.arrays import GENDERS
from hap.body.joints import EVALUATED, H36M
from hap.errors import HapError
from hap.metrics.losses import sort_once

HIPS = (H36M.index("R_Hip"), H36M.index("L_Hip"))
MM = 1000


def similarity_align(points: Tensor, target: Tensor) -> Tensor:
    """Turned, scaled and moved to the least squared distance from the target, never mirrored (Umeyama, 1991).

    Points that are all one come to lie in the middle of the target; what is not finite becomes NaN.

    Args:
        points, target: (N, K, 3).

    Returns:
        float64 (N, K, 3).
    """
    points, target = points.double(), target.double()
    middle = target.mean(1, keepdim=True)
    points, target = points - points.mean(1, keepdim=True), target - middle
    products = (points.mT @ target).nan_to_num(0, 0, 0)  # LAPACK refuses others
    left, values, right = torch.linalg.svd(products)
    sign = torch.ones_like(values)
    sign[:, 2] = torch.where(torch.linalg.det(left @ right) < 0, -1, 1)
    turn = (left * sign[:, None]) @ right  # of rows
    spread = points.square().sum((1, 2))
    scale = torch.where(spread > 0, (values * sign).sum(1) / spread, 0)
    return scale[:, None, None] * (points @ turn) + middle


class BodyErrors(NamedTuple):
    """Of N people, mm, float64.

    joints: (N, 14), of the joints when both pelvises lie in the origin.
    aligned: (N, 14), of these after `similarity_align`.
    all17: (N,), the mean over all 17 joints, the pelvis among them.
    hips: (N,), that over the 14 when both middles of the hips lie in the origin.
    centred: (N,), that over the 14 when the true mesh was moved before its joints were taken, as the predicted one is.
    vertices: (N,), the mean over all vertices when both pelvises of the body model lie in the origin.
    """

    joints: Any
    aligned: Any
    all17: Any
    hips: Any
    centred: Any
    vertices: Any


def scores(errors: BodyErrors) -> dict[str, float]:
    """Means over the people, each of whom counts the same, of arrays. By NumPy, whose sums do not depend on the number
    of threads."""
    return {
        "MPJPE": float(errors.joints.mean()),
        "PA-MPJPE": float(errors.aligned.mean()),
        "MPVPE": float(errors.vertices.mean()),
        "MPJPE_17": float(errors.all17.mean()),
        "MPJPE_hips": float(errors.hips.mean()),
        "MPJPE_centred": float(errors.centred.mean()),
    }


class BodyMetric(Metric):
    """The errors over a split, each person in a frame counted once: the same on any number of processes and for any
    evaluation batch.

    Joints are taken from the predicted mesh when its pelvis lies in the origin, and from the true one where it is, in
    the camera. The rows of the public regressor do not quite sum to 1, so at 4 m that makes true joints up to 1.1 mm
    wrong; published numbers have it in them. `MPJPE_centred` has not.

    Args:
        center_first: whether to move the true mesh too before its joints are taken, for all scores.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    records: Any  # hap.data.pose3d.BodyRecords or None, set by the task
    index: list[Tensor]

    def __init__(self, center_first: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.center_first = center_first
        self.records = None
        for name in ("index", *BodyErrors._fields):
            self.add_state(name, [], dist_reduce_fx="cat")
        self._regressor: tuple[int, Tensor, Tensor] | None = None
        self._scored: tuple[np.ndarray, BodyErrors] | None = None

    def use(self, joints30: np.ndarray | Tensor, h36m: np.ndarray | Tensor | None) -> None:
        """Take joints by these regressors, of the neutral body also for gendered truth.

        Args:
            joints30: (30, V), its first row gives the pelvis of the body model.
            h36m: (17, V).

        Raises:
            HapError: there is none of Human3.6M's joints, or it is of another mesh.
        """
        if h36m is None:
            raise HapError(
                "J_regressor_h36m_correct.npy is missing in the folder of the body model: it gives the joints that "
                "are scored, and there is no evaluation without it"
            )
        own, others = (torch.as_tensor(rows).double().cpu() for rows in (joints30, h36m))
        if own.shape[1] != others.shape[1] or len(others) != len(H36M):
            raise HapError(
                f"J_regressor_h36m_correct.npy is {tuple(others.shape)}, for this body model it is "
                f"({len(H36M)}, {own.shape[1]})"
            )
        weights = torch.cat([others, own[:1]])
        columns = weights.any(0).nonzero().squeeze(1)  # some 150 of 6,890
        self._regressor = own.shape[1], columns, weights[:, columns]

    def update(self, predicted: Tensor, true: Tensor, index: Tensor) -> None:
        """Add N people.

        Args:
            predicted: (N, V, 3), anywhere in the frame of the camera.
            true: (N, V, 3), where it is in the frame of the camera.
            index: integers (N,), position in the records.
        """
        if self._regressor is None:
            raise RuntimeError("call use() first")
        vertices, columns, weights = self._regressor
        shape = (len(index), vertices, 3)
        if predicted.shape != shape or true.shape != shape:
            raise HapError(
                f"predicted meshes are {tuple(predicted.shape)}, true ones {tuple(true.shape)}, and the regressors "
                f"are for {shape}: take one body model for all"
            )
        errors = _errors(
            *(predicted.float(), true.float(), columns.to(predicted.device), weights.to(predicted.device)),
            self.center_first,
        )
        self.index.append(index.to(predicted.device))
        for name, values in errors._asdict().items():
            getattr(self, name).append(values)

    def compute(self) -> dict[str, float]:
        """Those of `scores`, and `people`, the person-frames that were scored; `missing` counts the records that were
        not run, if there are any.

        Raises:
            HapError: there are no people, or a mesh is not finite.
        """
        if len(self.index) == 0:
            raise HapError("no people to evaluate: none were run through the model")
        order, kept = sort_once(dim_zero_cat(self.index))
        rows = order[kept]
        states = (getattr(self, name) for name in ("index", *BodyErrors._fields))
        index, *columns = (dim_zero_cat(state)[rows].cpu().numpy() for state in states)
        errors = BodyErrors(*columns)
        if (wrong := ~np.isfinite(errors.vertices + errors.joints.sum(1))).any():
            first = int(index[wrong][0])
            name = f"number {first} (counted from 0)" if self.records is None else self.records[first].name
            raise HapError(
                f"{int(wrong.sum())} people have a predicted or true mesh that is not finite, the first is {name}: "
                "weights that training has broken give such, or parameters of a damaged file"
            )
        self._scored = index, errors
        result = scores(errors) | {"people": float(len(index))}
        if self.records is not None and (missing := len(self.records) - len(index)):
            result["missing"] = float(missing)
        return result

    def scored(self) -> tuple[np.ndarray, BodyErrors]:
        """What the last `compute` scored, of all processes: positions in the records (N,), in their order, and errors,
        NumPy arrays."""
        if self._scored is None:
            raise RuntimeError("call compute() first")
        return self._scored

    def per_joint(self) -> list[dict[str, str | int | float]]:
        """A row for each of the 14 joints, of the last `compute`."""
        errors = self.scored()[1]
        columns = zip(EVALUATED, errors.joints.mean(0).tolist(), errors.aligned.mean(0).tolist(), strict=True)
        return [{"joint": H36M[k], "MPJPE": plain, "PA-MPJPE": aligned} for k, plain, aligned in columns]

    def per_sequence(self) -> list[dict[str, str | int | float]]:
        """A row for each sequence of the records, in the order of their names, of the last `compute`: `sequence`,
        `people` and the scores. None where the records have no sequences."""
        index, errors = self.scored()
        if self.records is None or not len(self.records.sequence):
            return []
        names, which = np.unique([self.records.sequence[i] for i in index], return_inverse=True)
        rows: list[dict[str, str | int | float]] = []
        for number, name in enumerate(names.tolist()):
            mine = which == number
            row = scores(BodyErrors(*(values[mine] for values in errors)))
            rows.append({"sequence": name, "people": int(mine.sum()), **row})
        return rows

    def ranked(self, n: int, best: bool) -> list[tuple[int, float, float]]:
        """Those who were found best or worst by PA-MPJPE, of the last `compute`: position in the records, PA-MPJPE,
        MPJPE."""
        index, errors = self.scored()
        aligned, plain = errors.aligned.mean(1), errors.joints.mean(1)
        order = np.argsort(aligned, kind="stable")[:: 1 if best else -1][:n]
        return list(zip(*(column[order].tolist() for column in (index, aligned, plain)), strict=True))

    def protocol(self) -> dict[str, Any]:
        """What has to be known of the scores to compare them."""
        result: dict[str, Any] = {
            "joints": [H36M[k] for k in EVALUATED],
            "regressor": "J_regressor_h36m_correct.npy, on posed meshes, the true one "
            + ("moved to the origin" if self.center_first else "where it is in the camera"),
            "root": "MPJPE: Pelvis of that regressor; MPVPE: pelvis of the neutral body; each mesh has its own",
            "alignment": "PA-MPJPE: rotation, scale and translation of each person's joints, no reflection",
            "others": {
                "MPJPE_17": "all 17 joints of the regressor",
                "MPJPE_hips": "root is the middle of the hips",
                "MPJPE_centred": "the true mesh is moved to the origin before its joints are taken",
            },
        }
        if self.records is not None:
            counts = np.bincount(self.records.gender, minlength=len(GENDERS))
            bodies = [f"{gender} ({n:,})" for gender, n in zip(GENDERS, counts.tolist(), strict=True) if n]
            result["true_bodies"] = ", ".join(bodies)
        return result

    def reset(self) -> None:
        super().reset()
        self._scored = None


def _errors(
    predicted: Tensor, true: Tensor, columns: Tensor, weights: Tensor, center_first: bool
) -> BodyErrors:
    """See `BodyErrors`; tensors. Weights (18, C) of these vertices (C,): 17 joints, and the body model's pelvis."""
    own, real = (
        (vertices.mT.index_select(2, columns).double() @ weights.T).mT for vertices in (predicted, true)
    )
    (own, own_root), (real, real_root) = (joints.split([len(H36M), 1], dim=1) for joints in (own, real))
    sums = weights[: len(H36M)].sum(1, keepdim=True)
    own, centred = own - sums * own_root, real - sums * real_root  # of meshes that are moved
    real = centred if center_first else real
    used = list(EVALUATED)
    points, target, repaired = (joints - joints[:, :1] for joints in (own, real, centred))
    hip_points, hip_target = (joints - joints[:, HIPS].mean(1, keepdim=True) for joints in (own, real))
    plain = _apart(points, target)
    return BodyErrors(
        joints=plain[:, used],
        aligned=_apart(similarity_align(points[:, used], target[:, used]), target[:, used]),
        all17=plain.mean(1),
        hips=_apart(hip_points, hip_target)[:, used].mean(1),
        centred=_apart(points, repaired)[:, used].mean(1),
        vertices=_vertex_error(predicted, true, own_root.float(), real_root.float()),
    )


def _apart(points: Tensor, target: Tensor) -> Tensor:
    return MM * (points - target).norm(dim=-1)


def _vertex_error(predicted: Tensor, true: Tensor, own_root: Tensor, real_root: Tensor) -> Tensor:
    """(N,), from meshes (N, V, 3) and roots (N, 1, 3). The roots go first, for the digits of a mesh far away; one
    coordinate after the other, which is ten times as fast as a norm over three numbers."""
    x, y, z = (
        ((predicted[..., i] - own_root[..., i]) - (true[..., i] - real_root[..., i])).square()
        for i in range(3)
    )
    return MM * (x + y + z).sqrt().mean(1).double()
