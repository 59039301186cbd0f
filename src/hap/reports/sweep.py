"""A sweep: what its jobs gave for which values, read from their folders, as tables. (The page is in `sweep_page`.)"""

import csv
import html
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from hap.errors import HapError, printable
from hap.metrics.direction import lower_is_better, main_score
from hap.record import read_results, read_status
from hap.reports.run import is_run

SEED = "seed"  # the key whose values are repetitions
_KILLED = "without a word: memory ran out, or a signal"


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        name: of its folder, below the sweep's.
        values: {key: value} of its overrides, as they were typed.
        state: finished, running, stopped, failed or killed; unknown where the folder does not say.
        error: the last line of it, empty where there is none.
        results: {name: value}, without the protocol.
    """

    name: str
    folder: Path
    values: dict[str, str]
    state: str
    error: str
    results: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep in their order; `objective` names the result that it is about, None if no job has any."""

    folder: Path
    jobs: list[Job]
    objective: str | None

    @cached_property
    def keys(self) -> list[str]:
        """What was swept: the keys whose values differ between jobs, in the order of the command line."""
        known = [job.values for job in self.jobs if job.values]
        keys = dict.fromkeys(key for values in known for key in values)
        return [key for key in keys if len({values.get(key) for values in known}) > 1]

    @cached_property
    def short(self) -> dict[str, str]:
        """{key: as little of its end as tells it from the other swept keys}."""
        return {key: _short(key, self.keys) for key in self.keys}

    @cached_property
    def best(self) -> Job | None:
        """The job with the best value of the objective."""
        scored = [job for job in self.jobs if not math.isnan(self.value(job))]
        if not scored:
            return None
        return (min if lower_is_better(str(self.objective)) else max)(scored, key=self.value)

    @cached_property
    def measured(self) -> list[str]:
        """The results that are scores or losses, the objective first."""
        names = dict.fromkeys(name for job in self.jobs for name in job.results)
        scores = sorted(name for name in names if name.startswith(("val/", "test/", "probe/", "best_val/")))
        return [*dict.fromkeys([self.objective] if self.objective else []), *without(scores, self.objective)]

    @property
    def errors(self) -> list[str]:
        """One line for each job that has an error."""
        return [printable(f"job {job.name} {job.state}: {job.error}") for job in self.jobs if job.error]

    @property
    def summary(self) -> str:
        """How many jobs ended in which way, and which is best."""
        states = [job.state for job in self.jobs]
        parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        line = f"{len(states)} job{'s' * (len(states) > 1)}: {', '.join(parts)}."
        if self.best is not None:
            line += f" Best: job {printable(self.best.name)}, {self.objective} {cell(self.value(self.best))}."
        return line

    def value(self, job: Job) -> float:
        """Of the objective; NaN where the job has none."""
        return job.results.get(self.objective or "", math.nan)

    def label(self, values: Mapping[str, str], keys: Sequence[str]) -> str:
        """Values of some of the keys, such as `ratio=0.5 strategy=block`."""
        return " ".join(f"{self.short[key]}={brief(values.get(key, '-'))}" for key in keys)


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep from the folders of its jobs, however they ended and wherever the folder has been taken.

    Raises:
        HapError: there is no job in it.
    """
    jobs = [_read_job(path, folder) for path in _job_folders(folder)]
    if not jobs:
        raise HapError(f"{printable(str(folder))}: no folder of a sweep; there is no run in it")
    names = {name for job in jobs for name in job.results}
    objective = _said_objective(folder)
    return Sweep(folder, jobs, objective if objective in names else main_score(names))


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep and not that of a run."""
    return not is_run(folder) and bool(_job_folders(folder))


def _job_folders(folder: Path) -> list[Path]:
    """In the order of their numbers. A folder of a run is not looked into; a subfolder may be nested by its name."""
    found: list[str] = []
    for path, folders, _ in os.walk(folder):
        name = os.path.relpath(path, folder)
        if name != "." and is_run(Path(path)):
            found.append(name)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    number = re.compile(r"(\d+)")
    found.sort(key=lambda name: [int(p) if p.isdecimal() else p for p in number.split(name)])
    return [folder / name for name in found]


