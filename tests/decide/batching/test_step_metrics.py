"""What a step did and what is on its way, as others hear it."""

from __future__ import annotations

from tests.decide.batching.conftest import Driver

from tokenmill.decide.batching.types import KvArrived
from tokenmill.protocol.ids import RequestId, Role


def test_the_work_of_a_step_is_told_with_the_context_it_read():
    driver = Driver(token_budget=16, prefill_budget=8)
    driver.add("a", 10)
    driver.step()
    metrics = driver.scheduler.metrics(7.0)
    assert (metrics.step_ms, metrics.prefill_tokens, metrics.decode_tokens) == (7.0, 8, 0)
    assert (metrics.prefill_context_tokens, metrics.decode_context_tokens) == (8 * 9 // 2, 0)
    driver.step()
    metrics = driver.scheduler.metrics(7.0)
    assert (metrics.prefill_tokens, metrics.prefill_context_tokens) == (2, 9 + 10)
    driver.add("b", 3)
    driver.step()
    metrics = driver.scheduler.metrics(7.0)
    assert (metrics.decode_tokens, metrics.decode_context_tokens) == (1, 11)
    assert (metrics.prefill_tokens, metrics.prefill_context_tokens) == (3, 1 + 2 + 3)


def test_tokens_to_be_fetched_are_told_until_they_are_here():
    driver = Driver(max_sequences=1)
    for name in "ab":
        driver.add(name, 20, role=Role.DECODE, receives=True)
    assert driver.scheduler.metrics(0.0).receiving_tokens == 40
    driver.plan()  # admits the first, the second waits for its place
    metrics = driver.scheduler.metrics(0.0)
    assert (metrics.receiving, metrics.waiting, metrics.receiving_tokens) == (1, 1, 40)
    driver.handle(KvArrived(RequestId("a"), 7, 20, 12.5))
    metrics = driver.scheduler.metrics(0.0)
    assert metrics.receiving_tokens == 20
    assert (metrics.transfer_tokens_total, metrics.transfer_ms_total) == (20, 12.5)
    driver.cancel("b")
    assert driver.scheduler.metrics(0.0).receiving_tokens == 0


def test_what_is_cached_here_is_not_to_be_fetched():
    driver = Driver()
    prompt = list(range(100, 120))
    driver.add("a", prompt, max_tokens=1)
    driver.step()
    driver.add("b", prompt, role=Role.DECODE, receives=True)
    driver.plan()
    assert driver.scheduler.metrics(0.0).receiving_tokens == 0
    driver.add("c", [*prompt, 1, 2], role=Role.DECODE, receives=True)
    driver.plan()
    assert driver.scheduler.metrics(0.0).receiving_tokens == 2
