"""A report as one HTML file: opens without a server and without a network.

Everything in it is drawn from summaries; several runs are laid over each other. It must not count anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final

from tokenmill.operate.simulate.charts import Bar, Chart, Line, bars, figure
from tokenmill.operate.simulate.figures import (
    FIGURES,
    change_words,
    level_words,
    milliseconds,
    verdict,
)
from tokenmill.operate.simulate.page_parts import SCRIPT, STYLE
from tokenmill.operate.simulate.summary import Charts, Curve, Series, Spread, StageSummary, Summary
from tokenmill.operate.simulate.table import STAGE_ROWS

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The page may fetch nothing, whatever a name in it says."""


_MOST_POINTS: Final = 120
"""Of a line over time."""


def page(summaries: Sequence[Summary]) -> str:
    """Return the HTML."""
    title = " and ".join(each.factory for each in summaries)
    body = "".join(_sections(summaries, title))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: simulated</title><style>{STYLE}</style></head>\n"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _sections(summaries: Sequence[Summary], title: str) -> Iterator[str]:
    yield _head(summaries, title)
    if len(summaries) == 1:
        yield _tiles(summaries[0])
    yield f"<h2>What requests saw</h2>{_charts(_seen(summaries))}"
    for summary in summaries:
        name = f"{escape(summary.factory)}: stages" if len(summaries) > 1 else "Stages over time"
        yield f"<h2>{name}</h2>{_charts(_stage_charts(summary))}{_stages(summary)}"
    yield f"<h2>Figures</h2>{_figures(summaries)}"
    if any(each.cost for each in summaries):
        yield f"<h2>Cost</h2>{_costs(summaries)}"
    for summary in summaries:
        if summary.classes:
            yield f"<h2>{escape(summary.factory)}: classes</h2>{_classes(summary)}"
    for summary in summaries:
        yield _events(summary)


def _head(summaries: Sequence[Summary], title: str) -> str:
    first = summaries[0]
    scenario = "" if first.scenario == "none" else f"<p>Scenario: {escape(first.scenario)}</p>"
    levels = "".join(
        f'<p class="{"kept" if each.level.kept else "missed"}">{escape(level_words(each))}</p>'
        for each in summaries
    )
    return (
        f"<h1>{escape(title)}</h1><p>Simulated. Load: {escape(first.load)}, seed {first.seed}</p>"
        f"{scenario}{levels}"
    )


def _tiles(summary: Summary) -> str:
    latency = summary.latency
    tiles = [
        ("TTFT p50, p95", _pair(latency.ttft_ms)),
        ("TPOT p50, p95", _pair(latency.tpot_ms)),
    ]
    wanted = (
        "goodput, requests/s",
        "output tokens/s a GPU",
        "prompt tokens cached",
        "$ a million output tokens",
    )
    tiles += [(each.name, each.words(summary)) for each in FIGURES if each.name in wanted]
    cells = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(words)}</b></div>'
        for name, words in tiles
        if words
    )
    return f'<div class="tiles">{cells}</div>'


def _pair(spread: Spread) -> str:
    if not spread.count:
        return ""
    return f"{milliseconds(spread.p50).removesuffix(' ms')}, {milliseconds(spread.p95)}"


def _charts(charts: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(figure(each) for each in charts if not each.empty)}</div>'


def _seen(summaries: Sequence[Summary]) -> list[Chart]:
    slo = summaries[0].level.slo
    return [
        _distribution(summaries, "Time to first token", lambda each: each.ttft_ms, slo.ttft_ms),
        _distribution(summaries, "Time between tokens", lambda each: each.itl_ms, slo.itl_ms, of="gaps"),
        _distribution(summaries, "Whole answer", lambda each: each.e2e_ms),
        Chart(
            title="Time to first token, by arrival",
            x_name="seconds",
            y_name="ms",
            lines=[
                *_lines(summaries, lambda each: each.ttft_p50_ms, tail=" p50"),
                *_lines(summaries, lambda each: each.ttft_p95_ms, tail=" p95", dashed=True),
            ],
            limit=slo.ttft_ms,
            limit_on_y=True,
        ),
        Chart(
            title="Requests that came, a second",
            x_name="seconds",
            y_name="requests a second",
            lines=_lines(summaries[:1], lambda each: each.arrivals),
        ),
        Chart(
            title="Requests waiting in front of the workers",
            x_name="seconds",
            y_name="requests",
            lines=_lines(summaries, lambda each: each.waiting),
        ),
    ]


def _lines(
    summaries: Sequence[Summary], curve: Callable[[Charts], Curve], *, dashed: bool = False, tail: str = ""
) -> list[Line]:
    return [
        Line(name=f"{each.factory}{tail}", curve=curve(each.charts), colour=index, dashed=dashed)
        for index, each in enumerate(summaries)
    ]


