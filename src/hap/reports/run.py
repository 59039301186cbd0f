"""A run folder as it is: finished, running, killed in the middle of a line, or of an earlier release of hap.

What is missing or cannot be read is left out and said; nothing of it ends the reading.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hap.errors import HapError, printable
from hap.record import STATUS, read_status
from hap.run_folder import is_held

UNREAD = "files that cannot be read"  # among the troubles
SHOWN, LETTERS = 20, 400  # lines of each kind of trouble, and letters of a line

# Any of these makes a folder that of a run.
_TRACES = (STATUS, "config.yaml", "results.json", "environment.json", ".lock")
_PICTURE = re.compile(r"(.+?)(?:_step(\d{1,15}))?\.png", re.S)
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (WARNING|ERROR|CRITICAL) [\w.]+: (.*)", re.S)


@dataclass(frozen=True)
class Run:
    """What a run folder holds. Texts are as they were found: `printable` and escaping are for whoever shows them."""

    folder: Path
    name: str  # of the experiment, or of the folder
    program: str  # train, eval, predict; "" where nothing says it
    status: dict[
        str, Any
    ]  # as `read_status` gives it; `state` is there always, "unknown" where nothing says it
    overrides: list[str]
    config: dict[str, Any]  # of the newest part of a resumed run
    changed: dict[str, tuple[Any, Any]]  # {key: (by default, here)}, against the experiment's defaults
    environment: dict[str, Any]
    weights: dict[str, Any]  # what the model was initialised with, `LoadReport.record`
    results: dict[str, float]
    protocol: dict[str, Any]
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]  # {name: (steps (N,), values (N,))}, float64, by step
    resumed: list[float]  # the first step that each part but the first logged
    parts: int  # in which it ran: one more than it was resumed
    pictures: dict[
        str, list[tuple[int | None, Path]]
    ]  # by step; None for those of an evaluation, which are last
    tables: list[Path]  # CSV
    troubles: dict[str, list[str]]  # {what: lines}; a last line counts those that are not among them


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TRACES)


def read_run(folder: Path) -> Run:
    """Raises HapError if there is no such folder."""
    if not folder.is_dir():
        raise HapError(f"there is no folder {printable(str(folder))}")
    unread: list[str] = []
    resumed_configs = _files(folder, "config_resumed_*.yaml")
    config = _mapping((resumed_configs or [folder / "config.yaml"])[-1], _yaml, unread)
    environment, weights, results = (
        _mapping(folder / f"{name}.json", json.loads, unread)
        for name in ("environment", "weights", "results")
    )
    status = read_status(folder)
    if not status:
        state = "finished" if results else "running" if is_held(folder) else "unknown"
        command = environment.get("command")
        arguments = [str(a) for a in command] if isinstance(command, list) else []
        status = {"state": state, "overrides": [a for a in arguments[1:] if "=" in a]}
        if arguments and (known := re.search(r"\b(train|eval|predict)(\.py)?$", arguments[0])):
            status["program"] = known[1]
    changed, overrides, protocol = status.get("changed"), status.get("overrides"), results.get("protocol")
    metrics, resumed = _metrics(folder, unread)
    troubles = _bad_samples(folder, unread) | _logged(folder, unread)
    if unread:
        troubles[UNREAD] = unread
    overrides = [str(o) for o in overrides] if isinstance(overrides, list) else []
    experiment = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "")
    return Run(
        folder=folder,
        name=str(config.get("name") or experiment or folder.absolute().name),
        program=str(status.get("program", "")),
        status=status,
        overrides=overrides,
        config=config,
        changed={
            key: (pair[0], pair[1])
            for key, pair in (changed.items() if isinstance(changed, dict) else ())
            if isinstance(pair, list) and len(pair) == 2
        },
        environment=environment,
        weights=weights,
        results={name: _float(value) for name, value in results.items() if isinstance(value, int | float)},
        protocol=protocol if isinstance(protocol, dict) else {},
        metrics=metrics,
        resumed=resumed,
        parts=1 + len(resumed_configs),
        pictures=pictures_of(folder),
        tables=_files(folder, "*.csv"),
        troubles=troubles,
    )


def _files(folder: Path, pattern: str) -> list[Path]:
    """Sorted. A link may lead to what is not the run's, a pipe to nothing at all."""
    return sorted(p for p in folder.glob(pattern) if p.is_file() and not p.is_symlink())


