"""Transforms of 2D pose: one person out of a picture, by one affine map.

The picture is warped once; a mirror image is part of that map. No heat map leaves a loader process: they are made
from the joints on the device (`hap.pose.codecs`).
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from hap.data.transforms import to_tensor
from hap.pose.codecs import Codec
from hap.pose.geometry import PIXELS, apply_affine, box_to_region, fit_aspect
from hap.pose.skeletons import Skeleton

HALF_BODY_JOINTS = 8  # labelled joints, more than which may be halved
HALF_BODY_PADDING = 1.5


class PoseTrain:
    """Flip, half of the body, scale, turn: the augmentation of ViTPose, with its draws in its order.

    Args:
        codecs: of the data sets, by the `source` of a sample.
        half_body_prob: how often the upper or the lower half alone is cropped, where more than 8 joints are labelled
            and the skeleton says which are the upper ones. Joints of the other half that are in the crop stay.
        scale_factor: the region is scaled by 1 + scale_factor x, x standard normal, within [1 - f, 1 + f].
        rotation: the region is turned by rotation x degrees, within twice the rotation ...
        rotation_prob: ... so often.
        flip_prob: how often the mirror image is taken.
        num_joints: fills up the joints to so many, with weight 0; for several data sets in one batch.

    Returns (per sample):
        image (3, H, W) uint8; joints (K, 3) float32: x, y in pixels of the crop, 1 labelled or 0; center (2,), scale
        (2,) float32, the region in the picture or its mirror image; source (int).
    """

    def __init__(
        self,
        codecs: Sequence[Codec],
        half_body_prob: float = 0.3,
        scale_factor: float = 0.5,
        rotation: float = 40.0,
        rotation_prob: float = 0.6,
        flip_prob: float = 0.5,
        num_joints: int | None = None,
    ):
        self.codecs, self.half_body_prob, self.flip_prob = codecs, half_body_prob, flip_prob
        self.scale_factor, self.rotation, self.rotation_prob = scale_factor, rotation, rotation_prob
        self.num_joints = num_joints

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        skeleton, source = annotations["skeleton"], annotations["source"]
        codec, joints = self.codecs[source], annotations["joints"]
        center, scale = annotations["center"], annotations["scale"]
        width = image.shape[1]
        if flip := rng.random() < self.flip_prob:
            joints = joints[skeleton.flip_index]
            joints[:, 0] = width - 1 - joints[:, 0]
            joints[:, :2] *= joints[:, 2:] > 0
            center = np.array([width - 1 - center[0], center[1]], np.float32)
        if (half := self._half_body(joints, skeleton, codec.size, rng)) is not None:
            center, scale = half
        factor = self.scale_factor * rng.standard_normal()
        scale = scale * np.float32(1 + np.clip(factor, -self.scale_factor, self.scale_factor))
        rotation = np.clip(self.rotation * rng.standard_normal(), -2 * self.rotation, 2 * self.rotation)
        rotation = float(rotation) if rng.random() < self.rotation_prob else 0.0

        matrix = codec.matrix(center, scale, rotation)
        mapped = np.full(len(joints), True) if codec.maps_all_joints else joints[:, 2] > 0
        xy = np.where(mapped[:, None], apply_affine(matrix, joints[:, :2]), joints[:, :2])
        joints = np.concatenate([xy, joints[:, 2:]], axis=1, dtype=np.float32)
        if self.num_joints is not None:
            joints = np.pad(joints, ((0, self.num_joints - len(joints)), (0, 0)))
        if flip:  # of the mirror image -> of the picture
            matrix = np.stack(
                [-matrix[:, 0], matrix[:, 1], matrix[:, 2] + (width - 1) * matrix[:, 0]], axis=1
            )
        return {
            "image": to_tensor(warp(image, matrix, codec.size)),
            "joints": joints,
            "center": np.asarray(center, np.float32),
            "scale": np.asarray(scale, np.float32),
            "source": source,
        }

    def _half_body(
        self, joints: np.ndarray, skeleton: Skeleton, size: Sequence[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The region of one half, center (2,) and scale (2,); None for the whole person."""
        labelled = np.flatnonzero(joints[:, 2] > 0)
        if (
            not skeleton.upper_body
            or len(labelled) <= HALF_BODY_JOINTS
            or rng.random() >= self.half_body_prob
        ):
            return None
        is_upper = np.isin(labelled, skeleton.upper_body)
        upper, lower = labelled[is_upper], labelled[~is_upper]
        # A normal draw, as in the official code: the upper half in 69 % of the cases.
        wants_upper = rng.standard_normal() < 0.5 and len(upper) > 2
        chosen = upper if wants_upper or len(lower) <= 2 else lower
        if len(chosen) < 2:
            return None
        xy = joints[chosen, :2]
        extent = fit_aspect(np.ptp(xy, axis=0), size)
        return xy.mean(axis=0), np.float32(HALF_BODY_PADDING / PIXELS) * extent


class PoseEval:
    """The region of a person and nothing else.

    Args:
        codecs: of the data sets, by the `source` of a sample.
        padding: of boxes that come without a region: from a detector, or, without a box, the whole picture.

    Returns (per sample):
        image (3, H, W) uint8; center (2,), scale (2,) float32; source (int).
    """

    def __init__(self, codecs: Sequence[Codec], padding: float = 1.25):
        self.codecs, self.padding = codecs, padding

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        source = annotations.get("source", 0)
        codec = self.codecs[source]
        if "center" in annotations:
            center, scale = annotations["center"], annotations["scale"]
        else:
            box = np.array(annotations.get("box", (0, 0, image.shape[1], image.shape[0])), np.float32)
            box[2:] = box[2:].clip(min=1)  # of what is left out, whose crop nobody sees
            center, scale = box_to_region(box, codec.size, self.padding)
        crop = warp(image, codec.matrix(center, scale), codec.size)
        return {"image": to_tensor(crop), "center": center, "scale": scale, "source": source}


def warp(image: np.ndarray, matrix: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, bilinear, black beyond the border; `matrix` maps to the result."""
    return cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
