"""People with what is said of them: arrays in, pictures out, RGB uint8 (H, W, 3).

Texts are drawn with Pillow and the font that matplotlib ships: OpenCV's has ASCII only.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CONFIDENT = 0.9  # a yes is drawn in bold from this probability
HEIGHT, LINE, GAP, BAR = 448, 16, 10, 60  # of a person on a card, of a line, between things, of a bar; pixels

INK, PALE = (30, 30, 35), (140, 140, 145)
YES, NO, WRONG = (0, 114, 178), (185, 185, 190), (213, 94, 0)  # blue, grey, orange: told apart by all eyes


class Answer(NamedTuple):
    """What is said of one attribute of one person.

    Attributes:
        probability: of yes.
        threshold: above it the answer is yes.
        label: 1 yes, 0 no, below 0 unknown.
    """

    name: str
    probability: float
    threshold: float = 0.5
    label: int = -1

    @property
    def yes(self) -> bool:
        return self.probability > self.threshold

    @property
    def wrong(self) -> bool:
        return self.label >= 0 and self.yes != bool(self.label)

    @property
    def colour(self) -> tuple[int, int, int]:
        return WRONG if self.wrong else YES if self.yes else NO

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.0%}"


def attribute_card(image: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
    """A person (H, W, 3), and beside it all attributes: a bar as long as the probability, a tick at the threshold. A
    yes is blue, in bold from `CONFIDENT`; where labels are known, what is wrong is orange."""
    person = _fit(image, HEIGHT, HEIGHT)
    rows = HEIGHT // LINE - 1
    columns = [answers[i : i + rows] for i in range(0, len(answers), rows)]
    names = [max(_width(answer.name, bold=True) for answer in column) + GAP for column in columns]
    step = BAR + _width("100%") + 3 * GAP
    legend = f"bold: yes with {CONFIDENT:.0%} or more"
    if any(answer.label >= 0 for answer in answers):
        legend += "; orange: wrong"
    left = person.shape[1] + GAP
    width = left + max(sum(names) + len(columns) * step, _width(legend) + GAP)
    canvas = Image.new("RGB", (width, HEIGHT), "white")
    canvas.paste(Image.fromarray(person), (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((left, HEIGHT - LINE), legend, PALE, _font())
    for column, name_width in zip(columns, names, strict=True):
        for row, answer in enumerate(column):
            top, bar = row * LINE, left + name_width
            bold = answer.yes and answer.probability >= CONFIDENT
            draw.text((left, top), answer.name, INK if answer.yes or answer.wrong else PALE, _font(bold))
            draw.rectangle((bar, top + 4, bar + BAR, top + LINE - 4), (238, 238, 240))
            draw.rectangle(
                (bar, top + 4, bar + round(BAR * answer.probability), top + LINE - 4), answer.colour
            )
            tick = bar + round(BAR * answer.threshold)
            draw.line((tick, top + 2, tick, top + LINE - 2), INK)
            draw.text(
                (bar + BAR + 6, top), f"{answer.probability:.0%}", INK if answer.yes else PALE, _font(bold)
            )
        left += name_width + step
    return np.asarray(canvas)


def contact_sheet(
    images: Sequence[np.ndarray], texts: Sequence[Sequence[str]], columns: int = 6
) -> np.ndarray:
    """People in a grid, each with lines of text beside it; lines that do not fit are left out or cut."""
    height, width, beside = 10 * LINE, 80, 170
    cell = height + GAP, width + beside + GAP
    columns = min(columns, len(images))
    size = GAP + columns * cell[1], GAP + -(-len(images) // columns) * cell[0]
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        top, left = GAP + i // columns * cell[0], GAP + i % columns * cell[1]
        canvas.paste(Image.fromarray(_fit(image, height, width)), (left, top))
        for row, line in enumerate(lines[: height // LINE]):
            draw.text((left + width + 6, top + row * LINE), _cut(line, beside - 6), INK, _font())
    return np.asarray(canvas)


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarged or shrunk so that it just fits into a box of this size."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@lru_cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), 12)


def _width(text: str, bold: bool = False) -> int:
    return round(_font(bold).getlength(text))


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text + "…") > width:
        text = text[:-1]
    return text + "…"
