"""The table of answers that `hap predict` writes and `hap eval predictions=FILE` reads."""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.files import first_lines
from hap.data.sources import SOURCE_COLUMNS, source_columns
from hap.data.tables import read_table
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

OTHERS = (*SOURCE_COLUMNS, "positive")  # columns that are no attributes


def write_answers(
    path: Path, records: Sequence[Any], attributes: Sequence[str], probability: np.ndarray, threshold: Any
) -> None:
    """CSV: where a row is from (`source_columns`), a column of probabilities for each attribute, and `positive`: the
    names of those above their threshold, joined with `;`.

    Args:
        probability: float32 (N, A).
        threshold: one, or (A,).
    """
    yes = probability > np.float32(threshold)
    where = source_columns(records)
    # Names as the file system has them, also those that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*where, *attributes, "positive"])
        for place, row, said in zip(zip(*where.values(), strict=True), probability, yes, strict=True):
            positive = ";".join(name for name, is_so in zip(attributes, said, strict=True) if is_so)
            writer.writerow([*place, *map(str, row), positive])  # all digits of a float32


def read_answers(path: Path, images: Sequence[str], attributes: Sequence[str]) -> np.ndarray:
    """Probabilities for these images, float32 (N, A), from a table as above, or as spreadsheets export it; its columns
    are found by name. Decimal commas are read.

    An image is found by its path below the data set's folder, with which that in the table may end
    (`/data/pa100k/data/090001.jpg`); else by the name of the file, where one image and one row alone have it. Other
    images and columns are left out, and it is said.

    Raises:
        HapError: an attribute or an image is missing, an image is there twice, or a value is no probability; all
            mistakes, with their lines.
    """
    if not path.is_file():
        raise HapError(f"table not found: {path} (predictions=FILE)")
    columns, rows = read_table(path, ("image", *attributes), errors="surrogateescape")
    names, listed = [_path(name) for name in images], [_path(row.cells["image"]) for row in rows]
    found = _rows_of(names, listed)
    answers = np.zeros((len(images), len(attributes)), np.float32)
    errors = [(row.line, "no image") for row, parts in zip(rows, listed, strict=True) if not parts]
    missing, elsewhere = [], []
    for number, matches in enumerate(found):
        name = printable(images[number])
        if not matches:
            missing.append(name)
            continue
        row, *again = (rows[match] for match in matches)
        errors += [(r.line, f"the image of line {row.line} again, {name}") for r in again]
        values = [_probability(row.cells[attribute]) for attribute in attributes]
        if row.too_long:
            errors.append((row.line, "more fields than the first line"))
        elif wrong := [a for a, value in zip(attributes, values, strict=True) if value is None]:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            cell = row.cells[wrong[0]]
            errors.append((row.line, f"{wrong[0]} is {cell!r}, no probability from 0 to 1{more}"))
        else:
            answers[number] = values
        if not _same_end(listed[matches[0]], names[number]):
            elsewhere.append(f"{name}: {printable(row.cells['image'])}")
    problems = [f"line {line}: {problem}" for line, problem in sorted(errors)]
    if missing:
        problems.append(f"{len(missing):,} of {len(images):,} images are missing, {missing[0]} is the first")
    if problems:
        raise HapError(f"{path} has {len(problems)} mistakes{first_lines(problems)}")
    used = set().union(*found)
    unused = [printable(row.cells["image"]) for number, row in enumerate(rows) if number not in used]
    for reason, left in (
        ("images found by the name of their file, in another folder", elsewhere),
        ("images left out that are not in the split", unused),
        ("columns left out that are no attributes", [c for c in columns if c not in (*attributes, *OTHERS)]),
    ):
        if left:
            log.warning("%s: %s %s%s", path, f"{len(left):,}", reason, first_lines(left, 3))
    return answers


def _path(name: str) -> tuple[str, ...]:
    """Its parts, the same for a name on disk and what a table makes of it."""
    name = name.replace("\r\n", "\n").replace("\r", "\n").strip().replace("\\", "/")
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _rows_of(images: Sequence[tuple[str, ...]], rows: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """The rows that mean each image; none means two images."""
    whole, ends = defaultdict(list), defaultdict(list)
    for number, parts in enumerate(rows):
        whole[parts].append(number)
        for start in range(len(parts)):
            ends[parts[start:]].append(number)
    found: list[list[int]] = [[] for _ in images]
    taken: set[int] = set()

    def take(image: int, candidates: Sequence[int]) -> None:
        if not found[image]:
            found[image] = [number for number in candidates if number not in taken]
            taken.update(found[image])

    for image, parts in enumerate(images):
        take(image, whole[parts])
    for image in sorted(range(len(images)), key=lambda image: -len(images[image])):  # a/1.jpg before 1.jpg
        take(image, ends[images[image]])
    files = Counter(parts[-1] for parts in images)
    for image, parts in enumerate(images):
        candidates = ends[parts[-1:]]
        if files[parts[-1]] == 1 and len({rows[number] for number in candidates}) == 1:
            take(image, candidates)
    return found


def _same_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    length = min(len(one), len(other))
    return one[-length:] == other[-length:]


def _probability(text: str) -> float | None:
    try:
        value = float(text.replace(",", ".").replace("_", " "))  # 0_1 is a number to Python alone
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
