"""Attributes of one's own: CSV tables with a column for each."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hap.data.attribute import UNKNOWN, AttributeRecords, Splits, log_labels
from hap.data.attribute_splits import choose
from hap.data.files import file_id, first_lines, relative
from hap.data.sources import SOURCE_COLUMNS
from hap.data.tables import Row, read_table
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
IMAGE = ("image", "path")  # the column of the image is called one of these
# These mean something else, here or in hap's own tables.
TAKEN = (*IMAGE, "split", *SOURCE_COLUMNS, "positive")
MEANINGS = {"positive": 1, "negative": 0, "unknown": UNKNOWN}
USUAL = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0, "": UNKNOWN}

_WHOLE = re.compile(r"(-?\d+)[.,]0+", re.ASCII)


class _Table(NamedTuple):
    """One file, with the split that all its rows are of; "" if a column says it."""

    name: str
    split: str
    image: str  # its column
    attributes: list[str]
    rows: list[Row]


class _Image(NamedTuple):
    name: str
    labels: tuple[int, ...]
    place: str  # file and line


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
    1.0, which data frames write of columns with gaps, is 1.

    Args:
        labels: what else the cells say: {positive: 1, negative: -1, unknown: 0}, or lists of values. Unknown may be
            left out; an empty cell is unknown unless a null here says something else.
        attributes: names, to take these alone, in this order.
        train_on: "train"; or "trainval", which leaves no validation part.

    Raises:
        HapError: columns, values or images are missing or wrong; names files and lines.
    """
    choose("train_on", train_on, ("train", "trainval"))
    root, coding = Path(root), _coding(labels)
    tables = _tables(root, table)
    names = _chosen(attributes, tables[0].attributes)
    for file, _, _, columns, _ in tables:
        if missing := [name for name in names if name not in columns]:
            raise HapError(f"{root / file}: no column {_joined(missing)}, which {tables[0].name} has")
        if attributes is None and (new := [name for name in columns if name not in names]):
            raise HapError(f"{root / file}: {tables[0].name} has no column {_joined(new)}")
    found = _read(root, tables, names, coding, train_on)
    if lacking := [split for split in ("train", "test") if not found[split]]:
        raise HapError(f"{root}: no rows of {' and '.join(lacking)} in {_joined([t.name for t in tables])}")
    title = f"{os.path.basename(os.path.abspath(root))} ({_joined([table.name for table in tables])})"
    parts = "trainval/test" if train_on == "trainval" else "/".join(s for s in SPLITS if found[s])
    protocol = f"{title}, {parts}, {len(names)} attributes ({'all' if attributes is None else 'chosen'})"
    splits = {
        split: AttributeRecords(
            root,
            [image.name for image in images.values()],
            np.array([image.labels for image in images.values()], np.int8),
            names,
            protocol,
        )
        for split, images in found.items()
        if images
    }
    if "val" not in splits:
        log.info("%s: no validation part; the test part is validated on", title)
    _warn_of_leaks(root, found)
    splits = {"train": splits["train"], "val": splits.get("val", splits["test"]), "test": splits["test"]}
    log_labels(title, splits)
    return splits


def _joined(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names))


