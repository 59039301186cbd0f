"""Which part of a picture the networks of 3D pose see: a square around a person's box, or around joints."""

import numpy as np

PADDING = 1.25  # of the square's side
JOINTS_PADDING = 1.2  # of the box around joints, before


def crop_box(box: np.ndarray, size: np.ndarray, reject: bool = True) -> np.ndarray:
    """Squares around boxes, as the official code makes them: a box that begins left of or above the picture is moved
    into it, not cut.

    Args:
        box: (..., 4), x, y, w, h in pixels.
        size: (..., 2), width and height of the picture.
        reject: whether boxes of no area or outside of the picture have none.

    Returns:
        float32 (..., 4), x, y, side, side; NaN where there is none.
    """
    box, size = np.asarray(box, np.float64), np.asarray(size, np.float64)
    corner = np.maximum(box[..., :2], 0)
    end = np.minimum(size - 1, corner + np.maximum(box[..., 2:] - 1, 0))
    good = (box[..., 2] * box[..., 3] > 0) & (end >= corner).all(-1)
    corner, extent = corner.astype(np.float32), (end - corner).astype(np.float32)
    center, side = corner + extent / 2, np.float32(PADDING) * extent.max(-1, keepdims=True)
    square = np.concatenate([center - side / 2, side, side], axis=-1)
    return np.where(good[..., None], square, np.float32(np.nan)) if reject else square


def joints_box(joints: np.ndarray) -> np.ndarray:
    """The box x, y, w, h (..., 4) around joints (..., K, 3) that are there (third column above 0), each side 1.2 times
    theirs; NaN where there is none."""
    there = joints[..., 2:] > 0
    low = np.where(there, joints[..., :2], np.inf).min(-2)
    high = np.where(there, joints[..., :2], -np.inf).max(-2)
    low, high = np.where(low > high, np.nan, low), np.where(low > high, np.nan, high)
    middle, extent = (low + high) / 2, high - low
    return np.concatenate([middle - JOINTS_PADDING * extent / 2, JOINTS_PADDING * extent], axis=-1)
