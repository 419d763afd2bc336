from __future__ import annotations

import pytest

from tokenmill.decide.router.admission_words import BusyThresholds
from tokenmill.decide.router.admission_worker import WorkerRoom
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.metrics import StepMetrics

from .admission_cases import EMPTY, card

R = RequestId


def room(**fields) -> WorkerRoom:
    made = WorkerRoom(card("w", **fields), BusyThresholds())
    made.reported(StepMetrics(), 0.0)
    made.refresh()
    return made


def busy(made: WorkerRoom) -> bool:
    made.refresh()
    return made.busy


def test_room_scales_with_the_card():
    small, large = room(kv_blocks=10), room(kv_blocks=1000)
    for made in (small, large):
        made.sent(R("a"), 150, 150, 1.0)
    assert (busy(small), busy(large)) == (True, False)


def test_a_tenth_of_the_blocks_is_left_to_grow_into():
    made = room()
    made.reported(StepMetrics(kv_blocks_used=90, kv_blocks_total=100), 1.0)
    assert not busy(made)
    made.reported(StepMetrics(kv_blocks_used=91, kv_blocks_total=100), 1.0)
    assert busy(made)


def test_queued_prefill_counts_in_tokens_until_the_speed_is_known():
    made = room(kv_blocks=10_000)
    made.reported(StepMetrics(waiting_prefill_tokens=8192), 1.0)
    assert not busy(made)
    made.sent(R("a"), 1, 1, 1.0)
    assert busy(made)


def test_queued_prefill_counts_in_seconds_once_the_speed_is_known():
    made = room(kv_blocks=10_000)
    step = StepMetrics(prefill_tokens=500, step_ms=1000.0, waiting_prefill_tokens=400)
    made.reported(step, 1.0)
    assert made.prefill_limit_tokens == pytest.approx(500)
    assert not busy(made)
    made.reported(StepMetrics(waiting_prefill_tokens=501), 1.0)
    assert busy(made)


def test_only_full_steps_tell_the_speed():
    made = room()
    made.reported(StepMetrics(prefill_tokens=20, step_ms=10.0), 1.0)  # there was no more to compute
    assert made.prefill_limit_tokens == 8192
    for _ in range(60):
        made.reported(StepMetrics(prefill_tokens=2000, step_ms=50.0, waiting_prefill_tokens=1), 1.0)
    assert made.prefill_limit_tokens == pytest.approx(40_000)


def test_a_quarter_of_the_places_may_wait():
    made = room()
    made.reported(StepMetrics(running=10, waiting=2), 1.0)
    assert not busy(made)
    made.sent(R("a"), 1, 1, 1.0)
    assert busy(made)


def test_what_was_sent_counts_until_a_report_covers_it():
    made = room()
    made.sent(R("a"), 1000, 1000, 5.0)
    made.sent(R("b"), 500, 500, 5.0)
    assert busy(made)
    made.reported(EMPTY, 5.01)  # too soon to know of them
    assert busy(made)
    made.reported(StepMetrics(waiting=2, waiting_prefill_tokens=1500), 5.03)
    assert (made.queued_prefill_tokens, made.sequences) == (1500, 2)
    assert busy(made)  # they hold no blocks yet, but will
    made.prefilled(R("a"), 5.1)
    made.prefilled(R("b"), 5.1)
    made.reported(StepMetrics(running=2, kv_blocks_used=94, kv_blocks_total=100), 5.13)
    assert made.kv_share == pytest.approx(0.94)
    made.reported(StepMetrics(running=2, kv_blocks_used=10, kv_blocks_total=100), 5.2)  # found cached
    assert (made.kv_share, made.queued_prefill_tokens, made.sequences) == (0.1, 0, 2)
    assert not busy(made)


def test_a_report_that_is_older_than_it_looks_hides_nothing():
    made = room()
    made.sent(R("a"), 1500, 1500, 5.0)
    for late in range(1, 10):  # the worker has not come to read it
        made.reported(EMPTY, 5.0 + late)
        assert busy(made)
        assert (made.queued_prefill_tokens, made.sequences) == (1500, 1)
    made.validate()


