"""The table of answers that `hap predict` writes and `hap eval predictions=FILE` reads."""

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.files import first_lines
from hap.data.tables import read_table
from hap.errors import HapError, printable

log = logging.getLogger(__name__)


def write_answers(
    path: Path, records: Sequence[Any], attributes: Sequence[str], probability: np.ndarray, threshold: Any
) -> None:
    """CSV: `image`, for videos `frame` and `seconds`, a column of probabilities for each attribute, and `positive`:
    the names of those above their threshold, joined with `;`.

    Args:
        probability: float32 (N, A).
        threshold: one, or (A,).
    """
    yes = probability > np.float32(threshold)
    video = [column for column in ("frame", "seconds") if any(hasattr(r, column) for r in records)]
    # Names as the file system has them, also those that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *video, *attributes, "positive"])
        for record, row, said in zip(records, probability, yes, strict=True):
            where = [getattr(record, column, "") for column in video]
            positive = ";".join(name for name, is_so in zip(attributes, said, strict=True) if is_so)
            writer.writerow([record.name, *where, *map(str, row), positive])  # all digits of a float32


def read_answers(path: Path, images: Sequence[str], attributes: Sequence[str]) -> np.ndarray:
    """Probabilities for these images, float32 (N, A), from a table as above; its columns are found by name.

    An image is found by its name in the data set, or by that of its file where no other has it. Other images and
    columns are left out.

    Raises:
        HapError: an attribute or an image is missing or there twice, or a value is no probability; names the lines.
    """
    if not path.is_file():
        raise HapError(f"table not found: {path} (predictions=FILE)")
    numbers = {name: i for i, name in enumerate(images)}
    files = Counter(name.rpartition("/")[2] for name in images)
    by_file = {name.rpartition("/")[2]: i for name, i in numbers.items()}
    found = np.full((len(images), len(attributes)), np.nan, np.float32)
    lines: dict[int, int] = {}
    errors, others = [], 0
    for line, cells, too_long in read_table(path, ("image", *attributes)).rows:
        image = cells["image"]
        file = image.replace("\\", "/").rpartition("/")[2]
        number = numbers.get(image, by_file.get(file) if files[file] == 1 else None)
        if number is None:
            others += 1
            continue
        wrong = [name for name in attributes if not _is_probability(cells[name])]
        if too_long:
            errors.append(f"line {line}: more fields than the first line")
        elif number in lines:
            errors.append(f"line {line}: {image!r} is in line {lines[number]} already")
        elif wrong:
            errors.append(f"line {line}: {wrong[0]} is {cells[wrong[0]]!r}, which is no probability")
        else:
            found[number] = [float(cells[name]) for name in attributes]
        lines.setdefault(number, line)
    if missing := [printable(name) for name in images if numbers[name] not in lines]:
        errors.append(f"{len(missing):,} of {len(images):,} images are missing, the first is {missing[0]}")
    if errors:
        raise HapError(f"{path} has {len(errors)} mistakes{first_lines(errors)}")
    if others:
        log.warning("%s: %d rows of images that are not in the split are left out", path, others)
    return found


def _is_probability(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