def _mapping(path: Path, parse: Callable[[str], Any], unread: list[str]) -> dict[str, Any]:
    """{} where there is none."""
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        unread.append(f"{path.name}: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _yaml(text: str) -> Any:
    return yaml.load(text, yaml.CSafeLoader)


def _metrics(folder: Path, unread: list[str]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[float]]:
    """From the files of the CSV logger, one for each part of a resumed run. What a part logged after the step from
    which the next one went on was lost, and is left out."""
    parts = sorted(_files(folder, "logs/version_*/metrics.csv"), key=_version)
    points: dict[str, list[tuple[float, float]]] = {}
    resumed: list[float] = []
    for path in parts:
        try:
            rows = list(_rows(path))
        except (OSError, csv.Error) as error:
            unread.append(f"{path.relative_to(folder)}: {error}")
            continue
        if not rows:
            continue
        first = min(step for step, _, _ in rows)
        if points:
            points = {name: [p for p in values if p[0] < first] for name, values in points.items()}
            resumed.append(first)
        for step, name, value in rows:
            points.setdefault(name, []).append((step, value))
    arrays = {name: np.array(sorted(values, key=lambda p: p[0])) for name, values in points.items() if values}
    return {name: (array[:, 0], array[:, 1]) for name, array in sorted(arrays.items())}, resumed


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.removeprefix("version_")
    return (int(number) if number.isdecimal() else -1), number


def _rows(path: Path) -> Iterator[tuple[float, str, float]]:
    """(step, name, value) for every value of a table. A last line without an end is one that is being written, or
    was when the run was killed."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for row in csv.DictReader(lines, quoting=csv.QUOTE_NONE):
        try:
            step = float(row.pop("step") or "nan")
        except (KeyError, ValueError):
            continue
        for name, text in row.items():
            # None: a cell beyond the columns, or a column beyond the cells
            if name and text and name != "epoch" and np.isfinite(step):
                try:
                    yield step, name, float(text)
                except (ValueError, TypeError):
                    continue


def pictures_of(folder: Path) -> dict[str, list[tuple[int | None, Path]]]:
    """{name: [(step, file)]} in the order of the steps."""
    found: dict[str, list[tuple[int | None, Path]]] = {}
    for path in _files(folder, "pictures/*.png"):
        if match := _PICTURE.fullmatch(path.name):
            step = None if match[2] is None else int(match[2])
            found.setdefault(match[1], []).append((step, path))
    return {
        name: sorted(files, key=lambda file: (file[0] is None, file[0] or 0)) for name, files in found.items()
    }


def _lines(path: Path, unread: list[str], errors: str = "replace") -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors=errors) as file:
            yield from file
    except OSError as error:
        unread.append(f"{path.name}: {error.strerror}")


def _bad_samples(folder: Path, unread: list[str]) -> dict[str, list[str]]:
    """Those of all ranks, by split."""
    found: dict[str, list[str]] = {}
    for path in _files(folder, "bad_samples_*.txt"):
        split = re.sub(r"bad_samples_(.*?)(_rank\d+)?\.txt", r"\1", path.name)
        found.setdefault(f"bad samples, {split}", []).extend(_lines(path, unread, "surrogateescape"))
    return {what: _some(lines) for what, lines in found.items() if lines}


def _logged(folder: Path, unread: list[str]) -> dict[str, list[str]]:
    """Warnings and errors of the log, each once. Bad samples have a list of their own."""
    counts: Counter[str] = Counter()
    for path in _files(folder, "*.log"):
        for line in _lines(path, unread):
            match = _LOGGED.match(line)
            if match and not match[2].startswith("bad sample "):
                counts[match[2].rstrip()] += 1
    lines = [f"{text} ({count:,} times)" if count > 1 else text for text, count in counts.items()]
    return {"warnings": _some(lines)} if lines else {}


def _some(lines: list[str]) -> list[str]:
    shown = [line.rstrip("\r\n") for line in lines[:SHOWN]]
    cut = [line if len(line) <= LETTERS else f"{line[:LETTERS]}…" for line in shown]
    return [*cut, f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else cut


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have no end
        return math.inf
