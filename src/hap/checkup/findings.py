"""What a check has found, and how it is shown."""

import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from hap.errors import printable

Level = Literal["ok", "note", "warn", "stop"]
WIDTH = 110  # of a line, as far as paths and commands allow


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "note" (is so, and no harm), "warn" (something will not work, or differs), "stop" (a
            run ends at once).
        name: what was looked at.
        text: what was found.
        todo: what to type or do, one entry a line.
    """

    level: Level
    name: str
    text: str
    todo: tuple[str, ...] = ()


class Clock:
    """Time that is left for looking."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 at least."""
        return max(self.end - time.monotonic(), 0.0)

    def part(self, seconds: float) -> "Clock":
        """A clock that ends after so many seconds, or with this one."""
        return Clock(min(seconds, self.left))


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check. One that fails itself is a finding: machines differ, and the others are still of use."""
    try:
        return list(check())
    except Exception as error:
        return [Finding("note", name, f"could not be looked at: {type(error).__name__}: {error}")]


def lines(findings: Iterable[Finding]) -> list[str]:
    """A table: level, name, text; below them what to do. What comes from outside does nothing to the terminal."""
    found = list(findings)
    width = max((len(finding.name) for finding in found), default=0)
    margin = " " * (8 + width + 2)
    result = []
    for finding in found:
        start = f"  {finding.level:6}{printable(finding.name):{width}}  "
        text = textwrap.fill(
            printable(finding.text),
            max(WIDTH, len(margin) + 40),
            initial_indent=start,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
        result += [*text.splitlines(), *(f"{margin}-> {printable(line)}" for line in finding.todo)]
    return result
