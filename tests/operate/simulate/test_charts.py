"""Axes and charts: facts that hold for any values, not pixels."""

from __future__ import annotations

import json
import re
from html import unescape
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.operate.simulate.charts import Bar, Chart, Line, bars, figure
from tokenmill.operate.simulate.scales import linear_axis, log_axis, number_words, share_words
from tokenmill.operate.simulate.summary import Curve

VALUES = st.lists(st.floats(0, 1e9), max_size=30)


@given(VALUES, st.booleans())
def test_a_linear_axis_holds_all_values(values: list[float], tight: bool) -> None:
    axis = linear_axis(values, tight=tight)
    assert axis.low == 0
    assert axis.high >= max(values, default=0)
    assert 1 <= len(axis.ticks) <= 8
    assert axis.ticks == sorted(axis.ticks)
    assert axis.ticks[-1] <= axis.high * (1 + 1e-9)
    assert all(0 <= axis.share(value) <= 1 for value in values)


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=30))
def test_a_log_axis_holds_all_values(values: list[float]) -> None:
    axis = log_axis(values)
    assert axis.low <= min(values) * 1.001
    assert axis.high >= max(values) * 0.999
    assert len(axis.ticks) <= 20
    ordered = sorted(values)
    shares = [axis.share(value) for value in ordered]
    assert shares == sorted(shares)
    assert axis.share(0.0) == 0


def test_marks_are_round_numbers() -> None:
    assert linear_axis([0, 97]).ticks == [0, 20, 40, 60, 80, 100]
    assert linear_axis([0, 97], tight=True).high == 97
    assert log_axis([3, 800]).ticks == pytest.approx([2, 5, 10, 20, 50, 100, 200, 500, 1000])
    assert log_axis([]).ticks == [1, 2, 5, 10]


def test_numbers_are_short() -> None:
    assert [number_words(value) for value in (0, 0.25, 1500, 2_500_000)] == ["0", "0.25", "1,500", "2.5M"]
    assert share_words(0.25) == "25%"


def a_chart(*curves: Curve, **changes: object) -> Chart:
    lines = [Line(name=f"line <{index}>", curve=curve, colour=index) for index, curve in enumerate(curves)]
    return Chart(**{"title": "A & B", "x_name": "s", "y_name": "n", "lines": lines, **changes})


def parsed(html: str) -> ET.Element:
    return ET.fromstring(html)


CURVES = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=20).map(
    lambda points: Curve(x=[x for x, _ in sorted(points)], y=[y for _, y in sorted(points)])
)


@settings(deadline=None)
@given(st.lists(CURVES, min_size=1, max_size=10), st.booleans(), st.one_of(st.none(), st.floats(0.1, 100)))
def test_any_curves_stay_inside_their_chart(curves: list[Curve], log: bool, limit: float | None) -> None:
    root = parsed(figure(a_chart(*curves, log=log, limit=limit, limit_name="most")))
    svg = root.find("svg")
    assert svg is not None
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for path in svg.findall("path"):
        numbers = [float(each) for each in re.findall(r"[\d.]+", path.attrib["d"])]
        assert all(0 <= each <= width for each in numbers[::2])
        assert all(0 <= each <= height for each in numbers[1::2])
    assert len(svg.findall("path")) == sum(bool(curve.x) for curve in curves)


def test_a_chart_carries_its_values_and_names() -> None:
    curve = Curve(x=[0.0, 1.0, 2.0], y=[0.0, 0.5, 1.0])
    root = parsed(figure(a_chart(curve, curve, shares=True, limit=1.0, limit_name="limit")))
    data = json.loads(unescape(root.attrib["data-chart"]))
    assert [line["name"] for line in data["lines"]] == ["line <0>", "line <1>"]
    assert data["lines"][0]["y"] == ["0%", "50%", "100%"]
    assert data["lines"][0]["x"] == [0, 1, 2]
    texts = "".join(root.itertext())
    assert "A & B" in texts
    assert "line <1>" in texts
    assert "limit" in texts


def test_one_line_needs_no_legend() -> None:
    curve = Curve(x=[0.0, 1.0], y=[1.0, 2.0])
    assert 'class="legend"' not in figure(a_chart(curve))
    assert 'class="legend"' in figure(a_chart(curve, curve))


def test_lines_beyond_the_colours_are_dashed() -> None:
    curve = Curve(x=[0.0, 1.0], y=[1.0, 2.0])
    html = figure(a_chart(*[curve] * 9))
    assert html.count('class="line c0"') == 1
    assert html.count('class="line c0 dashed"') == 1


def test_bars_are_to_one_scale() -> None:
    rows = [
        Bar(name="a", parts=[("x", 3.0, 0), ("y", 1.0, 1)]),
        Bar(name="<b>", parts=[("x", 2.0, 0)]),
        Bar(name="c", parts=[]),
    ]
    root = parsed(bars("Cost", rows, lambda value: f"${value:g}"))
    widths = re.findall(r"width:([\d.]+)%", ET.tostring(root).decode())
    assert [float(width) for width in widths] == [75, 25, 50]
    texts = "".join(root.itertext())
    assert "<b>" in texts
    assert "$4" in texts


def test_an_axis_over_next_to_nothing_is_one_over_nothing() -> None:
    assert linear_axis([5e-324]) == linear_axis([])
