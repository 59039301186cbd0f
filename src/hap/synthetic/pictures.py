"""Whole pictures with several drawn people, near and far, before each other and cut by the border, with what is true of
each: joints, what hides them, the pixels that are seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from hap.synthetic.body import body_model
from hap.synthetic.person import identity, pick
from hap.synthetic.pose import sample_pose
from hap.synthetic.render import (
    KEYPOINT_JOINTS,
    NOBODY,
    Canvas,
    Figure,
    box_around,
    look,
    place_figure,
    resized,
)
from hap.synthetic.scene import FRAME, Camera, camera
from hap.synthetic.smpl import Posed

# Points of the body: COCO's 17, then these. Names of joints in the three sets are theirs.
PELVIS, THORAX, UPPER_NECK, NECK, HEAD_TOP = range(17, 22)
# How far each lies under the skin and clothes, metres: nearer surfaces hide it.
_COVER = np.repeat(
    [0.03, 0.05, 0.12, 0.09, 0.07, 0.20, 0.12, 0.10, 0.20, 0.16, 0.12, 0.12, 0.10],
    [3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1],
)
LEAST = 60  # pixels of the picture; of whom less is seen, nobody would be labelled
MOST_PEOPLE = 5
CROWD_SHARE = 0.08  # of the pictures that have a crowd in the back
_FIRST, _CROWD = 1, 200  # owners of pixels: people, and the crowd as one


@dataclass(frozen=True)
class Seen:
    """Somebody in a picture, or a crowd as one.

    Attributes:
        points: float [22, 2], x, y in pixels from 0, pixel centres at whole numbers; empty of a crowd.
        visibility: [22] 2 visible, 1 hidden, 0 outside the picture.
        box: [4] x, y, width, height of what is seen.
        mask: bool [H, W], the pixels that are seen.
        height: of the whole person in the picture, pixels, seen or not.
        body: in the world of the camera; None of a crowd.
        view: the camera of the picture.
    """

    points: np.ndarray
    visibility: np.ndarray
    box: np.ndarray
    mask: np.ndarray
    height: float
    body: Posed | None
    view: Camera

    def in_camera(self) -> Posed:
        """The body in the frame of the camera."""
        assert self.body is not None, "a crowd has no body"
        return self.body.moved(self.view.rotation, self.view.translation)


def draw_picture(
    seed: int, number: int, longer: int = 320, crowds: bool = True, most: int = MOST_PEOPLE
) -> tuple[np.ndarray, list[Seen], int]:
    """Picture `number` of the world `seed`, and who is in it, the crowd last; and the JPEG quality of its camera.

    Args:
        longer: side of the picture in pixels; the other is three quarters of it.
        crowds: whether some pictures have one.
        most: people in a picture, the crowd apart.

    Returns:
        image uint8 RGB [H, W, 3], people, quality.
    """
    rng = np.random.default_rng([seed, 43, number])
    view = camera(seed, number % 64)
    people = _people(view, rng, most)
    crowd = _crowd(view, rng) if rng.random() < CROWD_SHARE and crowds else []
    size = (longer, 3 * longer // 4) if rng.random() < 0.65 else (3 * longer // 4, longer)
    region = _region(box_around(view.project(people[0].drawn)[0]), size, rng)
    image, found = draw_figures(view, region, size, people, rng, crowd)
    return image, [person for person in found if person.mask.sum() >= LEAST], view.quality


def draw_figures(
    view: Camera,
    region: np.ndarray,
    size: tuple[int, int],
    people: Sequence[Figure],
    rng: np.random.Generator,
    crowd: Sequence[Figure] = (),
) -> tuple[np.ndarray, list[Seen]]:
    """The picture, of `size` (width, height), that shows a `region` [4] (x, y, width, height) of the camera's frame;
    and what is seen of everybody in it, and of the crowd where there is one."""
    zoom = 1.25  # drawn larger, so that edges come out smooth
    canvas = Canvas(view, (round(size[0] * zoom), round(size[1] * zoom)), region)
    for figure in [*crowd, *people]:
        canvas.shadow(figure)
    for figure in crowd:
        canvas.figure(figure, _CROWD)
    for i, figure in enumerate(people):
        canvas.figure(figure, _FIRST + i)
    final = replace(view, intrinsics=resized(region, size) @ view.intrinsics)
    found = [_seen(canvas, figure, _FIRST + i, size, final) for i, figure in enumerate(people)]
    mask = _mask(canvas, _CROWD, size)
    if mask.any():
        found.append(Seen(np.empty((0, 2)), np.empty(0, int), _bounds(mask), mask, 0.0, None, final))
    return look(canvas.image, size, view, rng), found


def _people(view: Camera, rng: np.random.Generator, most: int) -> list[Figure]:
    """One to five; the others stand around the first, sometimes before or behind somebody."""
    count = min(pick(rng, range(1, MOST_PEOPLE + 1), (0.3, 0.3, 0.2, 0.12, 0.08)), most)
    distance = rng.uniform(*view.distance)
    across = rng.uniform(-0.2, 0.2) * distance * FRAME[1] / view.intrinsics[0, 0]
    figures = []
    for i in range(count):
        side = 0.0 if i == 0 else pick(rng, (-1, 1)) * rng.uniform(0.3, 0.7 + 0.5 * i)
        depth = 0.0 if i == 0 else rng.uniform(-0.25, 0.6) * distance
        figures.append(_stand(across + side, distance + depth, rng))
    return figures


def _crowd(view: Camera, rng: np.random.Generator) -> list[Figure]:
    """Six to ten people close together, far behind."""
    distance, middle = 2.2 * view.distance[1], rng.uniform(-1.5, 1.5)
    return [
        _stand(middle + rng.normal(0, 0.9), distance + rng.uniform(0, 2), rng)
        for _ in range(int(rng.integers(6, 11)))
    ]


def _stand(across: float, distance: float, rng: np.random.Generator) -> Figure:
    facing = rng.normal(pick(rng, (0, np.pi, np.pi / 2, -np.pi / 2), (0.45, 0.25, 0.15, 0.15)), 0.3)
    who = identity(1 << 41, int(rng.integers(1 << 30)))
    yaw = facing + np.arctan2(-across, distance)
    return place_figure(who, sample_pose(rng), yaw, np.array([across, -distance]))


def _region(outline: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The part of the camera's frame that is the picture: around the first person, who may be cut off."""
    x, y, w, h = outline
    height = h / rng.uniform(0.4, 0.95)
    width = height * size[0] / size[1]
    left = x + w / 2 - width * rng.uniform(0.25, 0.75)
    top = y + h / 2 - height * rng.uniform(0.4, 0.6)
    return np.array([left, top, width, height])