def _tables(root: Path, table: str) -> list[_Table]:
    """The files that are there, that of the training images first."""
    if (root / table).is_file():
        return [_table(root, table, "")]
    files = {split: f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
    if not {"train", "test"} <= files.keys():
        raise HapError(
            f"{root} has neither {table} (columns image, split, and one for each attribute) nor train.csv and test.csv"
        )
    return [_table(root, file, split) for split, file in files.items()]


def _table(root: Path, name: str, split: str) -> _Table:
    columns, rows = read_table(root / name, () if split else ("split",))
    image = [column for column in columns if column in IMAGE]
    if len(image) != 1:
        raise HapError(
            f"{root / name}: one column must be called image or path; the first line has {_joined(columns)}"
        )
    own = {*image, *(() if split else ("split",))}
    attributes = [column for column in columns if column not in own]
    if taken := [column for column in attributes if column in TAKEN]:
        raise HapError(
            f"{root / name}: no attribute can be called {_joined(taken)}: rename or delete the column"
        )
    if not attributes:
        raise HapError(f"{root / name}: no column of an attribute beside {_joined(columns)}")
    return _Table(name, split, image[0], attributes, rows)


def _chosen(attributes: Sequence[str] | None, there: list[str]) -> list[str]:
    if attributes is None:
        return there
    if isinstance(attributes, str) or not attributes:
        raise HapError(
            f"data.reader.attributes={attributes}: give names in brackets, as [{printable(there[0])}]"
        )
    names = [str(name) for name in attributes]
    if unknown := [name for name in names if name not in there]:
        raise HapError(f"data.reader.attributes: no column {_joined(unknown)}; there are {_joined(there)}")
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise HapError(f"data.reader.attributes has {_joined(twice)} twice")
    return names


def _coding(labels: Mapping[str, Any] | None) -> dict[str, int]:
    """What a cell says, by its spelling."""
    if labels is None:
        return USUAL
    if not isinstance(labels, Mapping) or not {"positive", "negative"} <= labels.keys() <= MEANINGS.keys():
        raise HapError(
            f"data.reader.labels={labels}: give positive, negative and perhaps unknown, as "
            f"{{positive: 1, negative: -1, unknown: 0}}"
        )
    coding: dict[str, int] = {}
    for meaning, values in labels.items():
        several = isinstance(values, Sequence) and not isinstance(values, str)
        for value in values if several else [values]:
            text = "" if value is None else _spelling(str(value).strip())
            if coding.setdefault(text, MEANINGS[meaning]) != MEANINGS[meaning]:
                raise HapError(f"data.reader.labels={labels}: {value} has two meanings")
    return {"": UNKNOWN} | coding


@lru_cache(maxsize=1024)
def _spelling(cell: str) -> str:
    """The same for "True" and "TRUE", and for 1, 1.0 and 1,0."""
    whole = _WHOLE.fullmatch(cell)
    return whole[1] if whole else cell.lower()


def _read(
    root: Path, tables: Sequence[_Table], names: Sequence[str], coding: Mapping[str, int], train_on: str
) -> dict[str, dict[Any, _Image]]:
    """The images of each split by file: one with several names is there once. All mistakes are reported together."""
    found: dict[str, dict[Any, _Image]] = {split: {} for split in SPLITS}
    errors, again = [], []
    columns, advice = _check_values(tables, names, coding)
    for table in tables:
        for line, cells, too_long, too_short in table.rows:
            place = f"{table.name}, line {line}"
            split = table.split or cells["split"]
            listed = cells[table.image]
            path = relative(listed)
            if too_long or too_short:
                errors.append(f"{place}: {'more' if too_long else 'fewer'} fields than the first line")
            elif split not in SPLITS:
                errors.append(f"{place}: split {split!r} is not train, val or test")
            elif path is None:
                errors.append(f"{place}: image {listed!r} is empty or leads out of {root}")
            elif not os.path.isfile(root / path):
                errors.append(f"{place}: image not found: {listed!r}")
            else:
                labels = tuple(coding.get(_spelling(cells[name]), UNKNOWN) for name in names)
                images = found["train" if (split, train_on) == ("val", "trainval") else split]
                first = images.setdefault(file_id(root / path), _Image(path, labels, place))
                if first.labels != labels:
                    differ = next(n for n, a, b in zip(names, first.labels, labels, strict=True) if a != b)
                    errors.append(
                        f"{place}: the image of {first.place}, labelled differently ({printable(differ)})"
                    )
                elif first.place != place:
                    again.append(f"{place}: the image of {first.place}")
    if errors or columns:
        raise HapError(
            f"{root}: {len(errors) + len(columns):,} mistakes in the tables (images are below this folder)"
            f"{first_lines(errors)}{first_lines(columns)}{advice}"
        )
    if again:
        log.warning("%s: %d images are there again, and count once%s", root, len(again), first_lines(again))
    return found


def _check_values(
    tables: Sequence[_Table], names: Sequence[str], coding: Mapping[str, int]
) -> tuple[list[str], str]:
    """A line for each column with values that mean nothing: all its values, their counts, the first row; and advice."""
    errors, lists, others = [], False, False
    for table in tables:
        rows = [
            row for row in table.rows if not row.too_long and not row.too_short
        ]  # whose cells may be shifted
        for name in names:
            counts = Counter(row.cells[name] for row in rows)
            stray = [value for value in counts if _spelling(value) not in coding]
            if not stray:
                continue
            line = next(row.line for row in rows if row.cells[name] == stray[0])
            shown = [f"{_short(value)} {n:,} times" for value, n in counts.most_common(6)]
            shown += [f"{len(counts) - 6:,} other values"] if len(counts) > 6 else []
            errors.append(
                f"{table.name}, column {printable(name)}, line {line}: {_short(stray[0])} is no label; the column has "
                + ", ".join(shown)
            )
            is_list = any(sign in stray[0] for sign in ";#|,[{")
            lists, others = lists or is_list, others or not is_list
    advice = ""
    if lists:
        advice += "\nof a list of names in one cell make a column for each name, with 0 and 1"
    if others:
        advice += '\nsay what the values mean: "data.reader.labels={positive: 1, negative: -1, unknown: 0}"'
    if errors:
        advice += "\ncolumns that are no attributes are left out by data.reader.attributes=[NAMES]"
    return errors, advice


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else f"{value[:40]}...")


def _warn_of_leaks(root: Path, found: Mapping[str, Mapping[Any, _Image]]) -> None:
    for first, split, harm in (
        ("train", "val", "are trained on: its scores will be too good"),
        ("train", "test", "are trained on: its scores will be too good"),
        ("val", "test", "are in val: the best epoch is chosen by them"),
    ):
        lines = []
        for file, image in found[split].items():
            if file in found[first]:
                differs = image.labels != found[first][file].labels
                place = f"{image.place}; labelled differently in {first}" if differs else image.place
                lines.append(f"{printable(image.name)} ({place})")
        if lines:
            log.warning(
                "%s: %d of %d images of %s %s%s",
                *(root, len(lines), len(found[split]), split, harm, first_lines(lines)),
            )