def test_what_is_promised_counts_until_it_is_sent_and_reported():
    made = room()
    made.promised(R("a"), 1500)
    made.reported(EMPTY, 9.0)
    assert busy(made)
    made.sent(R("a"), 1500, 0, 10.0)
    made.reported(EMPTY, 10.01)
    assert busy(made)
    made.reported(StepMetrics(receiving=1, kv_blocks_used=40, kv_blocks_total=100), 10.05)
    assert made.kv_share == pytest.approx(0.4)
    assert made.sequences == 1
    assert not busy(made)


def test_what_ends_counts_before_the_next_report():
    made = room()
    for name in "abc":
        made.sent(R(name), 500, 500, 5.0)
    made.reported(StepMetrics(waiting=3, waiting_prefill_tokens=1500), 5.1)
    made.ended(R("c"))
    assert (made.sequences, made.queued_prefill_tokens) == (2, 1000)
    for name in "ab":
        made.prefilled(R(name), 5.2)
    made.reported(StepMetrics(running=2, kv_blocks_used=96, kv_blocks_total=100), 6.0)
    assert busy(made)
    made.ended(R("a"))
    assert made.kv_share == pytest.approx(0.96 - 500 / 1600)
    assert not busy(made)


def test_a_first_token_ends_the_prefill_and_keeps_the_room():
    made = room()
    made.sent(R("a"), 500, 500, 5.0)
    made.prefilled(R("a"), 5.5)
    made.prefilled(R("a"), 5.5)
    assert (made.queued_prefill_tokens, made.sequences) == (0, 1)
    assert made.kv_share == pytest.approx(500 / 1600)
    made.ended(R("a"))
    made.ended(R("a"))
    assert (made.queued_prefill_tokens, made.sequences, made.kv_share) == (0, 0, 0.0)


def test_corrections_never_make_less_than_nothing():
    made = room()
    made.sent(R("a"), 500, 500, 5.0)
    made.reported(EMPTY, 6.0)
    made.ended(R("a"))
    assert (made.queued_prefill_tokens, made.sequences, made.kv_share) == (0, 0, 0.0)


def test_what_a_card_does_not_say_is_no_limit():
    made = room(max_sequences=0, kv_blocks=0)
    for index in range(50):
        made.sent(R(str(index)), 100, 100, 1.0)
    assert not busy(made)


def test_a_mean_over_idle_time_too_tells_the_least_that_a_worker_can_do():
    made = room(kv_blocks=10_000)
    slow = StepMetrics(prefill_tokens=30, step_ms=10.0, waiting_prefill_tokens=1, averaged=True)
    made.reported(slow, 1.0)
    assert made.prefill_limit_tokens == 8192
    fast = StepMetrics(prefill_tokens=200, step_ms=10.0, waiting_prefill_tokens=1, averaged=True)
    made.reported(fast, 1.2)
    assert made.prefill_limit_tokens == pytest.approx(20_000)
    made.reported(slow, 1.4)
    assert made.prefill_limit_tokens == pytest.approx(19_980)
    for _ in range(1000):
        made.reported(slow, 1.5)
    assert made.prefill_limit_tokens == 8192


def test_what_prompts_of_late_found_cached_tells_what_the_next_one_finds():
    made = room()
    assert made.likely_computed(1000) == 1000
    made.reported(StepMetrics(prefix_query_tokens_total=4000, prefix_hit_tokens_total=3000), 1.0)
    assert made.likely_computed(1000) == 250
    made.reported(StepMetrics(), 2.0)  # the worker has begun anew
    assert made.likely_computed(1000) == 250
    for thousands in range(1, 500):
        made.reported(StepMetrics(prefix_query_tokens_total=1000 * thousands), 3.0)
    assert made.likely_computed(1000) > 990
