"""How far long work is: a bar on a terminal, a line now and then elsewhere (log files, batch jobs)."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS = 10  # between two lines


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with the number of items just finished, of `total`, `done` of them before."""
    if rich.get_console().is_terminal:
        with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task("", total=total, completed=done)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(what, total, done)


class _Lines:
    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.done, self.before = what, total, done, done
        self.start = self.said = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said < SECONDS:
            return
        self.said = now
        rate = (self.done - self.before) / (now - self.start)
        left = int((self.total - self.done) / max(rate, 1e-9))
        log.info(
            "%s: %s of %s, %.4g per second, %d:%02d:%02d left",
            *(self.what, f"{self.done:,}", f"{self.total:,}", rate),
            *(left // 3600, left // 60 % 60, left % 60),
        )
