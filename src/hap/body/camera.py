"""Pinhole cameras of 3D pose: x right, y down, z forward in metres; pixels.

A network that sees a crop knows the camera of the crop alone: one of a fixed focal length whose principal point is the
middle of the crop. The body that it places there is moved to where the camera of the whole picture sees it at the same
pixel and as large. Its distance is in metres only as far as the focal length of the picture is known: twice the focal
length is twice the distance.
"""

import torch
from torch import Tensor

CROP_FOCAL, CROP_SIZE = 5000.0, 256  # pixels, of all crops (SPIN, 3DCrowdNet, HMR 2.0)


def project(points: Tensor, camera: Tensor, eps: float = 0.0) -> Tensor:
    """Points (..., 3) -> pixels (..., 2).

    Args:
        points: in front of the camera; behind it they land somewhere, mirrored.
        camera: (..., 4), focal lengths and principal point fx, fy, cx, cy in pixels; its leading dimensions and those
            of the points are broadcast, so cameras (N, 4) of points (N, K, 3) are given as `camera[:, None]`.
        eps: added to the depth; 3DCrowdNet has 1e-4.
    """
    return camera[..., :2] * points[..., :2] / (points[..., 2:] + eps) + camera[..., 2:]


def to_full(
    translation: Tensor,
    center: Tensor,
    side: Tensor,
    camera: Tensor,
    crop_focal: float = CROP_FOCAL,
    crop_size: int = CROP_SIZE,
) -> Tensor:
    """Places in the camera of a crop (N, 3) -> places in the camera of the picture (N, 3).

    The body's origin lands on the same pixel and is as large there; what lies around it differs by perspective.

    Args:
        translation: z > 0.
        center: (N, 2), the middle of the square that is cropped, in pixels of the picture.
        side: (N,), its side in pixels of the picture.
        camera: (N, 4), of the picture: fx, fy, cx, cy. Where fx and fy differ the area is kept.
        crop_focal: of the crop's camera, in pixels of the crop.
        crop_size: of the crop, in pixels.
    """
    x, y, z = translation.unbind(-1)
    focal = crop_focal * side / crop_size  # of the crop's camera, in pixels of the picture
    pixel = center + focal[:, None] * torch.stack([x, y], -1) / z[:, None]
    depth = z * _mean_focal(camera) / focal
    return _behind(pixel, depth, camera)


def to_crop(
    translation: Tensor,
    center: Tensor,
    side: Tensor,
    camera: Tensor,
    crop_focal: float = CROP_FOCAL,
    crop_size: int = CROP_SIZE,
) -> Tensor:
    """The inverse of `to_full`: (N, 3) in the camera of the picture -> (N, 3) in the camera of the crop."""
    focal = crop_focal * side / crop_size
    depth = translation[:, 2] * focal / _mean_focal(camera)
    crop_camera = torch.cat([focal[:, None].expand(-1, 2), center], dim=1)
    return _behind(project(translation, camera), depth, crop_camera)


def _mean_focal(camera: Tensor) -> Tensor:
    """(N, 4) -> (N,), the square root of the product of fx and fy."""
    return camera[:, :2].prod(1).sqrt()


def _behind(pixel: Tensor, depth: Tensor, camera: Tensor) -> Tensor:
    """The point (N, 3) that a camera (N, 4) sees at a pixel (N, 2) in a depth (N,)."""
    xy = (pixel - camera[:, 2:]) * depth[:, None] / camera[:, :2]
    return torch.cat([xy, depth[:, None]], dim=1)
