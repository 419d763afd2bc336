"""From what was seen of a point to measurements. Plain functions over times; they run nothing.

An engine that says how long each step took is believed step by step. Of others it is known when tokens
came: a prefill lasts until the last prompt's first token, and a decode step is the time between two tokens
of a sequence while all sequences are decoding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final, NamedTuple

from tokenmill.decide.perf.profile import Measurement, Method
from tokenmill.decide.perf.step_time import prompts_work
from tokenmill.operate.profile.points import Point

MIXED_REPEATS: Final = 3
"""A kind of step that nobody asked for counts if it was seen so often."""

_CONTEXTS_IN_OCTAVE: Final = 2
_MIDDLE: Final = (0.1, 0.9)


class Step(NamedTuple):
    """One step's work, as in ``StepTimeModel``, and time. ``before_ms``: since the step before it had ended,
    in the same run; None: not known."""

    new_tokens: float
    prefill_context: float
    sequences: float
    decode_context: float
    step_ms: float
    before_ms: float | None = None


class Arrival(NamedTuple):
    """When tokens came, in seconds, and how many."""

    at: float
    tokens: int


class Run(NamedTuple):
    """What was seen of one point. ``arrivals``: for each request; ``steps``: where the engine tells them."""

    point: Point
    started_at: float
    arrivals: Sequence[Sequence[Arrival]]
    steps: Sequence[Step]


def steps_of(run: Run, method: Method) -> list[Step]:
    """Return the steps that a run shows."""
    if method == "steps":
        return list(run.steps)
    if run.point.output_tokens == 1:
        return _prefill_seen(run)
    return _decodes_seen(run)


def _prefill_seen(run: Run) -> list[Step]:
    if not all(run.arrivals):
        return []
    last = max(arrivals[0].at for arrivals in run.arrivals)
    work = prompts_work([(run.point.prompt_tokens, 0)] * run.point.prompts)
    return [Step(*work, 0, 0, (last - run.started_at) * 1000)]


def _decodes_seen(run: Run) -> list[Step]:
    """The gaps between tokens, from when all sequences decode until the first ends."""
    if not all(run.arrivals):
        return []
    begin = max(arrivals[0].at for arrivals in run.arrivals)
    end = min(arrivals[-1].at for arrivals in run.arrivals)
    steps = []
    for arrivals in run.arrivals:
        made = arrivals[0].tokens
        for before, after in pairwise(arrivals):
            made += after.tokens
            if before.at >= begin and after.at <= end:
                context = run.point.prompts * (run.point.prompt_tokens + made)
                gap_ms = (after.at - before.at) * 1000 / after.tokens
                steps.append(Step(0, 0, run.point.prompts, context, gap_ms))
    return steps


def measurements_of(steps: Iterable[Step]) -> list[Measurement]:
    """Put steps of like work together, the largest last. Those with a time of 0 are left out."""
    groups: dict[tuple[float, ...], list[Step]] = defaultdict(list)
    for step in steps:
        if step.step_ms > 0:
            groups[_kind(step)].append(step)
    measurements = [_measurement(group) for group in groups.values() if _counts(group)]
    return sorted(measurements, key=lambda each: (each.sequences, each.new_tokens, each.decode_context))


def _kind(step: Step) -> tuple[float, ...]:
    """Equal for steps that should take about as long: a decode's context grows with every step."""
    context = 0
    if step.sequences:
        context = round(_CONTEXTS_IN_OCTAVE * math.log2(max(1.0, step.decode_context / step.sequences)))
    return (step.new_tokens, step.prefill_context, step.sequences, context)


def _counts(group: Sequence[Step]) -> bool:
    mixed = group[0].new_tokens > 0 and group[0].sequences > 0
    return not mixed or len(group) >= MIXED_REPEATS


def _measurement(group: Sequence[Step]) -> Measurement:
    times = sorted(step.step_ms for step in group)
    low, high = (times[round(share * (len(times) - 1))] for share in _MIDDLE)
    return Measurement(
        new_tokens=group[0].new_tokens,
        prefill_context=group[0].prefill_context,
        sequences=group[0].sequences,
        decode_context=fmean(step.decode_context for step in group),
        step_ms=median(times),
        low_ms=low,
        high_ms=high,
        repeats=len(times),
    )


def between_steps_ms(steps: Iterable[Step]) -> float:
    """Return the median time between two steps of decodes, milliseconds; 0 where no step tells it.

    As it is seen where tokens are taken: what wavers there is as often too short as too long.
    """
    known = [step.before_ms for step in steps if step.before_ms is not None and not step.new_tokens]
    return max(0.0, median(known)) if known else 0.0
