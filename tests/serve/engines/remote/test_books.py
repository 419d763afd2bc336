"""The load of a server, from what was sent there and from what it tells."""

from __future__ import annotations

import pytest

from tokenmill.decide.perf.online import OnlineStepTime
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.serve.engines.remote.books import LoadBooks
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.steps import NOTHING, average_step


def request(name: str, tokens: int = 100, role: Role = Role.BOTH) -> GenerateRequest:
    return GenerateRequest(
        request_id=RequestId(name), prompt=[1] * tokens, sampling=Sampling(max_tokens=4), role=role
    )


def test_what_was_sent_is_known_at_once() -> None:
    books = LoadBooks()
    books.opened(request("a"))
    books.opened(request("b", 50))
    books.opened(request("c", 70, Role.DECODE))
    metrics = books.metrics(10)
    assert (metrics.running, metrics.waiting, metrics.waiting_prefill_tokens) == (0, 3, 150)
    books.progressed(RequestId("a"))
    metrics = books.metrics(10)
    assert (metrics.running, metrics.waiting, metrics.waiting_prefill_tokens) == (1, 2, 50)
    for name in "abc":
        books.closed(RequestId(name))
    metrics = books.metrics(10)
    assert (metrics.running, metrics.waiting, metrics.waiting_prefill_tokens) == (0, 0, 0)


def test_what_others_sent_counts_too() -> None:
    books = LoadBooks()
    books.read(EngineGauges(running=3, waiting=2, kv_used=0.5))
    metrics = books.metrics(10)
    assert (metrics.running, metrics.waiting, metrics.kv_blocks_used) == (3, 2, 5)


def test_cached_tokens_wait_for_nothing() -> None:
    books = LoadBooks()
    books.opened(request("a", 1000), 40)
    books.opened(request("b", 50), 70)
    books.opened(request("c", 70, Role.DECODE), 70)
    assert books.metrics(10).waiting_prefill_tokens == 40 + 50


def test_a_reading_does_not_count_our_own_once_more() -> None:
    """It is older than what we know: of the four that it tells of, two have ended since, one of them before
    it came."""
    books = LoadBooks()
    for name in "abcd":
        books.opened(request(name))
        books.progressed(RequestId(name))
    books.closed(RequestId("a"))
    books.read(EngineGauges(running=4))
    books.closed(RequestId("b"))
    assert (books.metrics(10).running, books.metrics(10).waiting) == (2, 0)
    books.read(EngineGauges(running=5, waiting=1))
    assert (books.metrics(10).running, books.metrics(10).waiting) == (2 + 2, 1)


def test_tokens_that_were_fetched_were_not_computed() -> None:
    books = LoadBooks()
    books.read(EngineGauges(prompt_tokens=1000, prefix_hit_tokens=300, fetched_tokens=600))
    assert books.metrics(10).prefill_tokens_total == 100


BEFORE = EngineGauges(running=4, steps=100, prompt_tokens=1000, output_tokens=500)
AFTER = EngineGauges(running=4, steps=120, prompt_tokens=1600, prefix_hit_tokens=200, output_tokens=580)


def test_an_average_step() -> None:
    average = average_step(BEFORE, AFTER, 0.2, mean_length=50)
    assert average.step_ms == 10.0
    assert (average.prefill_tokens, average.decode_tokens) == (20, 4)
    assert (average.prefill_context_tokens, average.decode_context_tokens) == (500, 200)


def test_nothing_is_learned_of_a_server_that_rested() -> None:
    idle = EngineGauges(steps=100, prompt_tokens=1000, output_tokens=500)
    assert average_step(idle, AFTER, 0.2, mean_length=50) is NOTHING
    assert average_step(BEFORE, AFTER, 60.0, mean_length=50) is NOTHING
    assert average_step(AFTER, AFTER, 0.2, mean_length=50) is NOTHING


def test_routers_learn_from_it() -> None:
    books = LoadBooks()
    books.opened(request("a"))
    books.read(BEFORE, 1.0)
    assert books.metrics(10).step_ms == 0
    books.read(AFTER, 1.2)
    metrics = books.metrics(10)
    assert metrics.step == 120
    assert metrics.step_ms == pytest.approx(10.0)
    assert metrics.averaged
    assert OnlineStepTime().observe(metrics)
    books.closed(RequestId("a"))
    books.opened(request("b"))
    books.read(EngineGauges(running=1, steps=130, output_tokens=600), 1.4)
    assert books.metrics(10).step_ms == 0, "it may have rested in between"
    assert not books.metrics(10).averaged
