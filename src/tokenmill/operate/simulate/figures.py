"""The figures of a run that people compare: their names, their words, and which way is better.

Exists so that terminal and page say the same of the same figure. It must not count anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from tokenmill.operate.simulate.summary import Latency, Spread, Summary

Better = Literal["more", "less", ""]

_ALIKE: Final = 0.005
"""Figures that differ by less are called equal."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """``value``: of a run; None: there is none. ``form``: how it is written."""

    name: str
    value: Callable[[Summary], float | None]
    form: Callable[[float], str]
    better: Better = ""
    is_latency: bool = False

    def words(self, summary: Summary) -> str:
        """Return the figure in words, or nothing."""
        value = self.value(summary)
        return "" if value is None else self.form(value)


def change_words(figure: Figure, first: Summary, other: Summary) -> str:
    """Return by what share a figure changed against the first run, or nothing."""
    before, after = figure.value(first), figure.value(other)
    if not figure.better or before is None or after is None or not before:
        return ""
    change = after / before - 1
    return "=" if abs(change) < _ALIKE else f"{change:+.0%}" if abs(change) < 10 else f"{after / before:.0f}x"


def verdict(figure: Figure, first: Summary, other: Summary) -> Literal["better", "worse", ""]:
    """Return whether the other run is better in this."""
    before, after = figure.value(first), figure.value(other)
    if not figure.better or before is None or after is None or abs(after - before) < _ALIKE * abs(before):
        return ""
    return "better" if (after > before) == (figure.better == "more") else "worse"


def level_words(summary: Summary) -> str:
    """Return what was promised, and whether it was kept, in a line."""
    slo, level = summary.level.slo, summary.level
    promised = (
        f"{slo.percentile:g}% within {slo.ttft_ms:g} ms to the first token and {slo.itl_ms:g} ms a token"
    )
    kept = "kept" if level.kept else "not kept"
    return f"{summary.factory}: {promised}: {kept}, {level.within:.1%}"


def milliseconds(value: float) -> str:
    """Write a time."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _plain(value: float) -> str:
    return f"{value:.4g}" if value < 10_000 else f"{value:.0f}"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _dollars(value: float) -> str:
    return f"${value:.2f}" if value >= 1 else f"${value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:.4g} s"


def _latency(name: str, spread: Callable[[Latency], Spread | None], share: str) -> Figure:
    def value(summary: Summary) -> float | None:
        found = spread(summary.latency)
        return getattr(found, share) if found is not None and found.count else None

    return Figure(name=f"{name} {share}", value=value, form=milliseconds, better="less", is_latency=True)


def _price(name: str) -> Callable[[Summary], float | None]:
    def value(summary: Summary) -> float | None:
        return None if summary.cost is None else getattr(summary.cost.per_million, name)

    return value


def _more(name: str, value: Callable[[Summary], float | None], form: Callable[[float], str]) -> Figure:
    return Figure(name=name, value=value, form=form, better="more")


def _less(name: str, value: Callable[[Summary], float | None], form: Callable[[float], str]) -> Figure:
    return Figure(name=name, value=value, form=form, better="less")


FIGURES: Final[tuple[Figure, ...]] = (
    *(_latency("TTFT", lambda each: each.ttft_ms, share) for share in ("p50", "p90", "p95", "p99")),
    *(_latency("ITL", lambda each: each.itl_ms, share) for share in ("p50", "p90", "p95", "p99")),
    *(_latency("TPOT", lambda each: each.tpot_ms, share) for share in ("p50", "p95")),
    *(_latency("whole answer", lambda each: each.e2e_ms, share) for share in ("p50", "p95")),
    Figure(name="requests", value=lambda each: each.requests, form=_whole),
    _less("refused", lambda each: each.requests - each.served, _whole),
    _more("within the level", lambda each: each.level.within, _share),
    _less("too late (TTFT)", lambda each: each.level.late, _share),
    _less("too slow (TPOT)", lambda each: each.level.slow, _share),
    _more("goodput, requests/s", lambda each: each.level.goodput_per_s, _plain),
    Figure(name="offered, requests/s", value=lambda each: each.offered_per_s, form=_plain),
    _more("served, requests/s", lambda each: each.throughput.requests_per_s, _plain),
    _more("output tokens/s", lambda each: each.throughput.output_tokens_per_s, _plain),
    _more("output tokens/s a GPU", lambda each: each.throughput.output_tokens_per_s_per_gpu, _plain),
    Figure(name="GPUs, mean", value=lambda each: each.throughput.gpus or None, form=_plain),
    _more("prompt tokens cached", lambda each: each.prefix_hit, _share),
    Figure(name="handoffs", value=lambda each: each.handoffs or None, form=_whole),
    Figure(
        name="prompts computed where decoded",
        value=lambda each: each.local_prefills if each.handoffs else None,
        form=_whole,
    ),
    _less("migrations", lambda each: each.migrations or None, _whole),
    Figure(name="length", value=lambda each: each.makespan_s, form=_seconds),
    _less("cost", lambda each: each.cost.dollars if each.cost else None, _dollars),
    _less("$ an hour", lambda each: each.cost.dollars_per_hour if each.cost else None, _dollars),
    _less("$ a million input tokens", _price("input"), _dollars),
    _less("$ a million cached tokens", _price("cached"), _dollars),
    _less("$ a million output tokens", _price("output"), _dollars),
    _more("income", lambda each: each.cost.income if each.cost else None, _dollars),
)
"""In the order in which they are shown."""
