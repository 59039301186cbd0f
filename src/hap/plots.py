"""Arrays in, pictures out: RGB uint8 (H, W, 3). Callbacks and programs decide when and where."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# COCO's 17 keypoints, left first. Left is drawn in blue, right in orange, the middle in green.
COCO_SKELETON = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (11, 12), (5, 11), (6, 12)),
    *((5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16)),
)
_LEFT, _RIGHT, _MIDDLE = (60, 130, 255), (255, 140, 40), (70, 220, 90)


def draw_skeleton(
    image: np.ndarray, keypoints: np.ndarray, skeleton: Sequence[tuple[int, int]] = COCO_SKELETON
) -> np.ndarray:
    """Bones between keypoints (K, 3), x and y in pixels, third column 0 for missing, over a copy of the image."""
    image = image.copy()
    thickness = max(1, image.shape[0] // 160)
    points = np.round(keypoints[:, :2]).astype(int)
    present = keypoints[:, 2] > 0

    def colour(joint: int) -> tuple[int, int, int]:
        return _MIDDLE if joint == 0 else _LEFT if joint % 2 else _RIGHT

    for a, b in skeleton:
        if present[a] and present[b]:
            same_side = colour(a) if colour(a) == colour(b) else _MIDDLE
            cv2.line(image, points[a].tolist(), points[b].tolist(), same_side, thickness, cv2.LINE_AA)
    for joint in np.flatnonzero(present):
        cv2.circle(image, points[joint].tolist(), thickness + 1, colour(int(joint)), -1, cv2.LINE_AA)
    return image


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


def curves(
    x: np.ndarray, values: Mapping[str, np.ndarray], xlabel: str, ylabel: str, title: str = ""
) -> np.ndarray:
    """Shares (R,), from 0 to 1, over x (R,), drawn in per cent."""
    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    for name, y in values.items():
        axes.plot(x, 100 * y, label=name)
    axes.set(xlim=(x[0], x[-1] if len(x) > 1 else x[0] + 1), ylim=(0, 101))
    axes.grid(alpha=0.3)
    if len(values) > 1:
        axes.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """RGB (H, W, 3) uint8, into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
