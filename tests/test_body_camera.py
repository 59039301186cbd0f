"""Cameras of crops and of whole pictures against the numbers of the specification and users' cases."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hap.body.camera import project, to_crop, to_full
from hap.body.crops import crop_box, joints_box

BOXES = (  # box, picture, square
    ((100, 50, 200, 400), (1920, 1080), (-49.875, 0.125, 498.75)),
    ((-30, 20, 100, 50), (640, 480), (-12.375, -17.375, 123.75)),  # moved into the picture, not cut
    ((600, 400, 100, 200), (640, 480), (570.125, 390.125, 98.75)),
    ((10, 10, 1, 50), (640, 480), (-20.625, 3.875, 61.25)),
    ((10, 10, 0, 50), (640, 480), None),
    ((700, 10, 20, 50), (640, 480), None),
)

CROP = torch.tensor([[5000.0, 5000, 128, 128]], dtype=torch.float64)


def hmr2(s: float, tx: float, ty: float) -> torch.Tensor:
    return torch.tensor([[tx, ty, 2 * 5000 / (256 * s)]], dtype=torch.float64)


def test_points_land_where_3dcrowdnet_puts_them():
    translation = torch.tensor([0.1, -0.2, 24.4140625], dtype=torch.float64)
    points = torch.tensor([[[0.0, 0, 0], [0.3, -0.5, 0.2]]], dtype=torch.float64) + translation
    pixels = project(points, CROP[:, None], eps=1e-4)
    expected = torch.tensor([[[148.479916, 87.040168], [209.254034, -14.194560]]], dtype=torch.float64)
    assert_close(pixels, expected, rtol=0, atol=1e-6)
    fine = torch.tensor([[37.119979, 21.760042], [52.313509, -3.548640]], dtype=torch.float64)
    assert_close(pixels[0] / 4, fine, rtol=0, atol=1e-6)


def test_focal_lengths_differ_and_cameras_are_broadcast():
    points = torch.tensor([[[1.0, 2, 4], [0, 0, 1]], [[1, 2, 4], [0, 0, 1]]])
    camera = torch.tensor([[100.0, 200, 10, 20], [400, 800, 0, 0]])
    expected = torch.tensor([[[35.0, 120], [10, 20]], [[100, 400], [0, 0]]])
    assert_close(project(points, camera[:, None]), expected)


def test_float32_tells_a_tenth_of_a_millimetre_apart():
    x = torch.tensor([[0.1, 0, 24.4140625], [0.1001, 0, 24.4140625]])
    moved = project(x, CROP.float(), eps=1e-4).diff(dim=0)[0, 0]
    assert moved.item() == pytest.approx(5000 * 1e-4 / 24.4140625, rel=0.01)


@pytest.mark.parametrize(("focal", "depth"), [(37500, 208.333333), (1500, 8.333333)])
def test_place_in_the_whole_picture(focal, depth):
    """4D-Humans' users: 1920 x 1080, box around (1200, 600), side 400."""
    crop = hmr2(0.9, 0.1, -0.2)
    assert crop[0, 2].item() == pytest.approx(43.402777776, rel=1e-9)
    center, side = torch.tensor([[1200.0, 600]], dtype=torch.float64), torch.tensor([400.0])
    camera = torch.tensor([[focal, focal, 960.0, 540]], dtype=torch.float64)
    full = to_full(crop, center, side, camera)
    expected = torch.tensor([[1.433333, 0.133333, depth]], dtype=torch.float64)
    assert_close(full, expected, rtol=0, atol=1e-6)
    pixel = torch.tensor([[1218.0, 564]], dtype=torch.float64)
    assert_close(project(full, camera), pixel)
    assert_close(center + (project(crop, CROP) - 128) * 400 / 256, pixel)


def test_depth_of_a_rendering_is_the_specifications():
    """The camera of a picture taken to have the crop's focal length, and the middle of a box of 250 x 250 as its
    principal point: depth times 256 / 250."""
    center, side = torch.tensor([[321.0, 204]]), torch.tensor([250.0])
    camera = torch.cat([torch.full((1, 2), 5000.0), center], dim=1)
    full = to_full(torch.tensor([[0.1, -0.2, 48.828125]]), center, side, camera)
    assert_close(full, torch.tensor([[0.1, -0.2, 50.0]]))


def test_any_crop_of_any_picture():
    """Against HMR 2.0's closed form (equal focal lengths), by projection (any), and back."""
    generator = torch.Generator().manual_seed(0)

    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    s, shift = drawn(0.3, 1.5, 50), drawn(-0.5, 0.5, 50, 2)
    center, side, camera = drawn(0, 2000, 50, 2), drawn(20, 900, 50), drawn(300, 5000, 50, 4)
    crop = torch.cat([shift, (2 * 5000 / (256 * s))[:, None]], dim=1)
    full = to_full(crop, center, side, camera)
    crop_camera = CROP.expand(50, 4)
    in_picture = center + (project(crop, crop_camera) - 128) * (side / 256)[:, None]
    assert_close(project(full, camera), in_picture)

    def area(place: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
        """Pixels of a square centimetre that faces the camera."""
        corner = place + torch.tensor([0.01, 0.01, 0], dtype=torch.float64)
        return (project(corner, camera) - project(place, camera)).prod(1)

    assert_close(area(full, camera), area(crop, crop_camera) * (side / 256) ** 2)
    assert_close(to_crop(full, center, side, camera), crop)
    other = to_full(crop, center, side, camera, crop_focal=1000.0, crop_size=224)
    assert_close(to_crop(other, center, side, camera, crop_focal=1000.0, crop_size=224), crop)

    camera[:, 1] = camera[:, 0]
    closed = torch.cat(
        [
            shift + 2 * (center - camera[:, 2:]) / (side * s)[:, None],
            (2 * camera[:, 0] / (side * s))[:, None],
        ],
        dim=1,
    )
    assert_close(to_full(crop, center, side, camera), closed)
    twice = camera * torch.tensor([2, 2, 1, 1])
    assert_close(to_full(crop, center, side, twice)[:, 2], 2 * closed[:, 2])


def test_gradients_reach_the_crop():
    crop = torch.tensor([[0.1, -0.2, 40.0]], dtype=torch.float64, requires_grad=True)
    center, side = torch.tensor([[100.0, 90]], dtype=torch.float64), torch.tensor([50.0], dtype=torch.float64)
    camera = torch.tensor([[800.0, 900, 320, 240]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: to_full(t, center, side, camera), crop)
    assert math.isfinite(to_crop(crop, center, side, camera).sum().item())


def test_squares_around_boxes():
    """As the official code makes them, those that it rejects included; all at once."""
    boxes, sizes, squares = zip(*BOXES, strict=True)
    expected = np.array([[np.nan] * 4 if square is None else [*square, square[2]] for square in squares])
    np.testing.assert_array_equal(crop_box(np.array(boxes), np.array(sizes)), expected)
    kept = crop_box(np.array(boxes), np.array(sizes), reject=False)
    np.testing.assert_array_equal(kept[:4], expected[:4])
    assert np.isfinite(kept).all()


def test_boxes_around_joints_that_are_there():
    joints = np.array([[100, 200, 1], [250, 100, 0], [300, 600, 1]])
    boxes = joints_box(np.stack([joints, joints * [1, 1, 0]]))
    np.testing.assert_allclose(boxes[0], (80, 160, 240, 480))
    assert np.isnan(boxes[1]).all()
    square = crop_box(boxes[0], np.array([1920, 1080]), reject=False)
    np.testing.assert_allclose(square, (-99.875, 100.125, 598.75, 598.75))
