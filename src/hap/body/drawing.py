"""Pictures and files of meshes, without a screen or a graphics library: RGB uint8 (H, W, 3), and Wavefront's .obj.

Legend: V vertices, F faces; metres, in the frame of the camera: x right, y down, z forward.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from hap.body.raster import rasterise, vertex_normals
from hap.errors import HapError, printable

NEAR = 0.1  # metres; faces that come nearer to the camera, or lie behind it, are not drawn
SMOOTH = 2_500_000  # pixels; smaller pictures are drawn at twice their size, so that edges come out smooth
LIGHT = np.array([-0.35, -0.6, -0.72])  # where it comes from: above, left, from behind the camera
FAR = 1e6  # pixels; nobody is so near and so far aside, and more would overflow
AMBIENT = 0.35  # of the light is everywhere


def draw_meshes(
    image: np.ndarray, meshes: Sequence[np.ndarray], faces: np.ndarray, camera: Sequence[float] | np.ndarray
) -> np.ndarray:
    """People over a copy of the image, shaded, each in another colour; who is nearer hides who is farther.

    Args:
        image: (H, W, 3) uint8 RGB.
        meshes: (V, 3) each. What lies outside the picture or not before the camera is cut off.
        faces: int (F, 3), of all meshes, counter-clockwise from outside.
        camera: (4,), fx, fy, cx, cy in pixels.

    Raises:
        HapError: a vertex is not finite.
    """
    factor = 2 if image.shape[0] * image.shape[1] <= SMOOTH else 1
    size = np.array(image.shape[1::-1]) * factor  # width, height
    focal, middle = np.split(np.asarray(camera, np.float64), 2)
    layer = np.zeros((*size[::-1], 4), np.uint8)  # colours, and 255 where somebody is
    nearness = np.zeros(size[::-1], np.float32)
    for number, vertices in enumerate(meshes):
        vertices = _checked(vertices, f"mesh {number} of {len(meshes)}")
        shown = faces[(vertices[faces, 2] > NEAR).all(1)]
        depth = np.maximum(vertices[:, 2], NEAR)
        xy = factor * (focal * vertices[:, :2] / depth[:, None] + middle + 0.5) - 0.5
        xy = xy.clip(-FAR, FAR)
        drawn = xy[np.unique(shown)]
        if not len(drawn):
            continue
        low = np.floor(drawn.min(0)).clip(0, size).astype(int)
        high = np.ceil(drawn.max(0) + 1).clip(low, size).astype(int)
        part = slice(low[1], high[1]), slice(low[0], high[0])
        near = nearness[part].copy()
        pixels, face, second, third = rasterise(xy - low, depth, shown, near)
        nearness[part] = near
        corners = _shades(vertices, faces)[shown[face]]  # (pixels, 3)
        shade = corners[:, 0] * (1 - second - third) + corners[:, 1] * second + corners[:, 2] * third
        row, column = np.divmod(pixels, max(near.shape[1], 1))
        colour = np.array([*_colour(number), 255], np.float32)
        layer[part][row, column] = colour * np.column_stack([*[shade.clip(0, 1)] * 3, np.ones_like(shade)])
    layer = cv2.resize(layer, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    result, covered = image.copy(), layer[..., 3] > 0
    seen = layer[covered].astype(np.float32)
    result[covered] = np.round(image[covered] * (1 - seen[:, 3:] / 255) + seen[:, :3])
    return result


def turntable(
    vertices: np.ndarray, faces: np.ndarray, views: int = 4, size: tuple[int, int] = (256, 160)
) -> np.ndarray:
    """A person on white as the camera sees it and then from other sides, in one row: (height, views * width, 3).

    Args:
        vertices: (V, 3). Each view is turned on by a `views`-th of a turn about the camera's vertical, clockwise from
            above.
        faces: int (F, 3), counter-clockwise from outside.
        size: height and width of a view; the person fills it.

    Raises:
        HapError: a vertex is not finite.
    """
    vertices = _checked(vertices, "the mesh")
    height, width = size
    points = vertices - (vertices.min(0) + vertices.max(0)) / 2
    tall, wide = max(np.ptp(points[:, 1]), 1e-6), max(2 * np.hypot(points[:, 0], points[:, 2]).max(), 1e-6)
    distance = 10 * max(tall, wide, NEAR)  # from far away, so that the near side is hardly larger
    focal = 0.9 * min(height / tall, width / wide) * distance
    camera = (focal, focal, (width - 1) / 2, (height - 1) / 2)
    pictures = []
    for angle in 2 * np.pi * np.arange(views) / views:
        cos, sin = np.cos(angle), np.sin(angle)
        turned = points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) + [0, 0, distance]
        pictures.append(draw_meshes(np.full((height, width, 3), 255, np.uint8), [turned], faces, camera))
    return np.hstack(pictures)


def write_obj(
    path: Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    axes: Literal["camera", "y_up"] = "camera",
    comment: str = "",
) -> None:
    """A mesh for other programs, vertices and faces in their order, into a folder that is made if need be.

    Args:
        vertices: (V, 3).
        faces: int (F, 3), from 0; in the file they count from 1.
        axes: `camera` as they are, y down; `y_up` turned by half a turn about x, as most programs show files upright.
        comment: lines at the beginning of the file; what the axes are is written there too.

    Raises:
        HapError: a vertex is not finite; another name of axes.
    """
    conventions = {
        "camera": "x right, y down, z away from the camera",
        "y_up": "x right, y up, z to the camera",
    }
    if axes not in conventions:
        raise HapError(f"axes={axes}: {' or '.join(conventions)}")
    vertices = _checked(vertices, f"{printable(str(path))}: the mesh")
    if axes == "y_up":
        vertices = vertices * [1, -1, -1]
    lines = [f"# {printable(line)}\n" for line in comment.splitlines()]
    lines += [f"# axes: {axes} ({conventions[axes]}), metres; {len(vertices)} vertices, {len(faces)} faces\n"]
    lines += ["v {:.6f} {:.6f} {:.6f}\n".format(*point) for point in vertices.tolist()]
    lines += ["f {} {} {}\n".format(*face) for face in (faces + 1).tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _checked(vertices: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(vertices).all():
        raise HapError(
            f"{name} has vertices that are not finite: the model gave no body; look at its weights"
        )
    return np.asarray(vertices, np.float64)


def _shades(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """How bright each vertex is (V,), from `AMBIENT` to 1."""
    facing = vertex_normals(vertices, faces) @ (LIGHT / np.linalg.norm(LIGHT))
    return AMBIENT + (1 - AMBIENT) * np.maximum(facing, 0)


def _colour(number: int) -> tuple[float, float, float]:
    """Of the person of a number, RGB up to 255: hues by the golden ratio, so that the next one is always another."""
    r, g, b = colorsys.hsv_to_rgb((0.58 + 0.618034 * number) % 1, 0.45, 0.97)
    return 255 * r, 255 * g, 255 * b
