"""Joints to heat maps and back: UDP (Huang et al., CVPR 2020) with DARK (Zhang et al., CVPR 2020), and the classic way
(Xiao et al., ECCV 2018).

A heat map has a quarter of the input's size (H, W). The two differ in what a pixel is: for UDP a point, so that an
input is W - 1 long; classically an area, so that it is W long and a mirror image is shifted.

Legend: N people, K joints, h x w pixels of a heat map.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hap.errors import HapError
from hap.pose.geometry import PIXELS

STRIDE = 4
KERNEL, KERNEL_SIGMA = 11, 2.0  # of the blur before DARK, at every size
LOWEST, HIGHEST = 0.001, 50.0  # that a blurred heat map is clipped to before its logarithm
EPS = 1.1920929e-7


class Codec(ABC):
    """
    Args:
        size: height and width of the input.
        sigma: of the Gaussian, in pixels of the heat map, which reaches 3 sigma far; 2 at every size.
    """

    maps_all_joints: ClassVar[bool]  # or those alone that are labelled
    shift_flipped: ClassVar[bool]  # whether the heat maps of a mirror image lie one pixel too far left
    border: ClassVar[int]  # pixels that an image is shorter than their number: 1 from center to center

    def __init__(self, size: Sequence[int], sigma: float = 2.0):
        if size[0] % STRIDE or size[1] % STRIDE or min(size) // STRIDE <= KERNEL // 2:
            least = STRIDE * (KERNEL // 2 + 1)
            raise HapError(
                f"img_size={list(size)}: multiples of {STRIDE}, from {least}, for heat maps of a quarter"
            )
        self.size, self.sigma = (size[0], size[1]), sigma
        self.heatmap_size = (size[0] // STRIDE, size[1] // STRIDE)
        self.radius = round(3 * sigma)

    @abstractmethod
    def matrix(self, center: np.ndarray, scale: np.ndarray, rotation: float = 0.0) -> np.ndarray:
        """From the picture to the input, (2, 3) float32, for a region turned by `rotation` degrees about its center;
        the two codecs turn in opposite directions."""

    @abstractmethod
    def _mu(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The centers of the Gaussians (N, K, 2), and the pixels, as whole numbers, that their windows are around."""

    @abstractmethod
    def _refine(self, heatmaps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Positions (N, K, 2) from those of the maxima, (N, K) each."""

    def encode(self, joints: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            joints: (N, K, 3): x, y in pixels of the input, and 1 labelled, 0 not.

        Returns:
            target (N, K, h, w), 0 where a joint is not labelled, and weight (N, K), float32. A joint that is up to
            3 sigma outside has weight 1 and an almost empty map: there is nothing to be seen.
        """
        joints = joints.float()
        mu, middle = self._mu(joints[..., :2])
        h, w = self.heatmap_size
        size = torch.tensor([w, h], device=joints.device)
        near = ((middle - self.radius < size) & (middle + self.radius + 1 >= 0)).all(-1)
        weight = joints[..., 2] * near
        x, y = (self._gaussian(mu[..., i], middle[..., i], (w, h)[i]) for i in (0, 1))
        return (weight > 0.5)[..., None, None] * y[..., :, None] * x[..., None, :], weight

    def _gaussian(self, mu: Tensor, middle: Tensor, length: int) -> Tensor:
        """Along one axis (N, K, length), cut off beyond the radius."""
        place = torch.arange(length, device=mu.device)
        value = torch.exp(-((place - mu[..., None]) ** 2) / (2 * self.sigma**2))
        return value * ((place - middle[..., None]).abs() <= self.radius)

    def decode(self, heatmaps: Tensor) -> Tensor:
        """Heat maps (N, K, h, w) -> (N, K, 3) float32: x, y in their pixels, and the height of the maximum, of equal
        ones the first. (-1, -1) where no pixel is above 0."""
        with torch.autocast(heatmaps.device.type, enabled=False):
            heatmaps = heatmaps.float()
            score, place = heatmaps.flatten(2).max(dim=2)
            x, y = place % heatmaps.shape[3], place // heatmaps.shape[3]
            xy = self._refine(heatmaps, x, y)
            xy = torch.where(score[..., None] > 0, xy, -1.0)
            return torch.cat([xy, score[..., None]], dim=2)

    def to_image(self, points: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """Pixels of heat maps (N, K, 2) -> of the pictures, for regions center (N, 2), scale (N, 2)."""
        region = PIXELS * scale[:, None]  # (N, 1, 2)
        return points * region / self._lengths(points, self.heatmap_size) + center[:, None] - region / 2

    def to_input(self, points: Tensor) -> Tensor:
        """Pixels of heat maps (N, K, 2) -> of the inputs."""
        return points * self._stride(points)

    def _stride(self, points: Tensor) -> Tensor:
        return self._lengths(points, self.size) / self._lengths(points, self.heatmap_size)

    def _lengths(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Width and height."""
        return points.new_tensor([size[1] - self.border, size[0] - self.border])

    def flip_back(self, heatmaps: Tensor, flip_index: np.ndarray | Tensor) -> Tensor:
        """Heat maps (N, K, h, w) of mirror images as those of the images; `flip_index` (K,), see `Skeleton`."""
        index = torch.as_tensor(flip_index, device=heatmaps.device)
        back = heatmaps[:, index].flip(3)
        if self.shift_flipped:
            back = torch.cat([back[..., :1], back[..., :-1]], dim=3)
        return back


class UDP(Codec):
    """Unbiased: the Gaussian is where the joint is, between pixels; DARK's parabola through the logarithm finds it.

    The offset from the maximum has no limit; at the border, where the blur mirrors the map, it tends to half a pixel.
    """

    maps_all_joints, shift_flipped, border = True, False, 1

    def __init__(self, size: Sequence[int], sigma: float = 2.0):
        super().__init__(size, sigma)
        self._blur = [_blur_matrix(length) for length in self.heatmap_size]

    def matrix(self, center: np.ndarray, scale: np.ndarray, rotation: float = 0.0) -> np.ndarray:
        """Width and height are scaled after the turn: where their factors differ (MPII), the picture is sheared."""
        (cx, cy), (width, height) = np.asarray(center, float), PIXELS * np.asarray(scale, float)
        sx, sy = (self.size[1] - 1) / width, (self.size[0] - 1) / height
        cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        return np.array(
            [
                [sx * cos, -sx * sin, sx * (-cx * cos + cy * sin + width / 2)],
                [sy * sin, sy * cos, sy * (-cx * sin - cy * cos + height / 2)],
            ],
            np.float32,
        )

    def _mu(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        mu = xy / self._stride(xy)
        return mu, (mu + 0.5).trunc()

    def _refine(self, heatmaps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        around = torch.arange(-1, 2, device=x.device)
        rows, cols = (
            matrix.to(heatmaps.device)[(place[..., None] + around).clamp(0, len(matrix) - 1)]
            for matrix, place in zip(self._blur, (y, x), strict=True)
        )  # (N, K, 3, h), (N, K, 3, w): what a blurred pixel is made of
        blurred = rows @ heatmaps @ cols.mT  # (N, K, 3, 3), around the maximum
        (l00, l01, _), (l10, l11, l12), (_, l21, l22) = (
            row.unbind(-1) for row in blurred.clamp(LOWEST, HIGHEST).log().unbind(-2)
        )
        dx, dy = (l12 - l10) / 2, (l21 - l01) / 2
        dxx, dyy = l12 - 2 * l11 + l10 + EPS, l21 - 2 * l11 + l01 + EPS
        dxy = (l22 - l12 - l21 + 2 * l11 - l10 - l01 + l00) / 2
        det = dxx * dyy - dxy * dxy
        offset = torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=2) / det[..., None]
        return torch.stack([x, y], dim=2) - offset


class Classic(Codec):
    """The Gaussian is around the nearest pixel; decoding moves a quarter of a pixel towards the higher neighbour.
    Joints come back up to some pixels off: that is the scheme's known bias."""

    maps_all_joints, shift_flipped, border = False, True, 0

    def matrix(self, center: np.ndarray, scale: np.ndarray, rotation: float = 0.0) -> np.ndarray:
        """One factor for both sides, the width's."""
        (cx, cy), factor = np.asarray(center, float), self.size[1] / (PIXELS * float(scale[0]))
        cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        return np.array(
            [
                [factor * cos, factor * sin, -factor * (cos * cx + sin * cy) + self.size[1] / 2],
                [-factor * sin, factor * cos, -factor * (-sin * cx + cos * cy) + self.size[0] / 2],
            ],
            np.float32,
        )

    def _mu(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        middle = (xy / self._stride(xy) + 0.5).trunc()
        return middle, middle

    def _refine(self, heatmaps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        h, w = self.heatmap_size
        inner = (x > 1) & (x < w - 1) & (y > 1) & (y < h - 1)
        at, flat = y * w + x, heatmaps.flatten(2)

        def difference(step: int) -> Tensor:
            after, before = ((at + s).clamp(0, h * w - 1)[..., None] for s in (step, -step))
            return (flat.gather(2, after) - flat.gather(2, before)).squeeze(2).sign()

        offset = torch.stack([difference(1), difference(w)], dim=2)
        return torch.stack([x, y], dim=2) + 0.25 * offset * inner[..., None]


def _blur_matrix(length: int) -> Tensor:
    """The blur before DARK along one axis, (length, length): a row has the weights of all pixels in a blurred one. The
    border mirrors without repeating the last pixel."""
    place = torch.arange(KERNEL) - KERNEL // 2
    kernel = torch.exp(-(place**2).double() / (2 * KERNEL_SIGMA**2))
    kernel = (kernel / kernel.sum()).float()
    identity = F.pad(torch.eye(length)[:, None], (KERNEL // 2, KERNEL // 2), mode="reflect")
    return F.conv1d(identity, kernel[None, None])[:, 0].T.contiguous()
