"""CSV tables as people write them: exported by spreadsheets, data frames and annotation tools."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hap.data.files import read_text
from hap.errors import HapError, printable

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A line of a table: its number in the file, its cells by column, without blanks around them, and whether it has
    more fields than the first line."""

    line: int
    cells: dict[str, str]
    too_long: bool


class Table(NamedTuple):
    columns: list[str]
    rows: list[Row]


def read_table(path: Path, required: Sequence[str] = (), errors: str = "strict") -> Table:
    """A table with a line of names. Fields are separated by what separates the names: `,`, `;` or tabs. Empty lines,
    and columns that are empty from the name down, are left out; cells that a line lacks are empty.

    Args:
        required: columns that must be there.
        errors: see `read_text`.

    Raises:
        HapError: a column is missing, nameless or there twice, or the file is no table.
    """
    text = read_text(path, errors)
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    if separator != ",":
        log.info("%s: fields are separated by %r", path, separator)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for fields in reader:
            if any(field := [cell.strip() for cell in fields]):
                rows.append((reader.line_num, field))
    except csv.Error as error:
        raise HapError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise HapError(f"{path} is empty")
    (_, names), *rows = rows
    while names and not names[-1]:
        names.pop()
    problems = [f"column {i} has no name" for i, name in enumerate(names, start=1) if not name]
    problems += [
        f"{n} columns are called {name!r}" for name, n in Counter(filter(None, names)).items() if n > 1
    ]
    if missing := [name for name in required if name not in names]:
        problems.append(f"no column {', '.join(missing)}")
    if problems:
        shown = printable(", ".join(filter(None, names)))
        raise HapError(f"{path}: {'; '.join(problems)}; the first line has {shown}")
    return Table(
        names,
        [
            Row(
                line,
                dict.fromkeys(names, "") | dict(zip(names, fields, strict=False)),
                any(fields[len(names) :]),
            )
            for line, fields in rows
        ],
    )
