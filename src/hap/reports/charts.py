"""Numbers in, an inline SVG out, which follows the colours of the page that it is in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from hap.errors import printable

# A page gives the classes `s0` ... other colours where it is dark; alone, the picture has these.
COLOURS = ("#2868b0", "#cf6421", "#2f8a5b", "#9350a1", "#a8831a", "#5d6b78")
WIDTH, HEIGHT = 480, 250  # units of the picture; a letter is about 12 high
_LEFT, _RIGHT, _BOTTOM, _LINE = 52, 12, 38, 17
_BUCKETS = 240  # of a line of many points
_LARGEST = 1e300  # what is beyond counts as not finite, so that differences are
_DOTS = 30  # points up to which each is marked


def line_chart(
    series: Mapping[str, tuple[Sequence[Any] | np.ndarray, Sequence[float] | np.ndarray]],
    xlabel: str,
    ylabel: str,
    *,
    spread: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    marks: Sequence[float] = (),
    joined: bool = True,
) -> str:
    """Lines of one kind of value, with a legend that gives the last of each.

    A line of many points is drawn by the mean of neighbours over a band from their lowest to their highest. Values
    that are not finite leave a gap, and a cross at the upper edge. Positive values that differ by orders of magnitude
    have a logarithmic axis.

    Args:
        series: {label: (x (N,), y (N,))}; one without a label is not in the legend. If any x is no number, all are
            categories, in the order in which they come.
        spread: {label: (low (N,), high (N,))}, a band around a line.
        marks: x at which a dashed line is drawn.
        joined: whether the points of a series are on a line, or stand alone.

    Returns:
        markup, all texts escaped. To stand alone in a file it needs `xmlns`.
    """
    categories = _categories(series)
    lines = [
        _Line.of(label, i, x, y, categories, (spread or {}).get(label))
        for i, (label, (x, y)) in enumerate(series.items())
    ]
    values = np.concatenate([np.empty(0), *(part for line in lines for part in (line.low, line.high))])
    logarithmic = _spans_magnitudes(values)
    legend = _legend(f"{ylabel} (log)" if logarithmic else ylabel, lines)
    top = 12 + _LINE * (1 + legend[-1][1])
    xs = np.concatenate([np.empty(0), *(line.x for line in lines), *([] if categories else [list(marks)])])
    across = _Axis.of(xs, _LEFT, WIDTH - _RIGHT, padded=categories is not None)
    up = _Axis.of(values, HEIGHT - _BOTTOM, top, logarithmic=logarithmic, padded=True)
    parts = [*_grid(across, up, categories, top)]
    parts.append(
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 5}" text-anchor="end" fill-opacity=".75">{_text(xlabel)}</text>'
    )
    parts += [
        f'<line x1="{across(m):.1f}" x2="{across(m):.1f}" y1="{top}" y2="{HEIGHT - _BOTTOM}" stroke="currentColor" '
        'stroke-opacity=".55" stroke-dasharray="3 3"/>'
        for m in marks
    ]
    for line in lines:
        parts += line.drawn(across, up, top, categories, joined)
    for x, row, entry, text in legend:
        y = 15 + row * _LINE
        if entry is None:
            parts.append(f'<text x="{x}" y="{y}" font-weight="600">{_text(text)}</text>')
            continue
        parts.append(
            f'<line x1="{x}" x2="{x + 14}" y1="{y - 4}" y2="{y - 4}" {entry.stroke} stroke-width="2.5"/>'
            f'<text x="{x + 19}" y="{y}">{_text(text)}</text>'
        )
    name = escape(printable(f"{ylabel} against {xlabel}"))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}" font-size="12" '
        f'font-family="system-ui, sans-serif" fill="currentColor">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class _Line:
    """One series, thinned, by x. `low` and `high` are `y` where there is no band."""

    label: str
    number: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lost: np.ndarray  # x of values that are not finite
    last: float

    @classmethod
    def of(
        cls, label: str, number: int, x: Any, y: Any, categories: list[str] | None, spread: Any
    ) -> "_Line":
        at = np.array([categories.index(str(v)) for v in x] if categories else x, np.float64)
        y = np.asarray(y, np.float64)
        last = float(y[-1]) if len(y) else math.nan
        y = np.where(np.abs(y) < _LARGEST, y, np.nan)
        low, high = (y, y) if spread is None else (np.asarray(part, np.float64) for part in spread)
        order = np.argsort(at, kind="stable")
        at, y, low, high = at[order], y[order], low[order], high[order]
        low, high = (np.where(np.abs(part) < _LARGEST, part, y) for part in (low, high))
        lost = at[np.isnan(y)]
        if len(y) > 2 * _BUCKETS:
            edges = list(pairwise(np.linspace(0, len(y), _BUCKETS + 1).astype(int).tolist()))
            at = np.array([at[a:b].mean() for a, b in edges])
            low = np.array([_finite(np.min, low[a:b]) for a, b in edges])
            high = np.array([_finite(np.max, high[a:b]) for a, b in edges])
            y = np.array([_finite(np.mean, y[a:b]) for a, b in edges])
            lost = lost[np.unique(np.linspace(0, len(lost) - 1, _DOTS).astype(int))] if len(lost) else lost
        return cls(label, number, at, y, low, high, lost, last)

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def stroke(self) -> str:
        dashes = ' stroke-dasharray="6 3"' if self.number >= len(COLOURS) else ""
        return f'class="s{self.number % len(COLOURS)}" stroke="{self.colour}" color="{self.colour}"{dashes}'

    def drawn(
        self, across: "_Axis", up: "_Axis", top: int, categories: list[str] | None, joined: bool
    ) -> list[str]:
        parts, there = [], np.isfinite(self.y)
        # Runs of finite values, each a piece of the line.
        cuts = np.flatnonzero(np.diff(there.astype(int))) + 1
        pieces = [piece for piece in np.split(np.arange(len(there)), cuts) if len(piece) and there[piece[0]]]
        for piece in pieces:
            x = across(self.x[piece])
            if (self.low[piece] < self.high[piece]).any():
                edge = zip([*x, *x[::-1]], [*up(self.high[piece]), *up(self.low[piece])[::-1]], strict=True)
                points = " ".join(f"{a:.1f},{b:.1f}" for a, b in edge)
                parts.append(
                    f'<polygon class="s{self.number % len(COLOURS)}" points="{points}" color="{self.colour}" '
                    'fill="currentColor" fill-opacity=".18"/>'
                )
        path = "".join(
            "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(across(self.x[p]), up(self.y[p]), strict=True))
            for p in pieces
        )
        if path and joined:
            parts.append(
                f'<path d="{path}" {self.stroke} fill="none" stroke-width="1.8" stroke-linejoin="round" '
                'stroke-linecap="round"/>'
            )
        if len(self.x) <= _DOTS or not joined:
            for x, y in zip(self.x[there], self.y[there], strict=True):
                where = categories[int(x)] if categories else number(x)
                parts.append(
                    f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6" class="s{self.number % len(COLOURS)}" '
                    f'color="{self.colour}" fill="currentColor">'
                    f"<title>{_text(f'{self.label}, {where}: {number(y)}')}</title></circle>"
                )
        for x in self.lost:
            a = across(x)
            parts.append(
                f'<path d="M{a - 3.5:.1f},{top + 1}l7,7m0,-7l-7,7" {self.stroke} stroke-width="1.8">'
                f"<title>{_text(f'{self.label}: not a finite number')}</title></path>"
            )
        return parts


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float  # of `low`, in the picture
    end: float
    logarithmic: bool

    @classmethod
    def of(
        cls, values: np.ndarray, start: float, end: float, logarithmic: bool = False, padded: bool = False
    ) -> "_Axis":
        values = values[np.isfinite(values)]
        if logarithmic:
            values = np.log10(values)
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        if high - low <= 1e-12 * max(abs(low), abs(high)) + 1e-300:
            pad = max(abs(low), abs(high)) / 2 or 0.5
        else:
            pad = (high - low) * 0.05 if padded else 0.0
        return cls(low - pad, high + pad, start, end, logarithmic)

    def __call__(self, value: Any) -> Any:
        value = np.log10(value) if self.logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        if self.logarithmic:
            first, last = math.ceil(self.low), math.floor(self.high)
            return [10.0**e for e in range(first, last + 1, 1 + (last - first) // 5)]
        step = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(step))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= step * 0.999)
        count = math.floor(self.high / step) - math.ceil(self.low / step)
        return [(math.ceil(self.low / step) + i) * step for i in range(count + 1)]


def _categories(series: Mapping[str, tuple[Any, Any]]) -> list[str] | None:
    values = [value for x, _ in series.values() for value in x]
    numbers = all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values)
    return None if numbers else list(dict.fromkeys(map(str, values)))


def _spans_magnitudes(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 50 * np.median(values))


def _finite(reduce: Any, values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(reduce(values)) if len(values) else math.nan


def _grid(across: _Axis, up: _Axis, categories: list[str] | None, top: int) -> list[str]:
    parts, bottom = [], HEIGHT - _BOTTOM
    for value in up.ticks():
        y = up(value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
            f'stroke-opacity=".13"/><text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill-opacity=".75">'
            f"{number(value)}</text>"
        )
    ticks = enumerate(categories) if categories else ((value, number(value)) for value in across.ticks())
    for value, text in ticks:
        parts.append(
            f'<text x="{across(value):.1f}" y="{bottom + 15}" text-anchor="middle" fill-opacity=".75">'
            f"{_text(text)}</text>"
        )
    parts.append(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="currentColor" '
        'stroke-opacity=".45"/>'
    )
    return parts


def _legend(title: str, lines: list[_Line]) -> list[tuple[int, int, _Line | None, str]]:
    """(x, row, line, text): the title and an entry for each line, in as many rows as they need."""
    entries: list[tuple[int, int, _Line | None, str]] = [(6, 0, None, _cut(title))]
    x, row = 24 + round(7.2 * len(_cut(title))), 0
    for line in (line for line in lines if line.label):
        text = f"{_cut(line.label)}  {number(line.last)}"
        width = 34 + round(6.6 * len(text))
        if x + width > WIDTH - _RIGHT and x > 6:
            x, row = 6, row + 1
        entries.append((x, row, line, text))
        x += width
    return entries


def _cut(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"


def _text(text: str) -> str:
    return str(escape(printable(str(text))))


def number(value: float) -> str:
    """Four digits; large whole numbers with commas."""
    if 1e4 <= abs(value) < 1e9 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"
