"""Trusted step times, corrected by reports: they converge, stay in bounds, and say how sure they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.decide.perf.test_table import table_of

from tokenmill.decide.perf.class_times import StepTimes
from tokenmill.decide.perf.corrected import BOUND, CorrectedStepTime
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.metrics import StepMetrics

TRUSTED = TableStepTime(table_of())
WORKS = ((0, 0, 8, 8 * 500), (512, 512 * 256, 0, 0), (0, 0, 64, 64 * 2000), (256, 256 * 900, 16, 16 * 800))


def report(step: int, work: tuple[int, int, int, int], step_ms: float) -> StepMetrics:
    new, context, sequences, read = work
    return StepMetrics(
        step=step,
        step_ms=step_ms,
        prefill_tokens=new,
        prefill_context_tokens=context,
        decode_tokens=sequences,
        decode_context_tokens=read,
    )


def device_ms(work: tuple[int, int, int, int], prefill: float, decode: float) -> float:
    decode_ms = TRUSTED.decode_ms(work[2], work[3])
    return prefill * (TRUSTED.mixed_ms(*work) - decode_ms) + decode * decode_ms


def taught(prefill: float, decode: float, steps: int = 200) -> CorrectedStepTime:
    times = CorrectedStepTime(TRUSTED)
    for step in range(1, steps + 1):
        work = WORKS[step % len(WORKS)]
        times.observe(report(step, work, device_ms(work, prefill, decode)))
    return times


@given(st.floats(0.5, 2), st.floats(0.5, 2))
def test_it_learns_both_paces(prefill: float, decode: float) -> None:
    times = taught(prefill, decode)
    for work in (*WORKS, (100, 5000, 0, 0)):
        assert times.mixed_ms(*work) == pytest.approx(device_ms(work, prefill, decode), rel=0.08)
    assert times.prefill_ms(512, 512 * 256) == pytest.approx(
        prefill * TRUSTED.prefill_ms(512, 512 * 256), rel=0.08
    )
    assert times.decode_ms(8, 4000) == pytest.approx(decode * TRUSTED.decode_ms(8, 4000), rel=0.08)


@given(st.lists(st.tuples(st.sampled_from(WORKS), st.floats(1e-3, 1e6)), min_size=1, max_size=60))
def test_no_report_drives_it_out_of_bounds(reports: list) -> None:
    times = CorrectedStepTime(TRUSTED)
    for step, (work, step_ms) in enumerate(reports, 1):
        times.observe(report(step, work, step_ms))
        for asked in WORKS:
            trusted_ms = TRUSTED.mixed_ms(*asked)
            assert trusted_ms / BOUND * 0.999 <= times.mixed_ms(*asked) <= trusted_ms * BOUND * 1.001
        assert 0 <= times.confidence(*work) <= 1


def test_a_worker_of_another_kind_is_told_by_its_bound() -> None:
    assert taught(8, 8).correction().at_bound
    assert not taught(1.2, 0.9).correction().at_bound


def test_confidence_grows_with_what_was_seen() -> None:
    fresh, known = CorrectedStepTime(TRUSTED).correction(), taught(1.3, 1.1).correction()
    assert fresh.confidence < known.confidence
    assert known.confidence > 0.9
    assert (fresh.prefill, fresh.decode, fresh.samples) == (1, 1, 0)
    assert known.samples == 200


def test_doubtful_times_are_corrected_sooner() -> None:
    work, step_ms = WORKS[0], 1.8 * TRUSTED.mixed_ms(*WORKS[0])
    sure, unsure = CorrectedStepTime(TRUSTED, doubt=0.05), CorrectedStepTime(TRUSTED, doubt=0.5)
    for times in (sure, unsure):
        times.observe(report(1, work, step_ms))
    assert sure.mixed_ms(*work) < unsure.mixed_ms(*work) <= step_ms


def test_a_report_is_learned_once() -> None:
    times = CorrectedStepTime(TRUSTED)
    assert times.observe(report(1, WORKS[0], 9.0))
    assert not times.observe(report(1, WORKS[0], 9.0))
    assert not times.observe(StepMetrics(step=2, step_ms=5.0))
    assert times.samples == 1


def test_until_taught_it_says_what_is_trusted() -> None:
    times = CorrectedStepTime(TRUSTED)
    for work in WORKS:
        assert times.mixed_ms(*work) == pytest.approx(TRUSTED.mixed_ms(*work))
    assert times.kv_bytes_per_token == TRUSTED.kv_bytes_per_token
    assert times.kv_capacity_tokens == TRUSTED.kv_capacity_tokens
    assert times.transfer_ms(100) == TRUSTED.transfer_ms(100)
    assert times.mixed_ms(0, 0, 0, 0) == 0


@pytest.mark.parametrize(("doubt", "bound"), [(0.3, 1.0), (0, 3)])
def test_senseless_settings_are_refused(doubt: float, bound: float) -> None:
    with pytest.raises(ValueError, match="bound must be"):
        CorrectedStepTime(TRUSTED, doubt=doubt, bound=bound)


def test_the_routers_book_of_times_takes_trusted_ones() -> None:
    book = StepTimes()
    trusted = book.joined(WorkerId("a"), "measured", trusted=TRUSTED)
    guessed = book.joined(WorkerId("b"), "guessed", LinearStepTime(fixed_ms=77))
    assert trusted.mixed_ms(*WORKS[1]) == pytest.approx(TRUSTED.mixed_ms(*WORKS[1]))
    assert guessed.decode_ms(1, 1) == pytest.approx(77, rel=0.01)
    for step in range(1, 200):
        work = WORKS[step % len(WORKS)]
        book.observe(WorkerId("a"), report(step, work, device_ms(work, 1.5, 1.2)))
    assert trusted.decode_ms(8, 4000) == pytest.approx(1.2 * TRUSTED.decode_ms(8, 4000), rel=0.1)
