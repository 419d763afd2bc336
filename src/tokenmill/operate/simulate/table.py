"""A simulated run as people read it on a terminal; several runs stand side by side.

Fits 80 columns as long as there are few stages or runs. It must not count anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenmill.operate.simulate.figures import FIGURES, change_words, level_words
from tokenmill.operate.simulate.summary import Latency, Spread, StageSummary, Summary

NOTHING: Final = "-"

_MOST_EVENTS: Final = 12


def show(summaries: Sequence[Summary], *, report: Path | None) -> None:
    """Print everything."""
    console = Console(highlight=False)
    first = summaries[0]
    console.print(f"load:  {first.load}, seed {first.seed}", markup=False)
    if first.scenario != "none":
        console.print(f"scene: {first.scenario}", markup=False)
    for summary in summaries:
        console.print(f"level: {level_words(summary)}", markup=False)
    console.print()
    if len(summaries) > 1:
        console.print(compared(summaries))
        console.print()
        for summary in summaries:
            console.print(stages_table(summary, title=summary.factory))
            console.print()
    else:
        console.print(latency_table(first.latency))
        console.print()
        console.print(figures_table(first))
        console.print()
        console.print(stages_table(first, title="stages"))
        console.print()
    for summary in summaries:
        name = f"{summary.factory}: " if len(summaries) > 1 else ""
        if summary.classes:
            console.print(classes_table(summary, title=f"{name}classes"))
            console.print()
        for line in _lines(summary):
            console.print(name + line, markup=False)
    if report is not None:
        console.print(f"report: {report}", markup=False)


def latency_table(latency: Latency) -> Table:
    """Return the latencies: a row for each kind, a column for each percentile."""
    table = Table(box=None, pad_edge=False)
    for column in ("ms", "mean", "p50", "p90", "p95", "p99", "most"):
        table.add_column(column, justify="left" if column == "ms" else "right")
    for name, spread in (
        ("first token (TTFT)", latency.ttft_ms),
        ("between tokens (ITL)", latency.itl_ms),
        ("a request's mean (TPOT)", latency.tpot_ms),
        ("whole answer", latency.e2e_ms),
    ):
        if spread is not None:
            table.add_row(name, *_cells(spread))
    return table


def _cells(spread: Spread) -> list[str]:
    if not spread.count:
        return [NOTHING] * 6
    return [
        _number(value) for value in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most)
    ]


def figures_table(summary: Summary) -> Table:
    """Return the run's other figures, one a row."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for figure in FIGURES:
        if not figure.is_latency and (words := figure.words(summary)):
            table.add_row(figure.name, escape(words))
    return table


def compared(summaries: Sequence[Summary]) -> Table:
    """Return the runs side by side, with what each of the others changes against the first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for index, summary in enumerate(summaries):
        table.add_column(escape(summary.factory), justify="right", overflow="fold")
        if index:
            table.add_column("", justify="right")
    for figure in FIGURES:
        words = [figure.words(summary) for summary in summaries]
        if not any(words):
            continue
        cells = [words[0] or NOTHING]
        for summary, text in zip(summaries[1:], words[1:], strict=True):
            cells += [text or NOTHING, change_words(figure, summaries[0], summary)]
        table.add_row(figure.name, *map(escape, cells))
    return table


def _origin(stage: StageSummary) -> str:
    return f"{stage.times_from} ±{stage.expected_error:.0%}" if stage.expected_error else stage.times_from


_Row = tuple[str, Callable[[StageSummary], str]]

STAGE_ROWS: Final[tuple[_Row, ...]] = (
    ("does", lambda each: {"both": "aggregated"}.get(each.role, each.role)),
    (
        "runs on",
        lambda each: f"{each.gpus_per_worker} {each.device}" if each.gpus_per_worker else each.device,
    ),
    ("workers", lambda each: f"{each.workers}"),
    ("busy", lambda each: f"{each.busy:.0%}"),
    ("running, mean", lambda each: f"{each.running:.1f}"),
    ("queued, mean", lambda each: f"{each.queued:.1f}"),
    ("queued, most", lambda each: f"{each.queued_most}"),
    ("KV held, mean", lambda each: f"{each.kv:.0%}"),
    ("KV held, most", lambda each: f"{each.kv_most:.0%}"),
    ("prompt tokens computed", lambda each: f"{each.prefill_tokens}"),
    ("tokens decoded", lambda each: f"{each.decode_tokens}"),
    ("preemptions", lambda each: f"{each.preemptions}"),
    ("$", lambda each: NOTHING if each.dollars is None else f"{each.dollars:.2f}"),
    ("step times", _origin),
)


def stages_table(summary: Summary, *, title: str) -> Table:
    """Return a column for each stage."""
    table = Table(box=None, pad_edge=False, title=escape(title), title_justify="left")
    table.add_column("")
    for stage in summary.stages:
        table.add_column(escape(stage.name), justify="right", overflow="fold")
    for name, words in STAGE_ROWS:
        table.add_row(name, *(escape(words(stage)) for stage in summary.stages))
    return table


def classes_table(summary: Summary, *, title: str) -> Table:
    """Return a row for each class."""
    table = Table(box=None, pad_edge=False, title=escape(title), title_justify="left")
    for column in ("class", "requests", "within", "TTFT p50", "p95", "TPOT p50", "p95", "income $"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for each in summary.classes:
        ttft, tpot = each.latency.ttft_ms, each.latency.tpot_ms
        table.add_row(
            escape(each.name or "(none)"),
            f"{each.requests}",
            f"{each.level.within:.1%}",
            _number(ttft.p50),
            _number(ttft.p95),
            _number(tpot.p50),
            _number(tpot.p95),
            NOTHING if each.income is None else f"{each.income:.2f}",
        )
    return table


def _lines(summary: Summary) -> list[str]:
    lines = [f"refused: {number} ({why})" for why, number in summary.refused.items()]
    lines += [f"at {each.at_s:.1f} s: {each.what}" for each in summary.events[:_MOST_EVENTS]]
    if len(summary.events) > _MOST_EVENTS:
        lines.append(f"and {len(summary.events) - _MOST_EVENTS} more events: see --json or --report")
    lines += [f"note: {note}" for note in summary.notes]
    return lines


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
