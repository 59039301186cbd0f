"""`report.html` of a sweep: its figure, its tables, the last pictures of its jobs, links to their own pages."""

import math
from collections.abc import Sequence
from pathlib import Path

from hap.errors import HapError, printable
from hap.metrics.direction import lower_is_better
from hap.reports.charts import line_chart
from hap.reports.page import REPORT, data_uri, link, render, write_page, write_report
from hap.reports.run import pictures_of
from hap.reports.sweep import (
    SEED,
    Group,
    Job,
    Sweep,
    over_seeds,
    read_sweep,
    seeds_table,
    table,
    without,
    write_sweep,
)

THUMBNAIL = 640  # pixels
KINDS, SHOWN = 3, 24  # of pictures; jobs whose pictures are shown
_MAGNITUDES = 20  # between the smallest and the largest value of an axis where each has the same room


def write_sweep_report(folder: Path) -> Path:
    """Write `sweep.csv`, `sweep.md`, `sweep.svg` and `report.html` into the folder of a sweep; return the page's path.
    A job that was killed gets its own page, too.

    Raises HapError if the folder is none of a sweep, or cannot be written to.
    """
    sweep = read_sweep(folder)
    for job in sweep.jobs:
        if job.state == "killed" and not (job.folder / REPORT).exists():
            write_report(job.folder)
    drawn = figure(sweep)
    try:
        write_sweep(sweep)
        if drawn:
            alone = str(drawn).replace(
                "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1
            )
            (folder / "sweep.svg").write_text(alone, encoding="utf-8")
    except OSError as error:
        raise HapError(f"cannot write to {printable(str(folder))}: {error.strerror}") from error
    columns, rows = table(sweep, sweep.measured)
    page = render(
        "sweep.html",
        sweep=sweep,
        common=_common(sweep),
        figure=drawn,
        band=SEED in sweep.keys and is_grid(sweep),
        searched=[] if is_grid(sweep) else [_scatter(sweep, key) for key in sweep.keys],
        columns=columns,
        jobs=[(job, row, _page_of(job)) for job, row in zip(sweep.jobs, rows, strict=True)],
        seeds=seeds_table(sweep) if SEED in sweep.keys and sweep.objective else None,
        pictures=_pictures(sweep),
    )
    return write_page(folder / REPORT, page)


def is_grid(sweep: Sweep) -> bool:
    """Whether every value of a key met every value of the others, as in a search they do not."""
    groups = over_seeds(sweep)
    values = [{group.values[key] for group in groups} for key in without(sweep.keys, SEED)]
    return len(groups) == math.prod(map(len, values))


def figure(sweep: Sweep) -> str:
    """The objective against the first swept key, a line for each combination of the others, by mean and range over the
    seeds; of a search in the order of its jobs. Empty where nothing was swept or measured."""
    if sweep.best is None or not sweep.keys:
        return ""
    if not is_grid(sweep):
        return _search(sweep)
    keys = without(sweep.keys, SEED)
    if not keys:
        x = [job.values.get(SEED, "-") for job in sweep.jobs]
        y = [sweep.value(job) for job in sweep.jobs]
        return line_chart({"": (x, y)}, SEED, str(sweep.objective), joined=False)
    lines: dict[str, list[Group]] = {}
    groups = [group for group in over_seeds(sweep) if group.count]
    places = _places([group.values[keys[0]] for group in groups])
    for group in sorted(groups, key=lambda group: list(places).index(group.values[keys[0]])):
        lines.setdefault(sweep.label(group.values, keys[1:]), []).append(group)
    series = {
        label: ([places[group.values[keys[0]]] for group in line], [group.mean for group in line])
        for label, line in lines.items()
    }
    spread = {
        label: ([group.low for group in line], [group.high for group in line])
        for label, line in lines.items()
    }
    return line_chart(series, sweep.short[keys[0]], str(sweep.objective), spread=spread)


def _search(sweep: Sweep) -> str:
    better = min if lower_is_better(str(sweep.objective)) else max
    found = [(i, value) for i, job in enumerate(sweep.jobs) if not math.isnan(value := sweep.value(job))]
    x, y = ([pair[k] for pair in found] for k in (0, 1))
    best = [better(y[: i + 1]) for i in range(len(y))]
    return line_chart({"each": (x, y), "best so far": (x, best)}, "job", str(sweep.objective))


def _scatter(sweep: Sweep, key: str) -> str:
    jobs = [job for job in sweep.jobs if key in job.values and not math.isnan(sweep.value(job))]
    places = _places([job.values[key] for job in jobs])
    points = [places[job.values[key]] for job in jobs], [sweep.value(job) for job in jobs]
    return line_chart({"": points}, sweep.short[key], str(sweep.objective), joined=False)


def _places(texts: Sequence[str]) -> dict[str, float | str]:
    """{value as it was typed: its place on an axis}, in order: numbers, or texts where one is no number, or where
    numbers are magnitudes apart."""
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        return {text: text for text in texts}
    ordered = dict(sorted(numbers.items(), key=lambda pair: pair[1]))
    low, high = min(numbers.values(), default=1), max(numbers.values(), default=1)
    apart = low > 0 and high / low > _MAGNITUDES and len(ordered) <= 8
    return {text: text if apart else value for text, value in ordered.items()}


def _common(sweep: Sweep) -> list[str]:
    """What all jobs have been given."""
    known = [job.values for job in sweep.jobs if job.values]
    return [f"{key}={value}" for key, value in known[0].items() if key not in sweep.keys] if known else []


def _page_of(job: Job) -> str:
    """The link to its own page; empty where it has none."""
    path = job.folder / REPORT
    return (
        "/".join([".", *(link(part)[2:] for part in (*job.name.split("/"), REPORT))]) if path.exists() else ""
    )


def _pictures(sweep: Sweep) -> dict[str, list[tuple[Job, str, str]]]:
    """{name: [(job, its values, the last picture)]}."""
    found: dict[str, list[tuple[Job, str, str]]] = {}
    for job in sweep.jobs[:SHOWN]:
        for name, files in list(pictures_of(job.folder).items())[:KINDS]:
            try:
                picture = data_uri(files[-1][1], THUMBNAIL)
            except HapError:
                continue  # half-written, by a job that was killed
            found.setdefault(name, []).append((job, sweep.label(job.values, sweep.keys), picture))
    return found
