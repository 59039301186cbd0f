"""From the frame of the world, in which some data sets give their bodies, into that of a camera."""

import numpy as np
import torch

from hap.body.rotations import to_axis_angle, to_matrix


def into_camera(
    orient: np.ndarray, trans: np.ndarray, root: np.ndarray, rotation: np.ndarray, translation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`orient` and `trans` of N bodies in a camera: their vertices are then R v + t of those in the world.

    A body turns about its root joint, not about the origin, so that R trans + t is not enough.

    Args:
        orient: (N, 3), axis-angle vectors of the root.
        trans: (N, 3), metres.
        root: (N, 3), where the root joint of each body is at rest, see `hap.body.arrays.Bodies.root`.
        rotation: R (N, 3, 3) or (3, 3), world to camera.
        translation: t (N, 3) or (3,), metres.

    Returns:
        Both (N, 3), float64.
    """
    rotation = np.asarray(rotation, np.float64)
    turned = torch.from_numpy(rotation) @ to_matrix(torch.from_numpy(np.asarray(orient, np.float64)))
    moved = (rotation @ (trans + root)[..., None])[..., 0] + translation - root
    return to_axis_angle(turned).numpy(), moved
