"""Charts as a parser of XML reads them."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hap.reports.charts import HEIGHT, WIDTH, line_chart


def parsed(chart: str) -> ElementTree.Element:
    root = ElementTree.fromstring(chart)
    for numbers in re.findall(r'(?:d|points|x1|x2|y1|y2|cx|cy)="([^"]*)"', chart):
        assert "nan" not in numbers
        assert "inf" not in numbers
    return root


def polyline(chart: str) -> list[np.ndarray]:
    """The pieces of the first line, each (N, 2) in the picture."""
    path = next(p for p in parsed(chart).iter("path") if p.get("fill") == "none").get("d")
    pieces = path.strip("M").split("M")
    return [np.array([[float(v) for v in p.split(",")] for p in piece.split("L")]) for piece in pieces]


def texts(chart: str) -> list[str]:
    return ["".join(t.itertext()) for t in parsed(chart).iter("text")]


def scale(chart: str, anchor: str) -> tuple[float, float]:
    """(a, b) with value = a * position + b, from the labels of an axis."""
    place = "y" if anchor == "end" else "x"
    labels = [t for t in parsed(chart).iter("text") if t.get("text-anchor") == anchor]
    pairs = [(float(t.get(place)), float(t.text.replace(",", ""))) for t in labels if t.text[-1].isdigit()]
    a, b = np.polyfit(*zip(*pairs, strict=True), 1)
    return a, b + (4 * a if place == "y" else 0)  # letters stand 4 below their line


def test_points_are_where_the_axes_say():
    x, y = [0, 500, 1000, 12000], [0.25, -1.5, 3.0, 2.0]
    chart = line_chart({"train": (x, y)}, "step", "loss")
    (points,) = polyline(chart)
    for column, anchor, truth in ((0, "middle", x), (1, "end", y)):
        a, b = scale(chart, anchor)
        np.testing.assert_allclose(a * points[:, column] + b, truth, atol=0.01 * np.ptp(truth))
    assert {"loss", "step", "train  2"} <= set(texts(chart))


def test_what_is_not_finite_is_a_gap_and_a_cross():
    y = [1, 2, math.nan, 3, math.inf, 4, 1e305]
    chart = line_chart({"loss": (range(7), y)}, "step", "loss")
    assert [len(piece) for piece in polyline(chart)] == [2, 1, 1]
    crosses = [p for p in parsed(chart).iter("path") if p.get("fill") is None]
    assert len(crosses) == 3


@pytest.mark.parametrize(
    "y",
    [[], [1.0], [0.0, 0.0], [math.nan] * 3, [5e-324, 0], [1e20, 1e20 + 16384], [-1e299, 1e299], [7, 7, 7]],
)
def test_odd_values_have_a_chart(y):
    parsed(line_chart({"a": (range(len(y)), y)}, "step", "value", marks=[1]))


def test_many_points_are_few_and_lose_no_extreme():
    steps = np.arange(200_000)
    y = np.random.default_rng(0).normal(size=len(steps)).cumsum()
    y[123_456] = y.max() + 500
    chart = line_chart({"loss": (steps, y)}, "step", "loss")
    assert len(chart) < 30_000
    band = parsed(chart).find("polygon").get("points")
    heights = [float(point.split(",")[1]) for point in band.split()]
    a, b = scale(chart, "end")
    assert a * min(heights) + b == pytest.approx(y.max(), abs=0.01 * np.ptp(y))
    assert a * max(heights) + b == pytest.approx(y.min(), abs=0.01 * np.ptp(y))


def test_magnitudes_have_a_logarithmic_axis():
    y = [1e6, *[1.0] * 20, 0.1]
    chart = line_chart({"loss": (range(22), y)}, "step", "loss")
    assert "loss (log)" in texts(chart)
    (points,) = polyline(chart)
    top, middle, low = points[0, 1], points[1, 1], points[-1, 1]
    assert (middle - top) / (low - middle) == pytest.approx(6, rel=0.02)
    assert "(log)" not in line_chart({"lr": (range(3), [0.0, 1.0, 1e-9])}, "step", "lr")


def test_words_are_categories_in_their_order():
    chart = line_chart({"a": (["random", "block"], [1, 2]), "b": (["parts", 3], [2, 1])}, "strategy", "mAP")
    shown = texts(chart)
    places = [shown.index(word) for word in ("random", "block", "parts", "3")]
    assert places == sorted(places)


def test_spread_marks_and_order():
    chart = line_chart(
        {"mean": ([3, 1, 2], [30.0, 10, 20])},
        *("ratio", "mAP"),
        spread={"mean": ([29.0, 9, 19], [31.0, 11, 21])},
        marks=[2],
    )
    (points,) = polyline(chart)
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) < 0).all()
    assert len(parsed(chart).find("polygon").get("points").split()) == 6
    assert 'stroke-dasharray="3 3"' in chart


def test_names_are_text():
    name = """<script>"&'\x1b"""
    chart = line_chart({name * 9: ([0], [1])}, name, name)
    assert "<script" not in chart
    assert any("<script>" in text for text in texts(chart))


def test_a_legend_of_many_stays_in_the_picture():
    chart = line_chart({f"a line with a name {i}": ([0, 1], [i, 2]) for i in range(12)}, "step", "loss")
    for element in parsed(chart).iter("text"):
        if element.get("x"):
            assert 0 <= float(element.get("x")) <= WIDTH
            assert 0 <= float(element.get("y")) <= HEIGHT
