"""From what was seen to measurements."""

import pytest

from tokenmill.operate.profile.points import Point
from tokenmill.operate.profile.runs import (
    MIXED_REPEATS,
    Arrival,
    Run,
    Step,
    between_steps_ms,
    measurements_of,
    steps_of,
)


def test_steps_that_the_engine_tells_are_believed() -> None:
    steps = [Step(10, 55, 0, 0, 3.0), Step(0, 0, 1, 11, 2.0)]
    assert steps_of(Run(Point(1, 10, 2), 0.0, [[]], steps), "steps") == steps


def test_prefill_lasts_until_the_last_first_token() -> None:
    arrivals = [[Arrival(10.05, 1)], [Arrival(10.08, 1)]]
    (step,) = steps_of(Run(Point(2, 100, 1), 10.0, arrivals, []), "arrivals")
    assert step == Step(200, 2 * 5050, 0, 0, pytest.approx(80))


def test_decodes_count_while_all_are_decoding() -> None:
    first = [Arrival(1.0, 1), Arrival(1.5, 1), Arrival(2.0, 1), Arrival(2.01, 1), Arrival(2.02, 1)]
    second = [Arrival(2.0, 1), Arrival(2.01, 1), Arrival(2.03, 2)]
    steps = steps_of(Run(Point(2, 100, 5), 0.0, [first, second], []), "arrivals")
    assert [round(step.step_ms, 3) for step in steps] == [10, 10, 10]
    assert [step.sequences for step in steps] == [2, 2, 2]
    assert steps[0].decode_context == 2 * 104


def test_tokens_that_come_together_share_the_time() -> None:
    arrivals = [[Arrival(0.0, 1), Arrival(0.04, 4)]]
    (step,) = steps_of(Run(Point(1, 10, 5), 0.0, arrivals, []), "arrivals")
    assert step.step_ms == pytest.approx(10)


def test_requests_without_an_answer_tell_nothing() -> None:
    for outputs in (1, 5):
        assert steps_of(Run(Point(2, 10, outputs), 0.0, [[Arrival(1.0, 1)], []], []), "arrivals") == []


def test_like_steps_are_one_measurement() -> None:
    steps = [Step(100, 5050, 0, 0, ms) for ms in (5.0, 4.0, 6.0, 90.0, 5.5)]
    steps += [Step(0, 0, 2, 2 * (1000 + i), 2.0) for i in range(5)]
    steps += [Step(0, 0, 2, 2 * 4000, 3.0)]
    prompts, near, far = measurements_of(steps)
    assert (prompts.step_ms, prompts.repeats, prompts.low_ms, prompts.high_ms) == (5.5, 5, 4.0, 90.0)
    assert (near.repeats, near.decode_context) == (5, 2 * 1002)
    assert far.step_ms == 3.0


def test_steps_nobody_asked_for_count_when_seen_often() -> None:
    mixed = Step(100, 5050, 3, 300, 7.0)
    assert measurements_of([mixed] * (MIXED_REPEATS - 1)) == []
    assert len(measurements_of([mixed] * MIXED_REPEATS)) == 1


def test_times_of_nothing_are_left_out() -> None:
    assert measurements_of([Step(10, 55, 0, 0, 0.0)]) == []


def test_the_time_between_steps_is_that_of_decodes() -> None:
    decodes = [Step(0, 0, 1, 20, 5.0, before_ms) for before_ms in (0.2, 0.3, 9.0)]
    others = [Step(16, 136, 0, 0, 5.0, None), Step(0, 0, 1, 17, 5.0, None), Step(16, 136, 1, 20, 5.0, 4.0)]
    assert between_steps_ms(decodes + others) == 0.3
    assert between_steps_ms(others) == 0
    assert between_steps_ms([Step(0, 0, 1, 20, 5.0, -0.1)]) == 0
