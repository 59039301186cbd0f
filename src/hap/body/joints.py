"""Joint sets of 3D pose, by name: the 30 of the body model, those of data sets, and the 15 of the graph network."""

from collections.abc import Sequence

import numpy as np

SMPL30 = (
    "Pelvis", "L_Hip", "R_Hip", "Torso", "L_Knee", "R_Knee", "Spine", "L_Ankle", "R_Ankle", "Chest",
    "L_Toe", "R_Toe", "Neck", "L_Thorax", "R_Thorax", "Head", "L_Shoulder", "R_Shoulder", "L_Elbow", "R_Elbow",
    "L_Wrist", "R_Wrist", "L_Hand", "R_Hand", "Nose", "L_Eye", "R_Eye", "L_Ear", "R_Ear", "Head_top",
)  # fmt: skip
H36M = (
    "Pelvis", "R_Hip", "R_Knee", "R_Ankle", "L_Hip", "L_Knee", "L_Ankle", "Torso", "Neck", "Nose", "Head_top",
    "L_Shoulder", "L_Elbow", "L_Wrist", "R_Shoulder", "R_Elbow", "R_Wrist",
)  # fmt: skip
MUCO = (
    "Head_top", "Thorax", "R_Shoulder", "R_Elbow", "R_Wrist", "L_Shoulder", "L_Elbow", "L_Wrist", "R_Hip", "R_Knee",
    "R_Ankle", "L_Hip", "L_Knee", "L_Ankle", "Pelvis", "Spine", "Head", "R_Hand", "L_Hand", "R_Toe", "L_Toe",
)  # fmt: skip
COCO = (
    "Nose", "L_Eye", "R_Eye", "L_Ear", "R_Ear", "L_Shoulder", "R_Shoulder", "L_Elbow", "R_Elbow", "L_Wrist",
    "R_Wrist", "L_Hip", "R_Hip", "L_Knee", "R_Knee", "L_Ankle", "R_Ankle",
)  # fmt: skip
MPII = (
    "R_Ankle", "R_Knee", "R_Hip", "L_Hip", "L_Knee", "L_Ankle", "Pelvis", "Thorax", "Neck", "Head_top", "R_Wrist",
    "R_Elbow", "R_Shoulder", "L_Shoulder", "L_Elbow", "L_Wrist",
)  # fmt: skip
OPENPOSE = (
    "Nose", "Neck", "R_Shoulder", "R_Elbow", "R_Wrist", "L_Shoulder", "L_Elbow", "L_Wrist", "R_Hip", "R_Knee",
    "R_Ankle", "L_Hip", "L_Knee", "L_Ankle", "R_Eye", "L_Eye", "R_Ear", "L_Ear",
)  # fmt: skip
GRAPH15 = (
    "Pelvis", "L_Hip", "R_Hip", "L_Knee", "R_Knee", "L_Ankle", "R_Ankle", "Neck", "Head_top", "L_Shoulder",
    "R_Shoulder", "L_Elbow", "R_Elbow", "L_Wrist", "R_Wrist",
)  # fmt: skip
# What the scores are computed on: of the 17 joints that Human3.6M's regressor gives, all but the pelvis, the torso
# and the nose ("J14").
EVALUATED = (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16)
# Joints by which a fit is compared with MuCo's own.
MUCO_CHECKED = (
    "Pelvis", "R_Hip", "R_Knee", "R_Ankle", "L_Hip", "L_Knee", "L_Ankle", "Head_top", "L_Shoulder", "L_Elbow",
    "L_Wrist", "R_Shoulder", "R_Elbow", "R_Wrist",
)  # fmt: skip

# Places of the body's 30 joints in their mirror image; the first 24 are the model's own.
FLIP30 = np.array(
    [SMPL30.index({"L": "R", "R": "L"}[name[0]] + name[1:] if name[1] == "_" else name) for name in SMPL30]
)
LINKS30 = (
    (0, 1), (1, 4), (4, 7), (7, 10), (0, 2), (2, 5), (5, 8), (8, 11), (0, 3), (3, 6), (6, 9), (9, 14), (14, 17),
    (17, 19), (19, 21), (21, 23), (9, 13), (13, 16), (16, 18), (18, 20), (20, 22), (9, 12), (12, 24), (24, 15),
    (24, 25), (24, 26), (25, 27), (26, 28), (24, 29),
)  # fmt: skip


def places(names: Sequence[str], among: Sequence[str] = SMPL30) -> np.ndarray:
    """Where each name is, int64 (K,); -1 of one that is not among them."""
    return np.array([among.index(name) if name in among else -1 for name in names])


def to_smpl30(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Values (..., K, C) of named joints -> (..., 30, C), 0 where a joint has no source. Names are matched literally,
    although definitions differ between data sets, as in the official code."""
    index = places(names)
    result = np.zeros((*values.shape[:-2], len(SMPL30), values.shape[-1]), values.dtype)
    result[..., index[index >= 0], :] = values[..., index >= 0, :]
    return result


def with_middle(values: np.ndarray, left: int, right: int) -> np.ndarray:
    """x, y, score (..., K, 3) -> (..., K + 1, 3): the middle of two joints added, its score the product of theirs."""
    a, b = values[..., left, :], values[..., right, :]
    middle = np.concatenate([(a[..., :2] + b[..., :2]) / 2, a[..., 2:] * b[..., 2:]], axis=-1)
    return np.concatenate([values, middle[..., None, :]], axis=-2)
