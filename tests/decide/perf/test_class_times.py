from __future__ import annotations

import random

import msgspec
import pytest
from tests.decide.perf.test_online import CPU, GPU, report, work

from tokenmill.decide.perf.class_times import StepTimes
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.metrics import StepMetrics

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
PROMPT = (512, 512 * 256, 0, 0)


def serve(times, truth, count, role, *workers, factor=None, seed=1, first=1):
    random_ = random.Random(seed)
    for step in range(first, first + count):
        for worker in workers:
            done = work(random_, role)
            step_ms = truth.mixed_ms(*done) * max(0.1, random_.gauss(1, 0.05))
            times.observe(worker, report(step, done, step_ms * (factor or {}).get(worker, 1.0)))


def test_a_decode_worker_is_known_by_the_prefill_workers_of_its_class():
    times = StepTimes()
    for worker in (A, B):
        times.joined(worker, "cpu")
    serve(times, CPU, 300, "prefill", A)
    serve(times, CPU, 300, "decode", B)
    assert times.of(B).mixed_ms(*PROMPT) == pytest.approx(CPU.mixed_ms(*PROMPT), rel=0.15)


def test_a_new_replica_inherits_and_another_class_does_not():
    times = StepTimes()
    times.joined(A, "cpu")
    serve(times, CPU, 300, "both", A)
    assert times.joined(B, "cpu").mixed_ms(*PROMPT) == pytest.approx(CPU.mixed_ms(*PROMPT), rel=0.1)
    assert times.joined(C, "gpu", GPU).mixed_ms(*PROMPT) == pytest.approx(GPU.mixed_ms(*PROMPT), rel=0.01)


def test_a_slow_worker_is_known_for_it_and_the_others_are_not():
    times = StepTimes()
    for worker in (A, B, C):
        times.joined(worker, "gpu")
    serve(times, GPU, 600, "both", A, B, C, factor={C: 2.0})
    slow, fast = times.of(C), times.of(A)
    assert slow.pace / fast.pace == pytest.approx(2.0, rel=0.15)
    assert fast.mixed_ms(*PROMPT) == pytest.approx(GPU.mixed_ms(*PROMPT), rel=0.15)
    assert slow.mixed_ms(*PROMPT) == pytest.approx(2 * GPU.mixed_ms(*PROMPT), rel=0.15)


def test_unlike_devices_of_one_class_are_told_apart_by_kind_of_work():
    """The decode worker's device has as much bandwidth as the other and a third of its arithmetic."""
    weak = msgspec.structs.replace(GPU, prefill_token_ms=3 * GPU.prefill_token_ms)
    times = StepTimes()
    times.joined(A, "any")
    times.joined(B, "any")
    for number in range(40):
        serve(times, GPU, 10, "prefill", A, seed=number, first=1 + 10 * number)
        serve(times, weak, 10, "both", B, seed=number, first=1 + 10 * number)
    strong_ms, weak_ms = times.of(A).mixed_ms(*PROMPT), times.of(B).mixed_ms(512, 512 * 256, 16, 16_000)
    assert strong_ms == pytest.approx(GPU.mixed_ms(*PROMPT), rel=0.2)
    assert weak_ms == pytest.approx(weak.mixed_ms(512, 512 * 256, 16, 16_000), rel=0.25)
    assert times.of(B).decode_ms(16, 16_000) == pytest.approx(weak.decode_ms(16, 16_000), rel=0.15)


def test_who_has_not_joined_or_has_left_is_ignored():
    times = StepTimes()
    serve(times, GPU, 1, "both", A)
    assert times.of(A) is None
    joined = times.joined(A, "gpu")
    assert times.joined(A, "gpu") is joined
    times.left(A)
    times.left(A)
    assert times.of(A) is None


def test_transfers_are_shared_until_a_worker_has_its_own():
    times = StepTimes()
    first, second = times.joined(A, "gpu"), times.joined(B, "gpu")
    for handoffs in range(1, 200):
        times.observe(A, transferred(handoffs, 100 * handoffs, 5.0 * handoffs))
    assert first.transfer_ms(100) == pytest.approx(5.0, rel=0.1)
    assert second.transfer_ms(100) == pytest.approx(5.0, rel=0.1)
    for handoffs in range(1, 20):
        times.observe(B, transferred(handoffs, 100 * handoffs, 50.0 * handoffs))
    assert second.transfer_ms(100) == pytest.approx(50.0, rel=0.1)
    assert first.transfer_ms(100) == pytest.approx(5.0, rel=0.1)


def transferred(handoffs, tokens, spent_ms):
    return StepMetrics(handoffs_in_total=handoffs, transfer_tokens_total=tokens, transfer_ms_total=spent_ms)