def body_points(figure: Figure) -> np.ndarray:
    """The 22 points in the world, [22, 3]."""
    body, joints = body_model(), figure.joints
    coco = np.concatenate([figure.body[body.landmarks], joints[list(KEYPOINT_JOINTS)]])
    thorax = (joints[16] + joints[17]) / 2
    return np.concatenate([coco, joints[:1], [thorax], joints[[15, 12]], figure.body[[body.head_top]]])


def _mask(canvas: Canvas, owner: int, size: tuple[int, int]) -> np.ndarray:
    mine = (canvas.owner == owner).astype(np.uint8)
    return cv2.resize(mine, size, interpolation=cv2.INTER_NEAREST) > 0


def _bounds(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]], float)


def _seen(canvas: Canvas, figure: Figure, owner: int, size: tuple[int, int], view: Camera) -> Seen:
    points, depth = canvas.view.project(body_points(figure))
    column, row = np.round(points.T).astype(int)
    inside = (column >= 0) & (column < canvas.size[0]) & (row >= 0) & (row < canvas.size[1])
    column, row = np.where(inside, column, 0), np.where(inside, row, 0)
    surface = 1 / np.maximum(canvas.nearness[row, column], 1e-6)
    on_me = np.isin(canvas.owner[row, column], (NOBODY, owner))
    visible = on_me & (depth - surface < _COVER)
    mask = _mask(canvas, owner, size)
    shrink = size[0] / canvas.size[0]
    outline = box_around(canvas.view.project(figure.drawn)[0])
    return Seen(
        points=(points + 0.5) * shrink - 0.5,
        visibility=np.where(inside, np.where(visible, 2, 1), 0),
        box=_bounds(mask) if mask.any() else np.zeros(4),
        mask=mask,
        height=float(outline[3] * shrink),
        body=Posed(figure.pose, np.array(figure.person.betas), figure.translation, figure.person.female),
        view=view,
    )
