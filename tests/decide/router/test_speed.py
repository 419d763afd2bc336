from __future__ import annotations

import math

from tests.decide.router.routing_cases import card
from tests.decide.router.test_decode_weights import table

from tokenmill.decide.perf.class_times import StepTimes, WorkerTimes
from tokenmill.decide.router.cost import DeviceSpeed
from tokenmill.decide.router.speed import LEAST_SAMPLES, PACE_STEP, ClassSpeed, device_class
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.metrics import StepMetrics


def learn(times: WorkerTimes, token_ms: float, steps: int, first: int = 1) -> None:
    for step in range(first, first + steps):
        tokens = 512 if step % 2 else 4096
        times.observe(
            StepMetrics(
                step=step,
                step_ms=10 + token_ms * tokens,
                prefill_tokens=tokens,
                prefill_context_tokens=tokens,
            )
        )


def test_a_guess_holds_until_there_are_some_steps():
    speed, times = ClassSpeed(), StepTimes().joined(WorkerId("a"), "class")
    learn(times, 1.0, LEAST_SAMPLES - 1)
    assert speed.of(times, DeviceSpeed()) == DeviceSpeed()


def test_the_line_follows_what_is_learned():
    speed, times = ClassSpeed(), StepTimes().joined(WorkerId("a"), "class")
    learn(times, 0.2, 40)
    found = speed.of(times, DeviceSpeed())
    assert 0.17 < found.token_ms < 0.23
    assert 0 <= found.fixed_ms < 40


def test_equal_workers_have_one_speed_and_others_their_own():
    classes, speed = StepTimes(), ClassSpeed()
    workers = [classes.joined(WorkerId(name), "class") for name in "abc"]
    for step in range(0, 400, 2):
        for times, token_ms in zip(workers, (0.2, 0.2, 0.6), strict=True):
            learn(times, token_ms, 2, step + 1)
    first, second, slow = (speed.of(times, DeviceSpeed()) for times in workers)
    assert first is second
    assert slow.token_ms > 1.5 * first.token_ms


class Paced:
    samples = 100

    def __init__(self, steps: float) -> None:
        self.pace = math.exp(steps * PACE_STEP)

    def mixed_ms(self, tokens: float, context: float, sequences: float, decode_context: float) -> float:
        return self.pace * (5 + tokens / 10 + context / 1e6)


def test_a_worker_between_two_paces_keeps_the_speed_it_had():
    speed = ClassSpeed()
    last = speed.of(Paced(0.4), DeviceSpeed())
    assert last == DeviceSpeed(5.0, 0.1, 1e-6)
    assert speed.of(Paced(0.6), last) is last
    faster = speed.of(Paced(0.8), last)
    assert 1.09 < faster.token_ms / last.token_ms < 1.11
    assert speed.of(Paced(0.4), faster) is faster
    assert speed.of(Paced(0.2), faster) is last


def test_a_class_is_a_model_on_an_engine():
    assert device_class(card("a")) == device_class(card("b", stage="other"))
    assert device_class(card("a")) != device_class(card("a", engine="torch"))
    assert device_class(card("a")) != device_class(card("a", model="other"))


def test_workers_that_tell_other_step_times_are_of_another_class():
    quick, slow = table(1.0), table(2.0)
    assert device_class(card("a", step_table=quick)) == device_class(card("b", step_table=table(1.0)))
    assert device_class(card("a", step_table=quick)) != device_class(card("b", step_table=slow))
    assert device_class(card("a", step_table=quick)) != device_class(card("b"))
