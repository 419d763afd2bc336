"""From measured steps to a step table, the prefill batch that saturates, and how sure both are.

Exists so that every engine that can be measured has times of the same form. It must not know how steps were
measured.

Fitted: ``T(tokens) + p * prefill context + d * decode context`` for steps with prompts, and ``D(sequences)
+ d * decode context`` for steps of decodes alone. Both are straight between the measured sizes; ``T`` rises,
``D`` need not: products of a few rows run on other kernels, and two sequences may take longer than four. All
is fitted at once by relative error, with no cost below 0.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from operator import mul
from statistics import median
from typing import Final

import msgspec

from tokenmill.decide.perf.least_squares import nonnegative_least_squares
from tokenmill.decide.perf.profile import Fit, Knee, Measurement
from tokenmill.decide.perf.table import Line, StepTable, TableStepTime

GAIN: Final = 1.05
"""A batch saturates the device when each of two doublings would raise its rate by no more than this. With a
fixed overhead a step that is at nine tenths of the best rate; on a device that is idle below a floor, the
floor's end. A share of the best rate itself would not do: large devices get a little better for a long
time."""

_GRID: Final = 2 ** (1 / 16)

MOST_KNOTS: Final = 14
"""Sizes at which ``T`` and ``D`` may bend."""

ROUNDS: Final = 4
LEAST_USUAL: Final = 0.01
"""An error of 1 % is no outlier, however good the fit."""

DISTURBED: Final = 1.6
"""A quiet machine's upper tenth of times is at most so many times its lower tenth."""

LEAST_APART: Final = 1.1
"""Sizes that are nearer to each other share a knot."""

RESAMPLES: Final = 40
"""Fits to measurements drawn anew, for the knee's uncertainty."""

_FAR: Final = 131072.0
_LIKELY: Final = (0.05, 0.95)


Rows = Sequence[Sequence[float]]


class NotEnough(ValueError):
    """The measurements cannot tell what is asked; the message says what lacks."""


def fit_table(
    measurements: Sequence[Measurement], *, kv_bytes_per_token: float, kv_capacity_tokens: int
) -> StepTable:
    """Fit a table to measurements. Raises NotEnough without two sizes of prompts and one of decodes."""
    prompts = [each for each in measurements if each.new_tokens > 0]
    decodes = [each for each in measurements if each.new_tokens <= 0 and each.sequences > 0]
    tokens = _knots([each.new_tokens for each in prompts if not each.sequences])
    sequences = _knots([each.sequences for each in decodes])
    if len(tokens) < 2:
        raise NotEnough("steps with prompts of two sizes or more are needed")
    if not sequences:
        raise NotEnough("steps of decodes are needed")
    rows = [_row(each, tokens, sequences) for each in (*prompts, *decodes)]
    weights, _ = _robustly(rows, [each.step_ms for each in (*prompts, *decodes)])
    dense, rest = weights[: len(tokens)], weights[len(tokens) :]
    decode_dense, (per_prefill, per_decode) = rest[: len(sequences)], rest[len(sequences) :]
    if len(sequences) == 1 or decode_dense[-1] < max(decode_dense):
        # No larger batch is taken to be faster than any that was measured.
        sequences.append(sequences[-1] * 2)
        decode_dense.append(max(decode_dense))
    contexts = (1.0, _FAR)
    return StepTable(
        tokens=tuple(tokens),
        sequences=tuple(sequences),
        contexts=contexts,
        dense_ms=_sums(dense),
        decode_dense_ms=tuple(decode_dense),
        prefill_attention_ms=tuple(tuple(per_prefill * n * c for c in contexts) for n in tokens),
        decode_attention_ms=tuple(tuple(per_decode * n * c for c in contexts) for n in sequences),
        kv_bytes_per_token=kv_bytes_per_token,
        kv_capacity_tokens=kv_capacity_tokens,
    )


