"""Charts as SVG that stands in an HTML page by itself: lines over time or over a distribution, and bars.

Colours are classes (``c0``, ``c1``, ...) that the page's style gives a colour. A chart carries its points for
the page's script, which shows the values under the pointer; without it the chart is still all there. It must
not know what is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

import msgspec

from tokenmill.operate.simulate.scales import Axis, linear_axis, log_axis, number_words, share_words
from tokenmill.operate.simulate.summary import Curve

COLOURS: Final = 8
"""Lines of one chart that can be told apart by colour; further ones begin anew, dashed."""

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line. ``colour``: a number; ``dashed``: it belongs to the line of the same colour."""

    name: str
    curve: Curve
    colour: int
    dashed: bool = False


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """``limit``: marks a value of the x axis, or of the y axis where ``limit_on_y``. ``shares``: y is a share
    of 0 to 1. ``log``: x by orders of magnitude."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    limit: float | None = None
    limit_name: str = ""
    limit_on_y: bool = False
    shares: bool = False
    log: bool = False

    @property
    def empty(self) -> bool:
        """There is nothing to draw."""
        return not any(line.curve.x for line in self.lines)


def figure(chart: Chart) -> str:
    """Return the chart as an HTML ``figure``; its legend is there where it has several lines."""
    x, y = _axes(chart)
    parts = [_grid(chart, x, y), *(_path(line, x, y) for line in chart.lines), _limit(chart, x, y)]
    label = f"{chart.title}: {chart.y_name} over {chart.x_name}"
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{"".join(parts)}<line class="cross" x1="0" x2="0" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"></line>'
        "</svg>"
    )
    legend = _legend(chart.lines) if len(chart.lines) > 1 else ""
    data = escape(json.dumps(_points(chart, x), separators=(",", ":")))
    return (
        f'<figure data-chart="{data}"><figcaption>{escape(chart.title)}</figcaption>{legend}{svg}'
        '<div class="tip" hidden=""></div></figure>'
    )


def _axes(chart: Chart) -> tuple[Axis, Axis]:
    xs = [value for line in chart.lines for value in line.curve.x]
    ys = [value for line in chart.lines for value in line.curve.y]
    if chart.limit is not None:
        (ys if chart.limit_on_y else xs).append(chart.limit)
    y = Axis(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]) if chart.shares else linear_axis(ys)
    return (log_axis(xs) if chart.log else linear_axis(xs, ticks=6, tight=True)), y


def _across(x: Axis, value: float) -> float:
    return _LEFT + x.share(value) * _INNER_WIDTH


def _down(y: Axis, value: float) -> float:
    return _TOP + (1 - y.share(value)) * _INNER_HEIGHT


def _grid(chart: Chart, x: Axis, y: Axis) -> str:
    parts = []
    words = _words(chart)
    for tick in y.ticks:
        at = _down(y, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"></line>'
        )
        parts.append(f'<text class="y" x="{_LEFT - 6}" y="{at + 3.5:.1f}">{escape(words(tick))}</text>')
    for tick in x.ticks:
        at = _across(x, tick)
        parts.append(f'<text class="x" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 14}">{number_words(tick)}</text>')
    middle = _LEFT + _INNER_WIDTH / 2
    parts.append(f'<text class="x name" x="{middle:.1f}" y="{_HEIGHT - 4}">{escape(chart.x_name)}</text>')
    return "".join(parts)


def _words(chart: Chart) -> Callable[[float], str]:
    return share_words if chart.shares else number_words


def _path(line: Line, x: Axis, y: Axis) -> str:
    points = [(_across(x, at), _down(y, value)) for at, value in zip(line.curve.x, line.curve.y, strict=True)]
    if not points:
        return ""
    words = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for across, down in points[1:]:
        words.append(f"L{across:.1f} {down:.1f}")
    dashed = line.dashed or line.colour >= COLOURS
    style = f"line c{line.colour % COLOURS}" + " dashed" * dashed
    return f'<path class="{style}" d="{"".join(words)}"><title>{escape(line.name)}</title></path>'


def _limit(chart: Chart, x: Axis, y: Axis) -> str:
    if chart.limit is None:
        return ""
    if chart.limit_on_y:
        at = _down(y, chart.limit)
        place = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"'
        words = f'<text class="limit" x="{_WIDTH - _RIGHT - 2}" y="{at - 4:.1f}">'
    else:
        at = _across(x, chart.limit)
        place = f'x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"'
        words = f'<text class="limit" x="{at - 4:.1f}" y="{_TOP + 10}">'
    return f'<line class="limit" {place}></line>{words}{escape(chart.limit_name)}</text>'


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<span><i class="b{line.colour % COLOURS}{" dashed" if line.dashed else ""}"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
    )
    return f'<div class="legend">{items}</div>'


def _points(chart: Chart, x: Axis) -> dict[str, object]:
    """What the script needs: where a point lies across, and what is said of it."""
    return {
        "x": chart.x_name,
        "width": _WIDTH,
        "lines": [
            {
                "name": line.name,
                "at": [round(_across(x, value), 1) for value in line.curve.x],
                "x": [float(f"{value:.4g}") for value in line.curve.x],
                "y": [_words(chart)(value) for value in line.curve.y],
            }
            for line in chart.lines
        ],
    }


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of stacked parts: (name, value, colour)."""

    name: str
    parts: Sequence[tuple[str, float, int]]


def bars(title: str, rows: Sequence[Bar], words: Callable[[float], str]) -> str:
    """Return stacked horizontal bars as an HTML ``figure``, to one scale."""
    most = max((sum(value for _, value, _ in row.parts) for row in rows), default=0.0) or 1.0
    lines = []
    for row in rows:
        cells = "".join(
            f'<span class="b{colour % COLOURS}" style="width:{value / most * 100:.2f}%" '
            f'title="{escape(f"{name}: {words(value)}")}"></span>'
            for name, value, colour in row.parts
        )
        total = words(sum(value for _, value, _ in row.parts))
        lines.append(
            f'<div class="bar"><b>{escape(row.name)}</b><div>{cells}</div><em>{escape(total)}</em></div>'
        )
    names = {name: colour for row in rows for name, _, colour in row.parts}
    legend = "".join(
        f'<span><i class="b{colour % COLOURS}"></i>{escape(name)}</span>' for name, colour in names.items()
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{legend}</div>'
        f"{''.join(lines)}</figure>"
    )