def _distribution(
    summaries: Sequence[Summary],
    title: str,
    curve: Callable[[Charts], Curve],
    limit_ms: float | None = None,
    *,
    of: str = "requests",
) -> Chart:
    return Chart(
        title=title,
        x_name="ms",
        y_name=f"share of {of}",
        lines=_lines(summaries, curve),
        limit=limit_ms,
        limit_name="" if limit_ms is None else f"{limit_ms:g} ms",
        shares=True,
        log=True,
    )


def _stage_charts(summary: Summary) -> list[Chart]:
    def chart(title: str, y_name: str, values: Callable[[Series], Sequence[float]], *, shares: bool) -> Chart:
        lines = [
            Line(
                name=stage.name,
                curve=_smoothed(stage.series.at_s, values(stage.series)),
                colour=index,
            )
            for index, stage in enumerate(summary.stages)
        ]
        return Chart(title=title, x_name="seconds", y_name=y_name, lines=lines, shares=shares)

    found = [
        chart("Utilization", "share of time in steps", lambda each: each.busy, shares=True),
        chart("Sequences queued at workers", "sequences", lambda each: each.queued, shares=False),
        chart("Sequences running", "sequences", lambda each: each.running, shares=False),
        chart("KV cache held", "share of blocks", lambda each: each.kv, shares=True),
    ]
    if any(len(set(stage.series.workers)) > 1 for stage in summary.stages):
        found.append(chart("Workers", "workers", lambda each: each.workers, shares=False))
    return found


def _smoothed(at_s: Sequence[float], values: Sequence[float]) -> Curve:
    """Return means over so many samples each that there are few enough points to see."""
    size = -(-len(at_s) // _MOST_POINTS) or 1
    starts = range(0, len(at_s), size)
    parts = [values[start : start + size] for start in starts]
    return Curve(x=[at_s[start] for start in starts], y=[sum(part) / len(part) for part in parts])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already, with their ``td``."""
    columns = "".join(f"<th>{escape(each)}</th>" for each in head)
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(words: str, style: str = "") -> str:
    return f'<td class="{style}">{escape(words)}</td>' if style else f"<td>{escape(words)}</td>"


def _figures(summaries: Sequence[Summary]) -> str:
    first = summaries[0]
    head = ["", first.factory]
    for other in summaries[1:]:
        head += [other.factory, "change"]
    rows = []
    for each in FIGURES:
        words = [each.words(summary) for summary in summaries]
        if not any(words):
            continue
        row = [_cell(each.name), _cell(words[0])]
        for other, text in zip(summaries[1:], words[1:], strict=True):
            row += [_cell(text), _cell(change_words(each, first, other), verdict(each, first, other))]
        rows.append(row)
    return _table(head, rows)


def _stages(summary: Summary) -> str:
    head = ["", *(stage.name for stage in summary.stages)]
    rows = [[_cell(name), *(_cell(words(stage)) for stage in summary.stages)] for name, words in STAGE_ROWS]
    return _table(head, rows)


def _costs(summaries: Sequence[Summary]) -> str:
    def dollars(stage: StageSummary) -> float:
        return stage.dollars or 0.0

    rows = [
        Bar(
            name=each.factory,
            parts=[(stage.name, dollars(stage), index) for index, stage in enumerate(each.stages)],
        )
        for each in summaries
    ]
    return f'<div class="charts">{bars("By stage, over the run", rows, lambda value: f"${value:.2f}")}</div>'


def _classes(summary: Summary) -> str:
    head = [
        "class",
        "requests",
        "within",
        "TTFT p50",
        "TTFT p95",
        "TPOT p50",
        "TPOT p95",
        "tokens in",
        "out",
        "income",
    ]
    rows = []
    for each in summary.classes:
        ttft, tpot = each.latency.ttft_ms, each.latency.tpot_ms
        words = [
            each.name or "(none)",
            f"{each.requests}",
            f"{each.level.within:.1%}",
            *(milliseconds(value) for value in (ttft.p50, ttft.p95, tpot.p50, tpot.p95)),
            f"{each.prompt_tokens}",
            f"{each.output_tokens}",
            "" if each.income is None else f"${each.income:.2f}",
        ]
        rows.append([_cell(text) for text in words])
    return _table(head, rows)


def _events(summary: Summary) -> str:
    lines = [f"at {each.at_s:.1f} s: {each.what}" for each in summary.events]
    lines += [f"refused: {number} ({why})" for why, number in summary.refused.items()]
    lines += [f"note: {note}" for note in summary.notes]
    if not lines:
        return ""
    return f"<h2>{escape(summary.factory)}: events and notes</h2>" + "".join(
        f"<p>{escape(line)}</p>" for line in lines
    )
