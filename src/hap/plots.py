"""Arrays in, pictures out: RGB uint8 (H, W, 3). Callbacks and programs decide when and where."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from hap.pose.skeletons import COCO, Skeleton, side_of

_SIDES = {"left": (60, 130, 255), "right": (255, 140, 40), None: (70, 220, 90)}  # blue, orange, green


def draw_pose(
    image: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Skeleton = COCO,
    threshold: float = 0.0,
    box: np.ndarray | None = None,
) -> np.ndarray:
    """Joints and the links between them, over a copy of the image: left ones blue, right ones orange, others green.

    Args:
        image: (H, W, 3) uint8.
        keypoints: (K, 3), x and y in pixels, third column the score, 0 for missing; others than above the threshold
            are not drawn.
        box: (4,), x, y, w, h, to frame the person.
    """
    image = image.copy()
    points = np.round(keypoints[:, :2].clip(-1e4, 1e4)).astype(int)
    drawn = keypoints[:, 2] > threshold
    # By the size of the person: in a picture of many the lines must not cover them.
    extent = np.ptp(points[drawn], axis=0).max() if drawn.any() else image.shape[0]
    thickness = max(1, round(min(extent, image.shape[0]) / 160))
    sides = [side_of(name) for name in skeleton.joints]
    if box is not None:
        x, y, w, h = np.round(box).astype(int).tolist()
        cv2.rectangle(image, (x, y), (x + w, y + h), (225, 225, 60), thickness)
    for a, b in skeleton.links:
        if drawn[a] and drawn[b]:
            side = sides[a] if sides[a] == sides[b] else None
            cv2.line(image, points[a].tolist(), points[b].tolist(), _SIDES[side], thickness, cv2.LINE_AA)
    for joint in np.flatnonzero(drawn):
        cv2.circle(image, points[joint].tolist(), thickness + 1, _SIDES[sides[joint]], -1, cv2.LINE_AA)
    return image


def close_up(
    image: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Skeleton,
    box: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """A person in a picture with joints, as `draw_pose` draws them: what is in and around a box (4,), x, y, w, h, in
    pixels, as a picture of `size` (height, width)."""
    scale = 1.3 * max(box[2] / size[1], box[3] / size[0])
    corner = box[:2] + box[2:] / 2 - scale * np.array([size[1], size[0]]) / 2
    matrix = np.column_stack([np.eye(2) / scale, -corner / scale])
    part = cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR)
    xy = (keypoints[:, :2] - corner) / scale
    return draw_pose(part, np.column_stack([xy, keypoints[:, 2]]), skeleton)


def hide_patches(image: np.ndarray, mask: np.ndarray, patch_size: int, grey: int = 128) -> np.ndarray:
    """Paint the removed patches grey. `mask` is (rows, columns), 1 for removed."""
    large = np.kron(mask, np.ones((patch_size, patch_size)))[: image.shape[0], : image.shape[1], None]
    return np.where(large > 0, np.uint8(grey), image)


def mosaic(columns: Sequence[Sequence[np.ndarray]], titles: Sequence[str], gap: int = 4) -> np.ndarray:
    """Samples side by side, one column each, on white; `titles` name the rows in a margin on the left.

    All images have one size; small ones are enlarged by a whole number.
    """
    height, width = columns[0][0].shape[:2]
    if (zoom := 256 // height) > 1:
        height, width = zoom * height, zoom * width
        columns = [
            [cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in column]
            for column in columns
        ]
    margin = 14 + max(cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0] for title in titles)
    size = (len(titles) * (height + gap) + gap, margin + len(columns) * (width + gap), 3)
    canvas = np.full(size, 255, np.uint8)
    for row, title in enumerate(titles):
        top = gap + row * (height + gap)
        cv2.putText(
            canvas, title, (6, top + height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60,) * 3, 1, cv2.LINE_AA
        )
        for column, images in enumerate(columns):
            left = margin + column * (width + gap)
            canvas[top : top + height, left : left + width] = images[row]
    return canvas


class Tile(NamedTuple):
    """An image (H, W, 3) in a coloured frame, with lines of text below it."""

    image: np.ndarray
    frame: tuple[int, int, int]
    text: tuple[str, ...]


# Frames of ranked lists.
QUERY, SAME, OTHER, UNKNOWN = (60, 130, 255), (40, 170, 70), (225, 50, 50), (150, 150, 150)


def tile_rows(rows: Sequence[Sequence[Tile]], border: int = 5, gap: int = 6) -> np.ndarray:
    """One strip of tiles per row on white; rows may differ in length. All images have one size; text is cut at
    the tile's edge."""
    height, width = rows[0][0].image.shape[:2]
    line, lines = 13, max(len(tile.text) for row in rows for tile in row)
    inner = height + 2 * border
    cell = (inner + lines * line + gap, width + 2 * border + gap)
    canvas = np.full((len(rows) * cell[0] + gap, max(map(len, rows)) * cell[1] + gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, (image, frame, text) in enumerate(row):
            top, left = gap + r * cell[0], gap + c * cell[1]
            part = canvas[top : top + cell[0] - gap, left : left + cell[1] - gap]
            part[:inner] = frame
            part[border : border + height, border : border + width] = image
            for i, words in enumerate(text):
                at = (1, inner + (i + 1) * line - 3)
                cv2.putText(part, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.33, (40,) * 3, 1, cv2.LINE_AA)
    return canvas


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """A picture (H, W, 3) below lines of text, on white."""
    line = 16
    above = np.full((line * len(lines) + 6, picture.shape[1], 3), 255, np.uint8)
    for i, words in enumerate(lines):
        at = (6, (i + 1) * line)
        cv2.putText(above, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40,) * 3, 1, cv2.LINE_AA)
    return np.concatenate([above, picture])


def curves(
    x: np.ndarray, values: Mapping[str, np.ndarray], xlabel: str, ylabel: str, title: str = ""
) -> np.ndarray:
    """Shares (R,), from 0 to 1, over x (R,), drawn in per cent."""
    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    for name, y in values.items():
        axes.plot(x, 100 * y, label=name)
    axes.set(xlim=(x[0], x[-1] if len(x) > 1 else x[0] + 1), ylim=(0, 101))
    axes.grid(alpha=0.3)
    if len(values) > 1:
        axes.legend()
    return _pixels(figure)


class Cloud(NamedTuple):
    """Points on a map, (N, 2), and what they are coloured by: integers (N,), below 0 for grey."""

    points: Tensor
    colour: Tensor


_COLOURS = (
    "#2a78d6", "#e8710a", "#1b9e5a", "#c8342f", "#7b52c7", "#8a5a44", "#d957a8", "#5f6b76", "#a3a51d", "#14a3b8",
)  # fmt: skip


def clouds(panels: Mapping[str, Cloud], columns: int) -> np.ndarray:
    """Maps side by side under their titles, at most `columns` in a row; up to ten colours."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for (title, (points, colour)), panel in zip(panels.items(), axes, strict=False):
        panel.set_title(title, fontsize=9, parse_math=False)
        grey = colour < 0
        panel.scatter(*points[grey].T, s=9, color="#c9ccd1", linewidths=0)
        for value in colour[~grey].unique().tolist():
            own = points[colour == value]
            panel.scatter(*own.T, s=22, color=_COLOURS[value], edgecolors="white", linewidths=0.4)
    for panel in axes:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_color("#c9ccd1")
        panel.set_visible(bool(panel.collections))
    return _pixels(figure)


def bars(scores: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Scores from 0 to 1 by name and what has them: a panel for each score, a bar for each of `scores`."""
    names = list(next(iter(scores.values())))
    figure = Figure(figsize=(2.6 * len(names) + 1.6, 0.7 + 0.34 * len(scores)), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for name, panel in zip(names, axes, strict=True):
        drawn = panel.barh(range(len(scores)), [row[name] for row in scores.values()], color=_COLOURS[0])
        panel.bar_label(drawn, fmt="%.3f", padding=3, fontsize=8)
        panel.set_title(name, fontsize=9)
        panel.set(xlim=(0, 1.18), xticks=[], ylim=(len(scores) - 0.4, -0.6))
        panel.set_yticks(range(len(scores)), list(scores), fontsize=8, parse_math=False)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    return _pixels(figure)


def draw_attention(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Where a token looks, over a copy of the image: (H, W, 3) uint8, shares of the patches (rows, columns). The patch
    with the most is the brightest."""
    height, width = image.shape[:2]
    heat = cv2.resize(attention / attention.max(), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return (0.4 * grey + 0.6 * colours).astype(np.uint8)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a name of the data: a box stands for it
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """RGB (H, W, 3) uint8, into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path.write_bytes(data.tobytes())  # cv2.imwrite says nothing of a full disk
