"""How far long work is: a bar on a terminal, a line now and then elsewhere (log files, batch jobs)."""

import logging
import time
from collections.abc import Callable, Iterator
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


@contextmanager
def progress(what: str, total: int, done: int = 0, sum_up: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with the number of images just finished, of `total`, `done` of them before. `sum_up`
    says at the end how many they were and how fast."""
    lines = _Lines(what, total, done)
    if rich.get_console().is_terminal:
        columns = BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
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


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.4g} images/s" if task.speed else "", style="progress.data.speed")


class _Lines:
    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.done, self.before = what, total, done, done
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
            "%s: %s of %s, %.4g images/s, %s left",
            *(self.what, f"{self.done:,}", f"{self.total:,}", self.rate(), clock(left)),
        )

    def end(self) -> None:
        seconds = time.monotonic() - self.start
        log.info(
            "%s: %s images in %s, %.4g images/s",
            *(self.what, f"{self.done - self.before:,}", clock(seconds), self.rate()),
        )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:27."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
