"""Fits recover what measurements were made from, and say how sure they are."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.perf.fitting import (
    NotEnough,
    find_knee,
    fit_error,
    fit_table,
    saturating_tokens,
    steadied,
)
from tokenmill.decide.perf.least_squares import nonnegative_least_squares
from tokenmill.decide.perf.profile import Measurement
from tokenmill.decide.perf.step_time import LinearStepTime, StepTimeModel, prompts_work
from tokenmill.decide.perf.table import StepTable, TableStepTime

SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def measured(
    true: StepTimeModel, work: tuple[float, float, float, float], noise: float, source: random.Random
) -> Measurement:
    times = sorted(true.mixed_ms(*work) * source.lognormvariate(0, noise) for _ in range(9))
    return Measurement(
        new_tokens=work[0],
        prefill_context=work[1],
        sequences=work[2],
        decode_context=work[3],
        step_ms=times[4],
        low_ms=times[1],
        high_ms=times[7],
        repeats=9,
    )


def sweep(true: StepTimeModel, noise: float = 0.0, seed: int = 0) -> list[Measurement]:
    source = random.Random(seed)
    works = [(*prompts_work([(n / parts, 0)] * parts), 0.0, 0.0) for n in SIZES for parts in (1, 4)]
    works += [(0.0, 0.0, float(b), b * c) for b in (1, 2, 4, 8, 16, 32) for c in (64.0, 1024.0, 4096.0)]
    return [measured(true, work, noise, source) for work in works]


def fitted(measurements: list[Measurement]) -> TableStepTime:
    return TableStepTime(fit_table(measurements, kv_bytes_per_token=1, kv_capacity_tokens=1))


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.5, 50),
    st.floats(0.005, 0.2),
    st.floats(1e-7, 1e-4),
    st.floats(1e-6, 1e-3),
    st.integers(0, 99),
)
def test_a_fit_recovers_the_model_behind_exact_times(
    fixed_ms: float, token_ms: float, context_ms: float, decode_context_ms: float, seed: int
) -> None:
    true = LinearStepTime(
        fixed_ms=fixed_ms,
        prefill_token_ms=token_ms,
        prefill_context_ms=context_ms,
        decode_sequence_ms=token_ms,
        decode_context_ms=decode_context_ms,
    )
    measurements = sweep(true, seed=seed)
    times = fitted(measurements)
    assert fit_error(times.table, measurements).p90_error < 0.005
    work = prompts_work([(700, 300), (100, 0)])
    assert times.prefill_ms(*work) == pytest.approx(true.prefill_ms(*work), rel=0.1)
    assert times.decode_ms(20, 20 * 2000) == pytest.approx(true.decode_ms(20, 20 * 2000), rel=0.1)


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noise_is_averaged_out(noise: float) -> None:
    true = LinearStepTime()
    times = fitted(sweep(true, noise))
    for work in ((64, 32 * 64), (300, 150 * 300), (2000, 1000 * 2000)):
        assert times.prefill_ms(*work) == pytest.approx(true.prefill_ms(*work), rel=3 * noise)


def test_a_few_disturbed_measurements_do_not_bend_the_fit() -> None:
    true = LinearStepTime()
    measurements = sweep(true, 0.01)
    for i in (5, 14, 30):
        each = measurements[i]
        measurements[i] = Measurement(
            new_tokens=each.new_tokens,
            prefill_context=each.prefill_context,
            sequences=each.sequences,
            decode_context=each.decode_context,
            step_ms=each.step_ms * 2.5,
            low_ms=each.low_ms,
            high_ms=each.high_ms * 3,
            repeats=each.repeats,
        )
    times = fitted(measurements)
    assert times.prefill_ms(400, 400 * 200) == pytest.approx(true.prefill_ms(400, 400 * 200), rel=0.08)
    assert times.decode_ms(12, 12 * 1000) == pytest.approx(true.decode_ms(12, 12 * 1000), rel=0.08)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([40, 100, 185, 500]), st.integers(0, 20))
def test_the_knee_is_where_the_model_says(saturates: int, seed: int) -> None:
    true = LinearStepTime(fixed_ms=10, prefill_token_ms=10 / saturates)
    knee = find_knee(sweep(true, 0.02, seed), seed=seed)
    assert knee.low <= knee.tokens <= knee.high
    assert saturates * 0.7 <= knee.tokens <= saturates * 1.5
    assert knee.tokens_per_s == pytest.approx(knee.tokens / true.prefill_ms(knee.tokens, 0) * 1000, rel=0.1)
    assert knee.reached


def test_more_noise_is_less_sure() -> None:
    true = LinearStepTime()
    quiet, loud = (find_knee(sweep(true, noise, 3)) for noise in (0.002, 0.1))
    assert quiet.high - quiet.low < loud.high - loud.low


def test_the_same_measurements_give_the_same_knee() -> None:
    measurements = sweep(LinearStepTime(), 0.05)
    assert find_knee(measurements, seed=7) == find_knee(measurements, seed=7)


def test_a_device_that_a_sweep_did_not_saturate_is_said_to_be_so() -> None:
    true = LinearStepTime(fixed_ms=100, prefill_token_ms=0.01)
    assert not find_knee(sweep(true)).reached


@given(st.floats(0.1, 100), st.floats(1e-3, 1))
def test_without_a_floor_the_knee_is_where_overhead_is_a_tenth(overhead_ms: float, token_ms: float) -> None:
    tokens = (1.0, overhead_ms / token_ms * 20 + 100, overhead_ms / token_ms * 1000 + 1000)
    dense = tuple(overhead_ms + token_ms * n for n in tokens)
    none = ((0.0, 0.0),) * 3
    table = StepTable(
        tokens=tokens,
        sequences=tokens,
        contexts=(1.0, 2.0),
        dense_ms=dense,
        decode_dense_ms=dense,
        prefill_attention_ms=none,
        decode_attention_ms=none,
        kv_bytes_per_token=1,
        kv_capacity_tokens=1,
    )
    knee = saturating_tokens(table)
    best = tokens[-1] / dense[-1]
    rate = knee / (overhead_ms + token_ms * knee)
    assert rate == pytest.approx(0.9 * best, rel=0.05) or knee <= 3


def test_a_disturbed_machine_is_known_by_its_spread() -> None:
    quiet, true = sweep(LinearStepTime(), 0.02), LinearStepTime()
    assert steadied(quiet) == (quiet, False)
    source = random.Random(5)
    loud = []
    for each in quiet:
        factor = source.uniform(1.5, 3)
        more = {"step_ms": each.step_ms * factor, "high_ms": each.high_ms * 2 * factor}
        loud.append(msgspec.structs.replace(each, **more))
    used, disturbed = steadied(loud)
    assert disturbed
    assert fitted(used).prefill_ms(400, 80_000) == pytest.approx(true.prefill_ms(400, 80_000), rel=0.1)
    assert fitted(loud).prefill_ms(400, 80_000) > 1.3 * true.prefill_ms(400, 80_000)


def test_what_is_not_enough_is_said() -> None:
    everything = sweep(LinearStepTime())
    prompts = [each for each in everything if each.new_tokens]
    decodes = [each for each in everything if not each.new_tokens]
    with pytest.raises(NotEnough, match="decodes"):
        fitted(prompts)
    with pytest.raises(NotEnough, match="two sizes"):
        fitted([prompts[0], *decodes])


@given(
    st.lists(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), min_size=3, max_size=12),
    st.lists(st.floats(-5, 5), min_size=12, max_size=12),
)
def test_least_squares_meets_the_conditions_of_a_minimum(
    rows: list[list[float]], targets: list[float]
) -> None:
    """Karush, Kuhn and Tucker: no weight below 0; the error falls along none that is free, nor by
    raising one at 0."""
    targets = targets[: len(rows)]
    weights = nonnegative_least_squares(rows, targets)
    rests = [
        target - sum(a * w for a, w in zip(row, weights, strict=True))
        for row, target in zip(rows, targets, strict=True)
    ]
    scale = max(1.0, *map(abs, targets)) * 100 * len(rows)
    for i, weight in enumerate(weights):
        slope = sum(row[i] * rest for row, rest in zip(rows, rests, strict=True))
        assert weight >= 0
        assert slope <= 1e-4 * scale
        if weight > 1e-9:
            assert abs(slope) <= 1e-4 * scale


class Uneven(LinearStepTime, frozen=True, kw_only=True):
    """Two sequences take longer than four."""

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        step_ms = super().mixed_ms(new_tokens, prefill_context, sequences, decode_context)
        return step_ms + 3 * (sequences == 2 and not new_tokens)


def test_a_batch_may_take_longer_than_a_larger_one() -> None:
    true = Uneven(fixed_ms=5, decode_sequence_ms=0.1, decode_context_ms=1e-5)
    times = fitted(sweep(true))
    for batch in (1, 2, 4, 8):
        assert times.decode_ms(batch, batch * 512) == pytest.approx(
            true.decode_ms(batch, batch * 512), rel=0.02
        )


def test_a_batch_beyond_the_largest_is_not_faster_than_any_measured() -> None:
    measurements = [each for each in sweep(Uneven()) if each.sequences <= 4]
    times = fitted(measurements)
    assert times.decode_ms(8, 8) == pytest.approx(times.decode_ms(2, 8), rel=0.02)
    assert times.decode_ms(64, 64) >= times.decode_ms(8, 8)
    single = fitted([each for each in measurements if each.sequences <= 1])
    assert single.decode_ms(16, 16) == pytest.approx(single.decode_ms(1, 16), rel=0.02)
