"""Rotations as axis-angle vectors (radians), matrices that act on column vectors, and six numbers.

All are exact at the identity and at half a turn, and their gradients are finite everywhere.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# The six numbers of a rotation are two columns of its matrix, before they are made orthonormal (Zhou et al., 2019):
# one after the other (HMR 2.0), number by number in turn (SPIN, 3DCrowdNet), or two rows (PyTorch3D).
Layout = Literal["columns", "columns_interleaved", "rows"]


def to_matrix(axis_angle: Tensor) -> Tensor:
    """Axis-angle vectors (..., 3) -> matrices (..., 3, 3), by Rodrigues' formula."""
    square = axis_angle.square().sum(-1)[..., None, None]
    small = square < 1e-8
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    first = torch.where(small, 1 - square / 6, angle.sin() / angle)
    second = torch.where(small, 0.5 - square / 24, 2 * (angle / 2).sin().square() / safe)
    x, y, z = axis_angle.unbind(-1)
    o = torch.zeros_like(x)
    cross = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + first * cross + second * (cross @ cross)


def to_axis_angle(matrix: Tensor) -> Tensor:
    """Matrices (..., 3, 3) -> axis-angle vectors (..., 3) of at most half a turn.

    By the quaternion whose largest part is computed first, so that no difference of near numbers is divided by.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    squares = torch.stack([1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i], dim=-1)
    w, x, y, z = squares.unbind(-1)
    products = [
        *(w, h - f, c - g, d - b),
        *(h - f, x, d + b, c + g),
        *(c - g, d + b, y, h + f),
        *(d - b, c + g, h + f, z),
    ]  # of each part of the quaternion with all, times 4
    largest = squares.argmax(-1, keepdim=True)
    row = torch.stack(products, dim=-1).unflatten(-1, (4, 4)).take_along_dim(largest[..., None], -2)
    quaternion = row.squeeze(-2) / (2 * squares.take_along_dim(largest, -1).sqrt())
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    cosine, vector = quaternion[..., :1], quaternion[..., 1:]
    square = vector.square().sum(-1, keepdim=True)
    small = square < 1e-10
    sine = torch.where(small, 1.0, square).sqrt()
    factor = torch.where(small, 2 - square / 3, 2 * torch.atan2(sine, cosine) / sine)
    return factor * vector


def from_6d(numbers: Tensor, layout: Layout) -> Tensor:
    """Six numbers (..., 6) -> matrices (..., 3, 3), made orthonormal by Gram and Schmidt."""
    if layout == "columns_interleaved":
        first, second = numbers.unflatten(-1, (3, 2)).unbind(-1)
    else:
        first, second = numbers.unflatten(-1, (2, 3)).unbind(-2)
    first = F.normalize(first, dim=-1, eps=1e-12)
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1, eps=1e-12)
    third = torch.cross(first, second, dim=-1)
    return torch.stack([first, second, third], dim=-2 if layout == "rows" else -1)


def about_z(angle: Tensor) -> Tensor:
    """Turns (N,) in radians, counter-clockwise where y points up -> (N, 3, 3)."""
    sin, cos = angle.sin(), angle.cos()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