def _read_job(folder: Path, sweep: Path) -> Job:
    status = read_status(folder)
    results = read_results(folder)
    overrides = status.get("overrides")
    pairs = [str(text).partition("=") for text in overrides] if isinstance(overrides, list) else []
    error = str(status.get("error") or "").strip().splitlines()
    return Job(
        name=folder.relative_to(sweep).as_posix(),
        folder=folder,
        values={key.lstrip("+"): _unquoted(value) for key, _, value in pairs},
        state=str(status.get("state") or ("finished" if results else "unknown")),
        error=error[-1] if error else _KILLED if status.get("state") == "killed" else "",
        results=results,
    )


def _said_objective(folder: Path) -> str | None:
    try:
        objective = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["objective"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
        return None
    return None if objective is None else str(objective)


def _unquoted(value: str) -> str:
    return value[1:-1] if re.fullmatch(r"""(['"]).*\1""", value, re.S) else value


def _short(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if sum(f".{other}".endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def without(names: Sequence[str], name: str | None) -> list[str]:
    return [other for other in names if other != name]


@dataclass(frozen=True)
class Group:
    """Jobs that differ in the seed alone: how many have a value of the objective, their mean, standard deviation (of a
    sample; NaN of one), smallest and largest."""

    values: dict[str, str]
    count: int
    mean: float
    spread: float
    low: float
    high: float


def over_seeds(sweep: Sweep) -> list[Group]:
    """The objective by the values of all swept keys but the seed, in the order of the jobs."""
    keys = without(sweep.keys, SEED)
    groups: dict[tuple[str, ...], list[float]] = {}
    for job in sweep.jobs:
        if job.values:
            groups.setdefault(tuple(job.values.get(key, "-") for key in keys), []).append(sweep.value(job))
    rows = []
    for values, scores in groups.items():
        known = [score for score in scores if not math.isnan(score)]
        mean = statistics.fmean(known) if known else math.nan
        spread = statistics.stdev(known) if len(known) > 1 else math.nan
        low, high = (min(known), max(known)) if known else (math.nan, math.nan)
        rows.append(Group(dict(zip(keys, values, strict=True)), len(known), mean, spread, low, high))
    return rows


def write_sweep(sweep: Sweep) -> None:
    """`sweep.csv`, every result of every job, and `sweep.md`, the scores. Folders are relative to the sweep's."""
    columns = sorted({name for job in sweep.jobs for name in job.results})
    with (sweep.folder / "sweep.csv").open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        writer = csv.writer(file)
        writer.writerow(["folder", "state", *sweep.keys, *columns, "error"])
        for job in sweep.jobs:
            values = [job.values.get(key, "") for key in sweep.keys]
            results = [job.results.get(name, "") for name in columns]
            writer.writerow([job.name, job.state, *values, *results, printable(job.error)])
    (sweep.folder / "sweep.md").write_text(markdown(sweep), encoding="utf-8", errors="backslashreplace")


def table(sweep: Sweep, scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: job, swept values, scores, and where not all have finished, how each ended."""
    finished = all(job.state == "finished" for job in sweep.jobs)
    columns = ["job", *sweep.short.values(), *scores] + ([] if finished else ["state"])
    rows = []
    for job in sweep.jobs:
        row = [job.name, *(brief(job.values.get(key, "-")) for key in sweep.keys)]
        row += [cell(job.results.get(name, math.nan)) for name in scores] + ([] if finished else [job.state])
        rows.append([printable(text) for text in row])
    return columns, rows


def seeds_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: values, mean and standard deviation of the objective, number of seeds."""
    keys = without(sweep.keys, SEED)
    columns = [*(sweep.short[key] for key in keys), str(sweep.objective), "deviation", "seeds"]
    rows = [
        [
            *(printable(brief(group.values[key])) for key in keys),
            cell(group.mean),
            cell(group.spread),
            str(group.count),
        ]
        for group in over_seeds(sweep)
    ]
    return columns, rows


def markdown(sweep: Sweep) -> str:
    tables = [table(sweep, sweep.measured)]
    if SEED in sweep.keys and sweep.objective:
        tables.append(seeds_table(sweep))
    parts = ["\n".join(_markdown_rows(columns, rows)) for columns, rows in tables]
    parts += ["\n".join(f"- {_escaped(line)}" for line in lines) for lines in [sweep.errors] if lines]
    return f"# {_escaped(printable(sweep.folder.name))}\n\n" + "\n\n".join([*parts, sweep.summary]) + "\n"


def _markdown_rows(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(_escaped(text) for text in row) + " |"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|`*\[\]])", r"\\\1", html.escape(text, quote=False))


def brief(value: str) -> str:
    """A value as it was typed; of a number that a search has drawn, the first digits."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d+\.\d{6,}(e-?\d+)?", value) else value


def cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
