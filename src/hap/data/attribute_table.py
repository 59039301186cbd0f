"""Attributes of one's own: CSV tables with a column for each."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hap.data.attribute import UNKNOWN, AttributeRecords, Splits, log_labels
from hap.data.attribute_splits import choose
from hap.data.files import file_id, first_lines, relative
from hap.data.tables import Row, read_table
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
IMAGE = ("image", "path")  # the column of the image is called one of these
TAKEN = {
    *IMAGE,
    "split",
    "frame",
    "seconds",
    "positive",
}  # columns with a meaning, here or in hap's own tables
USUAL = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0, "yes": 1, "no": 0, "": UNKNOWN}


class _Part(NamedTuple):
    """The rows of one split, with the file that they are in."""

    file: Path
    image: str  # name of its column
    attributes: list[str]
    rows: list[Row]


def read_attribute_table(
    root: Path,
    table: str = "attributes.csv",
    labels: Mapping[str, Any] | None = None,
    attributes: Sequence[str] | None = None,
    train_on: str = "train",
) -> Splits:
    """One table with a column `split` (train, val or test), or without it `train.csv`, `test.csv` and perhaps
    `val.csv`. The column `image` or `path` names an image below `root`; each other column is an attribute. Columns
    go together by name, their order is that of the training table. Without a validation part, val is the test part.

    By default 1, true and yes are positive, 0, false and no negative (in any case), and an empty cell is unknown.

    Args:
        labels: what else the cells say: {positive: 1, negative: -1, unknown: 0}; unknown may be left out. An empty
            cell stays unknown.
        attributes: names, to take these alone, in this order.
        train_on: "train"; or "trainval", which leaves no validation part.

    Raises:
        HapError: columns, values or images are missing or wrong; names files and lines.
    """
    choose("train_on", train_on, ("train", "trainval"))
    root = Path(root)
    parts = _parts(root, table)
    if lacking := [split for split in ("train", "test") if not parts.get(split)]:
        raise HapError(f"{root}: no rows of {' and '.join(lacking)}")
    names = parts["train"].attributes
    for part in parts.values():
        if missing := [name for name in names if name not in part.attributes]:
            raise HapError(f"{part.file}: no column {', '.join(missing)}, which the training table has")
        if new := [name for name in part.attributes if name not in names]:
            raise HapError(f"{part.file}: the training table has no column {', '.join(new)}")
    if attributes is not None:
        if unknown := [name for name in attributes if name not in names]:
            raise HapError(
                f"data.reader.attributes: no column {', '.join(unknown)}; there are {', '.join(names)}"
            )
        names = list(attributes)
    coding = _coding(labels)
    title = f"{root.name} ({', '.join(dict.fromkeys(part.file.name for part in parts.values()))})"
    splits = {
        split: _records(root, part, names, coding, f"{title}, {split}, {len(names)} attributes")
        for split, part in parts.items()
    }
    if train_on == "trainval" and "val" in splits:
        splits["train"] = _joined(splits["train"], splits.pop("val"))
    if "val" not in splits:
        log.info("%s: no validation part; the test part is validated on", title)
        splits["val"] = splits["test"]
    _warn_of_leaks(root, splits)
    log_labels(title, splits)
    return splits


def _parts(root: Path, table: str) -> dict[str, _Part]:
    if (root / table).is_file():
        part = _part(root / table, ("split",))
        wrong = [row for row in part.rows if row.cells["split"] not in SPLITS]
        if wrong:
            lines = [
                f"line {row.line}: split {row.cells['split']!r} is not train, val or test" for row in wrong
            ]
            raise HapError(f"{part.file} has {len(wrong)} mistakes{first_lines(lines)}")
        rows = {split: [row for row in part.rows if row.cells["split"] == split] for split in SPLITS}
        return {split: part._replace(rows=found) for split, found in rows.items() if found}
    files = {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
    if not {"train", "test"} <= files.keys():
        raise HapError(
            f"{root} has neither {table} (columns image, split, and one for each attribute) nor train.csv and test.csv"
        )
    return {split: _part(file) for split, file in files.items()}


def _part(file: Path, required: Sequence[str] = ()) -> _Part:
    columns, rows = read_table(file, required)
    image = [name for name in IMAGE if name in columns]
    if len(image) != 1:
        raise HapError(
            f"{file}: one column must be called image or path; the first line has {', '.join(columns)}"
        )
    if taken := [name for name in columns if name in TAKEN - {*image, *required}]:
        raise HapError(f"{file}: no attribute can be called {', '.join(taken)}: rename the column")
    attributes = [name for name in columns if name not in {*image, *required}]
    if not attributes:
        raise HapError(f"{file}: no column of an attribute beside {', '.join(columns)}")
    return _Part(file, image[0], attributes, rows)


def _coding(labels: Mapping[str, Any] | None) -> dict[str, int]:
    """What a cell in lower case says."""
    if labels is None:
        return USUAL
    meanings = {"positive": 1, "negative": 0, "unknown": UNKNOWN}
    if not {"positive", "negative"} <= labels.keys() <= meanings.keys():
        raise HapError(
            f"data.reader.labels has {', '.join(labels)}: give positive, negative and perhaps unknown"
        )
    coding = {"": UNKNOWN}
    for name, value in labels.items():
        text = str(value).lower()
        coding |= {text: meanings[name]} | (
            {f"{text}.0": meanings[name]} if text.lstrip("-").isdigit() else {}
        )
    if len({str(value).lower() for value in labels.values()}) < len(labels):
        raise HapError(f"data.reader.labels={dict(labels)} has one value for two meanings")
    return coding


def _records(
    root: Path, part: _Part, names: Sequence[str], coding: Mapping[str, int], protocol: str
) -> AttributeRecords:
    _check_values(part, names, coding)
    images: dict[Any, tuple[str, int, tuple[int, ...]]] = {}  # by file: its name, line and labels
    errors, again = [], []
    for line, cells, too_long, _ in part.rows:
        listed = cells[part.image]
        path = relative(listed)
        labels = tuple(coding[cells[name].lower()] for name in names)
        if too_long:
            errors.append(f"line {line}: more fields than the first line")
        elif path is None:
            errors.append(f"line {line}: image {listed!r} is none, or leads out of {root}")
        elif not os.path.isfile(root / path):
            errors.append(f"line {line}: image not found: {listed!r}")
        else:
            _, first, before = images.setdefault(file_id(root / path), (path, line, labels))
            if before != labels:
                errors.append(f"line {line}: the image of line {first} with other labels")
            elif first != line:
                again.append(f"line {line}: the image of line {first}")
    if errors:
        raise HapError(
            f"{part.file} has {len(errors)} mistakes (images are below {root}){first_lines(errors)}"
        )
    if again:
        log.warning("%s names %d images again, which count once%s", part.file, len(again), first_lines(again))
    paths = [path for path, _, _ in images.values()]
    table = np.array([labels for _, _, labels in images.values()], np.int8)
    return AttributeRecords(root, paths, table, names, protocol)


def _joined(first: AttributeRecords, second: AttributeRecords) -> AttributeRecords:
    labels = np.concatenate([first.labels, second.labels])
    return AttributeRecords(first.root, first.names + second.names, labels, first.attributes, first.protocol)


def _check_values(part: _Part, names: Sequence[str], coding: Mapping[str, int]) -> None:
    """Raise HapError for each column with values that mean nothing: all its values, their counts, the first line."""
    errors, lists = [], False
    for name in names:
        stray = [row for row in part.rows if row.cells[name].lower() not in coding]
        if not stray:
            continue
        value = stray[0].cells[name]
        lists |= any(sign in value for sign in ";#|,[{")
        counts = Counter(row.cells[name] for row in part.rows).most_common(6)
        shown = ", ".join(f"{n:,} times {printable(value)!r}" for value, n in counts)
        errors.append(
            f"column {name}, line {stray[0].line}: {printable(value)!r} is no label; the column has {shown}"
        )
    if errors:
        advice = 'say what the values mean: "data.reader.labels={positive: 1, negative: -1, unknown: 0}"'
        if lists:
            advice = "of a list of names in one cell make a column for each name, with 0 and 1"
        raise HapError(f"{part.file}:{first_lines(errors)}\n{advice}")


def _warn_of_leaks(root: Path, splits: Splits) -> None:
    trained = {file_id(root / name) for name in splits["train"].names}
    for split in ("val", "test") if splits["val"] is not splits["test"] else ("test",):
        if shared := [name for name in splits[split].names if file_id(root / name) in trained]:
            log.warning(
                "%s: %d images of %s are trained on: its scores will be too good%s",
                *(root, len(shared), split, first_lines([printable(name) for name in shared])),
            )
