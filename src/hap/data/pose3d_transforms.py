"""Transforms of 3D pose: a square around one person, by one affine map, and what it does to the person.

Only the picture is warped here, and its 2D joints follow; bodies are put together on the device
(`hap.tasks.pose3d_targets`). 2D joints are in 64ths of the crop, whatever its size in pixels.
"""

import math
from typing import Any, Literal

import numpy as np

from hap.body.crops import crop_box, joints_box
from hap.body.joints import COCO, FLIP30, SMPL30, places
from hap.data.pose3d import Kind
from hap.data.pose_errors import perturb
from hap.data.pose_transforms import warp
from hap.data.transforms import to_tensor
from hap.pose.geometry import apply_affine

UNITS = 256  # of the crop's side in which joints are disturbed; four of them are one of the network's
COCO30 = places(COCO)
FLIP_COCO = np.array([COCO30.tolist().index(FLIP30[joint]) for joint in COCO30])
NO_KIND = Kind("predict")


class Pose3dTrain:
    """Scale, turn, colours, flip, and 2D joints with the errors that detectors make (3DCrowdNet).

    Args:
        size: height and width of the crop in pixels.
        scale: the square is scaled by 1 + scale x, x standard normal within [-1, 1].
        rotation: it is turned by rotation x degrees, within twice the rotation ...
        rotation_prob: ... so often.
        color: each channel is multiplied by a number from [1 - color, 1 + color].
        flip_prob: how often the mirror image is taken.
        joint_errors: whether the 2D joints of the input are disturbed (`pose_errors.perturb`).
        near_joints: of neighbours, for which own joints are mistaken. `official`: they are not mirrored, and those
            that nobody has labelled are joints in the corner of the picture.

    Returns (per sample):
        image (3, S, S) uint8; input_joints (30, 2), input_mask (30,) as `Pose3dEval`; and for the targets, float32:
        joints (30, 2), valid (30,), trunc (30,), joints3d (30, 3); to_units (2, 3), pixels of the picture, or of its
        mirror image, to 64ths of the crop; turn, radians; flip, width, fitted, has_3d, exact, absolute_fit, 0 or 1 but
        the width; checked (30,); camera (4,), pose (72,), betas (10,), trans (3,); gender (int).
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: float = 0.25,
        rotation: float = 30.0,
        rotation_prob: float = 0.6,
        color: float = 0.2,
        flip_prob: float = 0.5,
        joint_errors: bool = True,
        near_joints: Literal["fixed", "official"] = "fixed",
    ):
        self.size, self.scale, self.rotation, self.rotation_prob = size[0], scale, rotation, rotation_prob
        self.color, self.flip_prob, self.joint_errors = color, flip_prob, joint_errors
        self.near_joints = near_joints

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        kind, (height, width) = annotations["kind"], image.shape[:2]
        factor = 1 + self.scale * np.clip(rng.standard_normal(), -1, 1)
        turn = self.rotation * np.clip(rng.standard_normal(), -2, 2) * (rng.random() < self.rotation_prob)
        gains = rng.uniform(1 - self.color, 1 + self.color, 3)
        flip = rng.random() < self.flip_prob

        joints, joints3d = annotations["joints"], annotations["joints3d"]
        near, pose = annotations["near"], annotations["pose"].reshape(24, 3)
        square = crop_box(annotations["box"], np.array([width, height]))
        center = square[:2] + square[2:] / 2
        if flip:
            center = np.array([width - 1 - center[0], center[1]])
            joints, joints3d = mirrored(joints, width)[FLIP30], joints3d[FLIP30] * [-1, 1, 1, 1]
            pose = pose[FLIP30[:24]] * [1, -1, -1]
            if self.near_joints == "fixed":
                near = mirrored(near, width)[:, FLIP_COCO]
        if self.near_joints == "official":
            near = np.concatenate([near[..., :2], np.ones_like(near[..., :1])], axis=-1)

        to_units = square_to(center, square[2] * factor, math.radians(turn), UNITS)
        units = np.column_stack([apply_affine(to_units, joints[:, :2]), joints[:, 2]])
        valid = joints[:, 2] > 0
        inside = ((units[:, :2] >= 0) & (units[:, :2] < UNITS)).all(1)
        if kind.has_3d:
            inside &= (joints3d[:, 2] >= -1) & (joints3d[:, 2] < 1)
        said = units[:, :2]
        if self.joint_errors:
            near = np.concatenate([apply_affine(to_units, near[..., :2]), near[..., 2:]], axis=-1)
            side = annotations["box"][2:] * UNITS / (square[2] * factor)
            said = self._disturbed(units, near, float(np.prod(side)), rng)
        to_crop = to_units * (self.size / UNITS)
        if flip:  # of the mirror image -> of the picture
            to_crop = np.column_stack(
                [-to_crop[:, 0], to_crop[:, 1], to_crop[:, 2] + (width - 1) * to_crop[:, 0]]
            )
        crop = warp(image, to_crop, (self.size, self.size))
        return {
            "image": to_tensor(np.clip(crop * gains + 0.5, 0, 255).astype(np.uint8)),
            "input_joints": np.float32(said / 4),
            "input_mask": np.float32(valid & inside),
            "joints": np.float32(units[:, :2] / 4),
            "valid": np.float32(valid),
            "trunc": np.float32(valid & inside),
            "joints3d": np.float32(joints3d[:, :3]),
            "to_units": np.float32(to_units / 4),
            "turn": np.float32(math.radians(turn)),
            "flip": np.float32(flip),
            "width": np.float32(width),
            "fitted": np.float32(annotations["fitted"]),
            "has_3d": np.float32(kind.has_3d),
            "exact": np.float32(kind.exact),
            "absolute_fit": np.float32(kind.absolute_fit),
            "checked": np.float32(np.isin(np.arange(len(SMPL30)), kind.checked)),
            "camera": np.float32(np.nan_to_num(annotations["camera"], nan=1.0)),
            "pose": np.float32(pose.ravel()),
            "betas": annotations["betas"],
            "trans": annotations["trans"],
            "gender": int(annotations["gender"]),
        }

    def _disturbed(
        self, units: np.ndarray, near: np.ndarray, area: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Joints (30, 2); those that COCO has not stay true, as in the official code."""
        said = perturb(units[COCO30], near, area, rng)
        common = units[COCO30, 2] > 0
        result = units[:, :2].copy()
        result[COCO30[common]] = said[common, :2]
        return result