def _robustly(rows: Rows, times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Fit by relative error; what is off by far more than the others counts less in the next round: other
    programs' work falls on some measurements and not on others. Returns weights, and how much each
    measurement counted."""
    trust = [1.0] * len(rows)
    for _ in range(ROUNDS - 1):
        weights = _fit(rows, times, trust)
        errors = [sum(map(mul, row, weights)) / time - 1 for row, time in zip(rows, times, strict=True)]
        usual = max(LEAST_USUAL, median(map(abs, errors)))
        trust = [1 / math.sqrt(1 + (error / (3 * usual)) ** 2) for error in errors]
    return _fit(rows, times, trust), trust


def _fit(rows: Rows, times: Sequence[float], trust: Sequence[float]) -> list[float]:
    shares = [much / time for much, time in zip(trust, times, strict=True)]
    scaled = [[value * share for value in row] for row, share in zip(rows, shares, strict=True)]
    return nonnegative_least_squares(scaled, trust)


def steadied(measurements: Sequence[Measurement]) -> tuple[list[Measurement], bool]:
    """Return what to fit to, and whether the machine was disturbed.

    The medians, as a rule. Where most kinds of work took very different times for the same, other programs
    ran beside: what the device itself takes is then seen in the shorter times, and those are returned.
    """
    spreads = [each.high_ms / each.low_ms for each in measurements if each.low_ms > 0 and each.repeats > 2]
    if not spreads or median(spreads) <= DISTURBED:
        return list(measurements), False
    return [msgspec.structs.replace(each, step_ms=each.low_ms) for each in measurements], True


def fit_error(table: StepTable, measurements: Sequence[Measurement]) -> Fit:
    """Return how far the table is from what was measured."""
    times = TableStepTime(table)
    errors = sorted(
        abs(
            times.mixed_ms(each.new_tokens, each.prefill_context, each.sequences, each.decode_context)
            / each.step_ms
            - 1
        )
        for each in measurements
    )
    return Fit(
        mean_error=sum(errors) / len(errors),
        p90_error=errors[min(len(errors) - 1, int(0.9 * len(errors)))],
        measurements=len(errors),
    )


def saturating_tokens(table: StepTable) -> int:
    """Return the smallest prefill batch that saturates the device (see ``GAIN``), tokens; the table's
    largest, where none does.

    Attention is left out: it goes by the prompts' lengths, whatever the batch.
    """
    return _saturation(table.tokens, table.dense_ms)


def _saturation(knots: Sequence[float], dense_ms: Sequence[float]) -> int:
    dense, tokens = Line(knots, dense_ms), knots[0]
    while tokens < knots[-1]:
        rate = tokens / dense(tokens)
        once, twice = 2 * tokens / dense(2 * tokens), 4 * tokens / dense(4 * tokens)
        if once <= GAIN * rate and twice <= GAIN * GAIN * rate:
            return max(1, round(tokens))
        tokens *= _GRID
    return round(knots[-1])


def find_knee(measurements: Sequence[Measurement], *, seed: int = 0) -> Knee:
    """Return the knee of measured prefill and its uncertainty.

    The uncertainty: each measurement is moved by its own spread, at random from ``seed``, and all is fitted
    again; the knees of these fits have the interval. Raises NotEnough without two sizes of prompts.
    """
    source = random.Random(seed)
    prompts = [each for each in measurements if each.new_tokens > 0 and not each.sequences]
    tokens = _knots([each.new_tokens for each in prompts])
    if len(tokens) < 2:
        raise NotEnough("steps with prompts of two sizes or more are needed")
    rows = [[*_rises(each.new_tokens, tokens), each.prefill_context] for each in prompts]
    weights, trust = _robustly(rows, [each.step_ms for each in prompts])
    dense = _sums(weights[:-1])
    knee = _saturation(tokens, dense)
    knees = []
    for _ in range(RESAMPLES):
        again = _fit(rows, [_moved(each, source) for each in prompts], trust)
        knees.append(_saturation(tokens, _sums(again[:-1])))
    knees.sort()
    low, high = (knees[round(share * (len(knees) - 1))] for share in _LIKELY)
    return Knee(
        tokens=knee,
        low=min(low, knee),
        high=max(high, knee),
        tokens_per_s=knee / Line(tokens, dense)(knee) * 1000,
        reached=2 * knee <= tokens[-1],
    )


def _moved(measurement: Measurement, source: random.Random) -> float:
    """A time that could have been measured as well, milliseconds: the median is off by its spread over the
    root of its repeats."""
    sd = (measurement.high_ms - measurement.low_ms) / 2.56 / max(1, measurement.repeats) ** 0.5
    return max(measurement.step_ms * 0.1, source.gauss(measurement.step_ms, 1.25 * sd))


def _knots(sizes: Sequence[float]) -> list[float]:
    """At most ``MOST_KNOTS`` of the sizes, spread evenly over their ranks, the first and the last among
    them."""
    distinct: list[float] = []
    for size in sorted(set(sizes)):
        if not distinct or size > distinct[-1] * LEAST_APART:
            distinct.append(size)
    if len(distinct) <= MOST_KNOTS:
        return distinct
    steps = (len(distinct) - 1) / (MOST_KNOTS - 1)
    return [distinct[round(i * steps)] for i in range(MOST_KNOTS)]


def _row(each: Measurement, tokens: Sequence[float], sequences: Sequence[float]) -> list[float]:
    """What each weight adds: rises of ``T``, values of ``D``, prefill attention, decode attention."""
    dense, decode = [0.0] * len(tokens), [0.0] * len(sequences)
    if each.new_tokens > 0:
        dense = _rises(each.new_tokens + each.sequences, tokens)
    else:
        decode = _shares(each.sequences, sequences)
    return [*dense, *decode, each.prefill_context, each.decode_context]


def _rises(size: float, knots: Sequence[float]) -> list[float]:
    """How much of each knot's rise over the one before counts at ``size``."""
    place = min(max(bisect_right(knots, size), 1), len(knots) - 1)
    share = (size - knots[place - 1]) / (knots[place] - knots[place - 1])
    return [1.0] * place + [max(0.0, share)] + [0.0] * (len(knots) - place - 1)


def _shares(size: float, knots: Sequence[float]) -> list[float]:
    """How much each knot's value counts at ``size``."""
    shares = [0.0] * len(knots)
    place = bisect_right(knots, size)
    if place in (0, len(knots)):
        shares[max(0, place - 1)] = 1.0
        return shares
    share = (size - knots[place - 1]) / (knots[place] - knots[place - 1])
    shares[place - 1], shares[place] = 1.0 - share, share
    return shares


def _sums(rises: Sequence[float]) -> tuple[float, ...]:
    total, values = 0.0, []
    for rise in rises:
        total += rise
        values.append(total)
    return tuple(values)
