"""Regions of pictures and the affine maps between them, for one person or many at once."""

from collections.abc import Sequence

import numpy as np

PIXELS = 200  # of a unit of scale (MPII's, and so everyone's)


def fit_aspect(extent: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Width and height (..., 2), enlarged on one side to the aspect of an input of size (H, W)."""
    ratio = np.float32(size[1] / size[0])
    width, height = extent[..., 0], extent[..., 1]
    return np.stack([np.maximum(width, ratio * height), np.maximum(height, width / ratio)], axis=-1)


def box_to_region(
    box: np.ndarray, size: Sequence[int], padding: float = 1.25
) -> tuple[np.ndarray, np.ndarray]:
    """The region that is cropped for a box: its center in pixels, its width and height in units of 200 pixels.

    Args:
        box: (..., 4), x, y, w, h in pixels.
        size: height and width of the input, whose aspect the region has.
        padding: factor of both sides.

    Returns:
        center (..., 2), scale (..., 2), float32.
    """
    box = np.asarray(box, np.float32)
    center = box[..., :2] + box[..., 2:] / 2
    return center, np.float32(padding) * fit_aspect(box[..., 2:], size) / np.float32(PIXELS)


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., K, 2) through matrices (..., 2, 3)."""
    return points @ matrix[..., :2].swapaxes(-1, -2) + matrix[..., None, :, 2]