class Pose3dEval:
    """The square around the joints of the input or around a box, and nothing else.

    Args:
        size: height and width of the crop in pixels.

    Returns (per sample):
        image (3, S, S) uint8; input_joints (30, 2) float32, in 64ths of the crop; input_mask (30,) float32, those that
        are there and in the crop; center (2,), side float32, of the square in pixels of the picture; picture (2,), its
        width and height; and of an evaluation pose (72,), betas (10,), trans (3,) float32, gender (int).
    """

    def __init__(self, size: tuple[int, int]):
        self.size = size[0]

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        picture = np.array(image.shape[1::-1])
        kind = annotations.get("kind", NO_KIND)
        joints = annotations.get("joints", np.zeros((len(SMPL30), 3), np.float32))
        box = np.array(annotations.get("box", (0, 0, *picture)), np.float64)
        if kind.from_joints and (around := joints_box(joints))[2:].max() > 1:  # NaN is not
            box = around
        square = crop_box(box, picture, reject=False)
        center, side = square[:2] + square[2:] / 2, max(float(square[2]), 1.0)
        to_units = square_to(center, side, 0.0, UNITS)
        units = apply_affine(to_units, joints[:, :2])
        inside = ((units >= 0) & (units < UNITS)).all(1)
        sample = {
            "image": to_tensor(warp(image, to_units * (self.size / UNITS), (self.size, self.size))),
            "input_joints": np.float32(units / 4),
            "input_mask": np.float32((joints[:, 2] > 0) & inside),
            "center": np.float32(center),
            "side": np.float32(side),
            "picture": np.float32(picture),
        }
        truth = ("pose", "betas", "trans", "gender") if "pose" in annotations else ()
        return sample | {name: annotations[name] for name in truth}


def square_to(center: np.ndarray, side: float, turn: float, size: int) -> np.ndarray:
    """Map (2, 3) from pixels of a picture to those of a crop of `size`, whose side is `side` pixels and which is turned
    by `turn` radians."""
    scale, cos, sin = size / side, math.cos(turn), math.sin(turn)
    linear = scale * np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([linear, size / 2 - linear @ center])


def mirrored(joints: np.ndarray, width: int) -> np.ndarray:
    """Joints (..., 3) of the mirror image, in their order; what is not there stays in the corner."""
    x = (width - 1 - joints[..., :1]) * (joints[..., 2:] > 0)
    return np.concatenate([x, joints[..., 1:]], axis=-1)
