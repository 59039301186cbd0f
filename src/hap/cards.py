"""People with what is said of them: arrays in, pictures out, RGB uint8 (H, W, 3).

Texts are drawn with Pillow and the font that matplotlib ships (Latin, Greek, Cyrillic; other characters are boxes):
OpenCV's has ASCII only.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hap.errors import printable

CONFIDENT = 90  # a yes is drawn in bold from this percentage
HEIGHT, LINE, GAP, BAR = 448, 20, 12, 64  # of a person on a card, of a line, between things, of a bar; pixels
LONGEST = 260  # pixels of a name; longer ones are cut

INK, PALE, TRACK = (30, 30, 35), (115, 115, 120), (236, 236, 238)
YES, NO, WRONG = (0, 114, 178), (175, 175, 180), (213, 94, 0)  # blue, grey, orange: told apart by all eyes


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
    def percent(self) -> str:
        return f"{self.probability:.0%}"

    @property
    def confident(self) -> bool:
        """By the percentage that is shown."""
        return self.yes and round(100 * self.probability) >= CONFIDENT

    @property
    def colour(self) -> tuple[int, int, int]:
        return WRONG if self.wrong else YES if self.yes else NO

    @property
    def mark(self) -> str:
        """Whether a yes is right, what is wrong, and what cannot be told. A no is rarely wrong: only that is marked."""
        return "?" if self.label < 0 else "✗" if self.wrong else "✓" if self.yes else ""


def attribute_card(image: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
    """A person (H, W, 3), and beside it all attributes: a bar as long as the probability, a line across it at the
    threshold. A yes is blue, in bold from `CONFIDENT`; where labels are known, what is wrong is orange."""
    person = _fit(image, HEIGHT, HEIGHT)
    labelled = any(answer.label >= 0 for answer in answers)
    legend = [f"blue: yes, bold from {CONFIDENT}%", "| threshold"]
    if labelled:
        legend += ["✓ right", "✗ orange: wrong"]
        if any(answer.label < 0 for answer in answers):
            legend.append("? not labelled")
    most = (HEIGHT - 2 * LINE) // LINE  # rows above the legend
    num_columns = -(-len(answers) // most)
    rows = -(-len(answers) // num_columns)
    columns = [answers[i : i + rows] for i in range(0, len(answers), rows)]
    marks = _width("✗", bold=True) + 4 if labelled else 0
    widths = [marks + max(_width(_shown(answer), bold=True) for answer in column) + GAP for column in columns]
    beside = BAR + 6 + _width("100%", bold=True) + 2 * GAP
    left = person.shape[1] + GAP
    right = max(left + sum(widths) + len(columns) * beside, left + max(map(_width, legend)) + GAP)
    lines = _wrapped(legend, right - left)
    height = max(HEIGHT, (rows + len(lines) + 1) * LINE)
    canvas = Image.new("RGB", (right, height), "white")
    canvas.paste(Image.fromarray(person), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(lines):
        draw.text((left, height - (len(lines) - number) * LINE), text, PALE, _font())
    for column, width in zip(columns, widths, strict=True):
        for row, answer in enumerate(column):
            top, bar = 4 + row * LINE, left + width
            ink = INK if answer.yes or answer.wrong else PALE
            font = _font(answer.confident)
            if labelled:
                draw.text((left, top), answer.mark, answer.colour if answer.label >= 0 else PALE, _font(True))
            draw.text((left + marks, top), _shown(answer), ink, font)
            draw.rectangle((bar, top + 4, bar + BAR, top + 13), TRACK)
            draw.rectangle((bar, top + 4, bar + round(BAR * answer.probability), top + 13), answer.colour)
            tick = bar + round(BAR * answer.threshold)
            draw.line((tick, top + 1, tick, top + 16), INK)
            draw.text((bar + BAR + 6, top), answer.percent, ink, font)
        left += width + beside
    return np.asarray(canvas)


def contact_sheet(
    images: Sequence[np.ndarray], lines: Sequence[Sequence[str | Answer]], columns: int = 6
) -> np.ndarray:
    """People in a grid, each with lines beside it: text, or answers as on a card, in bold and with marks. Lines that do
    not fit are left out or cut."""
    height, width, beside = 8 * LINE, 84, 190
    cell = height + GAP, width + beside + GAP
    columns = min(columns, len(images))
    size = GAP + columns * cell[1], GAP + -(-len(images) // columns) * cell[0]
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, said) in enumerate(zip(images, lines, strict=True)):
        top, left = GAP + i // columns * cell[0], GAP + i % columns * cell[1]
        canvas.paste(Image.fromarray(_fit(image, height, width)), (left, top))
        for row, line in enumerate(said[: height // LINE]):
            at, bold, ink, end = (left + width + 6, top + row * LINE), False, INK, ""
            if isinstance(line, Answer):
                bold, ink = line.confident, WRONG if line.wrong else INK
                end = f" {line.percent}{' ✗' if line.wrong else ''}"
                line = line.name
            room = beside - 6 - _width(end, bold)
            draw.text(at, _cut(line, room, bold) + end, ink, _font(bold))
    return np.asarray(canvas)


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarged or shrunk so that it just fits into a box of this size."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@lru_cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), 13)


def _shown(answer: Answer) -> str:
    return _cut(answer.name, LONGEST, bold=True)


def _width(text: str, bold: bool = False) -> int:
    return round(_font(bold).getlength(text))


@lru_cache(4096)
def _cut(text: str, width: int, bold: bool = False) -> str:
    """As much of a text as fits, on one line."""
    text = printable(text)
    if _width(text, bold) <= width:
        return text
    while text and _width(text + "…", bold) > width:
        text = text[:-1]
    return text + "…"


def _wrapped(phrases: Sequence[str], width: int) -> list[str]:
    lines = [phrases[0]]
    for phrase in phrases[1:]:
        longer = f"{lines[-1]}    {phrase}"
        if _width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(phrase)
    return lines
