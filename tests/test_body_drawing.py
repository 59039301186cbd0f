"""Pictures of meshes against rays through every pixel, files against what they say."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hap.body.drawing import NEAR, _colour, _shades, draw_meshes, turntable, write_obj
from hap.body.rotations import to_matrix
from hap.errors import HapError

GREY = np.full((48, 64, 3), 100, np.uint8)
CAMERA = (50.0, 60.0, 30.0, 25.0)


def ball(middle=(0.0, 0.0, 0.0), radius=0.5, times=2) -> tuple[np.ndarray, np.ndarray]:
    """An octahedron, each face of it cut in four so often: vertices, and faces counter-clockwise from outside."""
    points = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    faces = [(0, 1, 2), (0, 2, 4), (0, 4, 5), (0, 5, 1), (3, 2, 1), (3, 4, 2), (3, 5, 4), (3, 1, 5)]
    points, faces = np.array(points, float), np.array(faces)
    for _ in range(times):
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        edges, number = np.unique(edges, axis=0, return_inverse=True)
        a, b, c = faces.T
        ab, bc, ca = number.reshape(3, -1) + len(points)
        points = np.concatenate([points, points[edges].mean(1)])
        faces = np.concatenate(
            [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        )
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return radius * points + middle, faces


def by_rays(image, meshes, faces, camera) -> np.ndarray:
    """What `draw_meshes` gives, by four rays through each pixel and all faces that they hit."""
    height, width = image.shape[:2]
    v, u = (
        np.mgrid[: 2 * height, : 2 * width] / 2 - 0.25
    )  # two by two in a pixel, whose middle is a whole number
    rays = np.stack([(u - camera[2]) / camera[0], (v - camera[3]) / camera[1], np.ones_like(u)], -1).reshape(
        -1, 3
    )
    nearest, colours = np.full(len(rays), np.inf), np.zeros((len(rays), 4))
    for number, mesh in enumerate(meshes):
        shades = _shades(mesh, faces)
        for face in faces:
            corners = mesh[face]
            towards = np.cross(corners[1] - corners[0], corners[2] - corners[0]) @ corners[0]
            if corners[:, 2].min() <= NEAR or towards >= 0:  # not before the camera; seen from inside
                continue
            weights = rays @ np.linalg.inv(corners)  # of corners whose sum is a point of the ray at depth 1
            depth = 1 / weights.sum(1)
            hit = (weights >= 0).all(1) & (depth < nearest)
            shade = (weights[hit] * depth[hit, None]) @ shades[face]
            nearest[hit] = depth[hit]
            colours[hit] = np.column_stack([shade[:, None] * _colour(number), np.ones_like(shade)])
    rgb, alpha = np.split(colours.reshape(height, 2, width, 2, 4).mean((1, 3)), [3], axis=2)
    return image * (1 - alpha) + rgb


def test_who_is_nearer_hides_who_is_farther():
    """Six people: one in front of another, two that reach into each other, two over the rim, one across the near
    limit; in any order."""
    middles = [
        (0, 0, 2.5),
        (0.3, 0.1, 4),
        (0.9, -0.3, 3),
        (1.1, -0.1, 3.2),
        (-1.9, 0.9, 3),
        (-0.35, -0.3, 0.5),
    ]
    faces = ball()[1]
    meshes = [ball(middle)[0] for middle in middles]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]):
        people = [meshes[i] for i in order]
        drawn = draw_meshes(GREY, people, faces, CAMERA).astype(float)
        off = np.abs(drawn - by_rays(GREY, people, faces, CAMERA)).max(2)
        assert np.mean(off > 6) < 0.005  # a ray through an edge hits on either side of it
        assert np.mean(off > 2) < 0.05  # shades are interpolated in the picture, not in space
    assert (GREY == 100).all()


def test_edges_are_smooth_and_the_rest_is_untouched():
    faces = ball()[1]
    drawn = draw_meshes(GREY, [ball((0, 0, 3))[0]], faces, CAMERA)
    changed = (drawn != GREY).any(2)
    row, column = np.nonzero(changed)
    assert abs(column.mean() - 30) < 0.3
    assert abs(row.mean() - 25) < 0.3
    radius = 0.5 / np.sqrt(9 - 0.25)  # of its outline, per unit of the focal length
    assert np.ptp(column) == pytest.approx(2 * radius * 50, abs=1.5)
    assert np.ptp(row) == pytest.approx(2 * radius * 60, abs=1.5)


def test_light_comes_from_above_left():
    drawn = draw_meshes(GREY, [ball((0, 0, 3))[0]], ball()[1], CAMERA).astype(int).sum(2)
    assert drawn[20, 26] > drawn[25, 30] > drawn[30, 34]


@pytest.mark.parametrize(
    "middle", [(0, 0, -3), (0, 0, 0.2), (9, 0, 3), (0, -9, 3), (1e12, 0, 3), (0, 0, 1e12), (-1e30, 1e30, 1)]
)
def test_nothing_of_who_is_behind_or_aside(middle):
    mesh, faces = ball(middle)
    assert (draw_meshes(GREY, [mesh], faces, CAMERA) == GREY).all()


def test_who_is_right_before_the_camera_fills_the_picture():
    mesh, faces = ball((0, 0, 0.75), 0.6)
    drawn = draw_meshes(GREY, [mesh], faces, CAMERA)
    assert (drawn != GREY).any(2).mean() > 0.9


def test_large_pictures_are_drawn_as_they_are():
    """Above two and a half million pixels, without smooth edges."""
    image = np.zeros((1600, 1700, 3), np.uint8)
    mesh, faces = ball((0, 0, 3))
    large = draw_meshes(image, [mesh], faces, (1200, 1200, 850, 800))
    small = draw_meshes(image[::4, ::4], [mesh], faces, (300, 300, 212.125, 199.625))
    assert np.abs(large.reshape(400, 4, 425, 4, 3).mean((1, 3)) - small).mean() < 0.5


def test_nobody_is_no_change():
    assert (draw_meshes(GREY, [], ball()[1], CAMERA) == GREY).all()


def test_everybody_has_another_colour():
    colours = np.array([_colour(i) for i in range(12)])
    assert np.abs(colours[:, None] - colours).sum(2)[~np.eye(12, dtype=bool)].min() > 25
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100


def test_turntable_is_upright_and_turns():
    """A large ball with a small one on it, and a nose to the camera."""
    parts = [ball((3, 0.4, 7), 0.5), ball((3, -0.3, 7), 0.25), ball((3, -0.3, 6.4), 0.15)]
    count = len(parts[0][0])
    mesh = np.concatenate([vertices for vertices, _ in parts])
    faces = np.concatenate([face + i * count for i, (_, face) in enumerate(parts)])
    row = turntable(mesh, faces, views=4, size=(120, 80))
    assert row.shape == (120, 320, 3)
    views = np.split(row, 4, axis=1)
    ink = [(view != 255).any(2) for view in views]
    assert all(view.any() for view in ink)
    assert row[:2].min() == 255
    rows = np.flatnonzero(ink[0].any(1))
    upper, lower = slice(rows[0], rows[len(rows) // 3]), slice(rows[-(len(rows) // 3)], rows[-1])
    assert 1.5 * ink[0][upper].any(0).sum() < ink[0][lower].any(0).sum()  # the small one is above
    sides = [np.flatnonzero(view[upper].any(0)).mean() for view in ink]
    assert sides[1] + 4 < sides[0] < sides[3] - 4  # clockwise from above: first to the left of the picture
    middle = (mesh.min(0) + mesh.max(0)) / 2
    for k in range(4):
        turn = to_matrix(torch.tensor([0, k * np.pi / 2, 0], dtype=torch.float64)).numpy()
        first = turntable((mesh - middle) @ turn.T, faces, views=1, size=(120, 80))
        assert np.abs(first.astype(int) - views[k]).mean() < 0.1


def test_turntable_of_a_point_is_white():
    assert (turntable(np.zeros((3, 3)), np.array([[0, 1, 2]])) == 255).all()


def read(path) -> tuple[list[str], np.ndarray, np.ndarray]:
    rows = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert {row[0] for row in rows} == {"v", "f"}
    points = np.array([row[1:] for row in rows if row[0] == "v"], float)
    return comments, points, np.array([row[1:] for row in rows if row[0] == "f"], int)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return float((np.cross(a, b) * c).sum() / 6)


def test_obj_says_its_axes_and_keeps_the_order(tmp_path):
    mesh, faces = ball((0.1, -0.2, 208.333333))
    mesh = mesh.astype(np.float32)
    write_obj(tmp_path / "new" / "a.obj", mesh, faces, "camera", "person 1\nof \x1b[31mpicture.jpg\rv 0 0 0")
    comments, points, corners = read(tmp_path / "new" / "a.obj")
    assert comments[:-1] == ["# person 1", "# of \\x1b[31mpicture.jpg", "# v 0 0 0"]
    assert comments[-1] == (
        f"# axes: camera (x right, y down, z away from the camera), metres; {len(mesh)} vertices, {len(faces)} faces"
    )
    np.testing.assert_allclose(points, mesh, atol=1e-6)
    assert (corners == faces + 1).all()

    write_obj(tmp_path / "b.obj", mesh, faces, "y_up")
    comments, points, corners = read(tmp_path / "b.obj")
    assert "y_up (x right, y up, z to the camera)" in comments[0]
    half_turn = to_matrix(torch.tensor([np.pi, 0, 0], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(points, mesh @ half_turn.T, atol=2e-6)
    assert volume(points, corners - 1) == pytest.approx(volume(mesh.astype(float), faces), rel=1e-3)
    assert volume(points, corners - 1) > 0.4  # what was outside still is


def test_wrong_input_is_named(tmp_path):
    mesh, faces = ball((0, 0, 3))
    broken = mesh.copy()
    broken[7, 1] = np.nan
    with pytest.raises(HapError, match="mesh 1 of 2 has vertices that are not finite"):
        draw_meshes(GREY, [mesh, broken], faces, CAMERA)
    broken[7, 1] = np.inf
    with pytest.raises(HapError, match="the mesh has vertices that are not finite"):
        turntable(broken, faces)
    with pytest.raises(HapError, match=r"a\.obj: the mesh has vertices that are not finite"):
        write_obj(tmp_path / "a.obj", broken, faces)
    with pytest.raises(HapError, match="axes=z_up: camera or y_up"):
        write_obj(tmp_path / "a.obj", mesh, faces, "z_up")
    assert not list(tmp_path.iterdir())


def test_a_body_of_smpls_size_takes_a_moment():
    """More faces than its 13,776, at 640 x 480."""
    mesh, faces = ball((0, 0, 3), 0.9, times=6)
    assert len(faces) > 13_776
    image = np.zeros((480, 640, 3), np.uint8)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        draw_meshes(image, [mesh], faces, (500, 500, 320, 240))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_no_graphics_library_is_loaded():
    code = "import sys, hap.body.drawing; print(sorted({m.split('.')[0] for m in sys.modules}))"
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}  # no DISPLAY
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    for library in ("OpenGL", "pyrender", "chumpy", "trimesh", "torch"):
        assert f"'{library}'" not in result.stdout
