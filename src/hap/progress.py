"""How far long work is: a bar on a terminal, a line now and then elsewhere (log files, batch jobs)."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import rich
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)

SECONDS = 10  # between two lines
IMAGES = {"images": 1.0}


@contextmanager
def progress(
    what: str, total: int, done: int = 0, sum_up: bool = False, units: Mapping[str, float] = IMAGES
) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with the number of images just finished, of `total`, `done` of them before. `sum_up`
    says at the end how many they were and how fast.

    Args:
        units: what else is counted than images: its name and 1; then names of what else is told of, and how many there
            are to each, on average.
    """
    lines = _Lines(what, total, done, units)
    if rich.get_console().is_terminal:
        columns = BarColumn(), MofNCompleteColumn(), _Rate(units), TimeRemainingColumn()
        with Progress(TextColumn(what), *columns) as bar:
            task = bar.add_task("", total=total, completed=done)

            def advance(count: int) -> None:
                lines.count(count)
                bar.update(task, completed=lines.done)

            yield advance
    else:
        yield lines
    if sum_up:
        lines.end()


def _rates(speed: float, units: Mapping[str, float]) -> str:
    return ", ".join(f"{speed * share:.4g} {unit}/s" for unit, share in units.items())


class _Rate(ProgressColumn):
    def __init__(self, units: Mapping[str, float]):
        super().__init__()
        self.units = units

    def render(self, task: Task) -> Text:
        return Text(_rates(task.speed, self.units) if task.speed else "", style="progress.data.speed")


class _Lines:
    def __init__(self, what: str, total: int, done: int, units: Mapping[str, float]):
        self.what, self.total, self.done, self.before, self.units = what, total, done, done, units
        self.start = self.said = time.monotonic()

    def count(self, count: int) -> None:
        self.done = min(self.done + count, self.total)  # several processes round up

    def rate(self) -> float:
        return (self.done - self.before) / max(time.monotonic() - self.start, 1e-9)

    def __call__(self, count: int) -> None:
        self.count(count)
        now = time.monotonic()
        if now - self.said < SECONDS:
            return
        self.said = now
        left = (self.total - self.done) / max(self.rate(), 1e-9)
        log.info(
            "%s: %s of %s, %s, %s left",
            *(self.what, f"{self.done:,}", f"{self.total:,}", _rates(self.rate(), self.units), clock(left)),
        )

    def end(self) -> None:
        seconds = time.monotonic() - self.start
        log.info(
            "%s: %s %s in %s, %s",
            *(self.what, f"{self.done - self.before:,}", next(iter(self.units))),
            *(clock(seconds), _rates(self.rate(), self.units)),
        )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:27."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
