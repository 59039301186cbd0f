"""CSV tables as people write them: exported by spreadsheets, data frames and annotation tools."""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hap.data.files import read_text
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

_HINT = re.compile(r'"?sep=([,;|\t])')  # a line before the names, for Excel
_QUOTED = re.compile(r'"[^"]*"')


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        line: its number in the file, from 1; the last one where a cell has line breaks.
        cells: text by column, without blanks around it; empty where the line has no such field.
        too_long: it has more fields than the line of names.
        too_short: it has fewer.
    """

    line: int
    cells: dict[str, str]
    too_long: bool
    too_short: bool


class Table(NamedTuple):
    columns: list[str]
    rows: list[Row]


def read_table(path: Path, required: Sequence[str] = (), errors: str = "strict") -> Table:
    """A table with a line of names. Fields are separated by what separates the names: `,`, `;` or tabs; or by what a
    line `sep=;` before them says. Empty lines, and columns that are empty from the name down, are left out.

    Args:
        required: columns that must be there.
        errors: see `read_text`.

    Raises:
        HapError: a column is missing, nameless or there twice, or the file is no table.
    """
    text = read_text(path, errors)
    first = next(filter(str.strip, io.StringIO(text)), "")
    hint = _HINT.match(first)
    # Of as many commas as semicolons the commas belong to the names: "image;Age, young;Age, old".
    separator = hint[1] if hint else max("\t;,", key=_QUOTED.sub("", first).count)
    if separator in first and separator != ",":
        log.info("%s: fields are separated by %r", path, separator)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for fields in reader:
            if any(field := [cell.strip() for cell in fields]):
                rows.append((reader.line_num, field))
    except csv.Error as error:
        raise HapError(f"{path}, line {reader.line_num}: {error}") from None
    if hint:
        del rows[0]
    if not rows:
        raise HapError(f"{path} is empty")
    (_, names), *rows = rows
    while not names[-1]:
        names.pop()
    index = " (an index of pandas: write it with index=False)"
    problems = [
        f"column {i} has no name{index if i == 1 else ''}"
        for i, name in enumerate(names, start=1)
        if not name
    ]
    problems += [
        f"{n} columns are called {name!r}" for name, n in Counter(filter(None, names)).items() if n > 1
    ]
    if missing := [name for name in required if name not in names]:
        problems.append(f"no column {', '.join(map(printable, missing))}")
    if problems:
        there = ", ".join(map(printable, filter(None, names)))
        raise HapError(f"{path}: {'; '.join(problems)}; the first line has {there}")
    empty = dict.fromkeys(names, "")
    return Table(
        names,
        [
            Row(
                line,
                empty | dict(zip(names, fields, strict=False)),
                too_long=any(fields[len(names) :]),
                too_short=len(fields) < len(names),
            )
            for line, fields in rows
        ],
    )
