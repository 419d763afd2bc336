"""Unequal decode workers: only those that tell their step times are told apart, and they are as full as each
other."""

from collections import Counter

import pytest
from tests.decide.router.routing_cases import D, P, card, request

from tokenmill.decide.perf.class_times import StepTimes
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.decide.router.decode_weights import LEAST_REPORTS, DecodeWeights
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.decide.router.speed import device_class
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.protocol.step_table import StepTable

ITL_MS = 30.0


def table(slowness):
    """A step takes 10 ms and 0.1 ms a sequence, so many times over."""
    flat = (0.0, 0.0)
    return StepTable(
        tokens=(1, 1024),
        sequences=(1, 1001),
        contexts=(0, 1000),
        dense_ms=(10 * slowness, 60 * slowness),
        decode_dense_ms=(10 * slowness, 110 * slowness),
        prefill_attention_ms=(flat, flat),
        decode_attention_ms=(flat, flat),
        kv_bytes_per_token=1.0,
        kv_capacity_tokens=10**9,
    )


def worker(name, slowness=None, role=D, **fields):
    told = None if slowness is None else table(slowness)
    more = {"max_sequences": 1000, "kv_blocks": 10**8, **fields}
    return card(name, role, step_table=told, **more)


def looked_at(*cards, itl_ms=ITL_MS, metrics=None):
    times = StepTimes()
    weights = DecodeWeights(itl_ms)
    weights.look(
        (
            each,
            times.joined(
                each.worker_id,
                device_class(each),
                trusted=None if each.step_table is None else TableStepTime(each.step_table),
            ),
            (metrics or {}).get(each.worker_id, StepMetrics()),
        )
        for each in cards
    )
    return weights


def settled(cards, requests=400, itl_ms=ITL_MS):
    """Send requests that stay; return how many each worker has."""
    router = Router(RouterSettings(itl_ms=itl_ms, prefill="remote"), seed=1)
    for each in cards:
        router.worker_ready(each)
    counts = Counter()
    for number in range(requests):
        asked = request(range(number * 10, number * 10 + 8), f"r{number}")
        decision = router.route(asked, 1.0)
        router.sent(decision.decode_worker, asked.request_id, 0, 1.0, 8)
        counts[decision.decode_worker] += 1
    return counts


def test_without_step_times_all_weigh_the_same():
    counts = settled([worker("p", role=P), worker("a"), worker("b")])
    assert counts["a"] == counts["b"] == 200
    weights = looked_at(worker("a"), worker("b"))
    assert weights.weights == {}
    assert not weights.is_due(10**6)


def test_equal_workers_weigh_exactly_one():
    weights = looked_at(worker("a", 1.0), worker("b", 1.0))
    assert [weights.of("a"), weights.of("b")] == [1.0, 1.0]
    counts = settled([worker("p", role=P), worker("a", 1.0), worker("b", 1.0)])
    assert counts["a"] == counts["b"] == 200


def test_sequences_go_by_how_many_each_can_decode_in_time():
    # Within 27 ms: 171 at the quick one's 10 + 0.1 b, 36 at the slow one's twice that.
    counts = settled([worker("p", role=P), worker("quick", 1.0), worker("slow", 2.0)])
    assert counts["quick"] / counts["slow"] == pytest.approx(171 / 36, rel=0.15)


def test_a_worker_that_tells_nothing_counts_each_as_one():
    counts = settled([worker("p", role=P), worker("quick", 1.0), worker("silent"), worker("slow", 2.0)])
    assert counts["silent"] == pytest.approx(counts["quick"], abs=1)
    assert counts["slow"] < counts["quick"] / 3


def test_memory_counts_as_time_does():
    small = worker("small", 1.0, kv_blocks=10_000)
    metrics = StepMetrics(decode_tokens=10, decode_context_tokens=10_000)
    weights = looked_at(worker("large", 1.0), small, metrics=dict.fromkeys(("large", "small"), metrics))
    assert weights.of("large") == 1.0
    assert weights.of("small") == pytest.approx(171 / 36, rel=0.05)


def test_prefill_workers_are_left_out():
    weights = looked_at(worker("p", 0.1, role=P), worker("a", 1.0), worker("b", 2.0))
    assert weights.of("p") == weights.of("a") == 1.0
    assert weights.of("b") > 1


def test_what_workers_report_corrects_what_they_told():
    router = Router(RouterSettings(itl_ms=ITL_MS, prefill="remote"), seed=1)
    for each in (worker("p", role=P), worker("a", 1.0), worker("b", 1.0)):
        router.worker_ready(each)
    now = 0.0
    for step in range(1, LEAST_REPORTS + 50):
        now += 1.0
        for name, slowness in (("a", 1.0), ("b", 2.0)):
            batch = 5 + step % 20
            router.load_reported(
                name,
                StepMetrics(
                    step=step,
                    step_ms=slowness * (10 + 0.1 * batch),
                    decode_tokens=batch,
                    decode_context_tokens=batch * 100,
                ),
                now,
            )
        decision = router.route(request(range(8), f"r{step}"), now)
    weighed = {each.worker: each for each in decision.evidence.explain()}
    assert weighed["b"].load["decoding"] == weighed["a"].load["decoding"]
    router.load_reported("a", StepMetrics(step=10**6, running=10), now)
    router.load_reported("b", StepMetrics(step=10**6, running=10), now)
    decision = router.route(request(range(8), "last"), now)
    terms = {each.worker: each.terms for each in decision.evidence.explain()}
    assert terms["b"]["decode_ms"] > 2 * terms["a"]["decode_ms"] > 0


def test_of_ways_for_a_prompt_the_one_over_the_emptier_worker_is_taken():
    """Also where the fuller one is quicker with prompts, and so the cheapest for one that it computes."""
    router = Router(RouterSettings(itl_ms=ITL_MS, prefill="remote"), seed=1)
    for each in (worker("p", role=P), worker("quick", 1.0), worker("slow", 2.0)):
        router.worker_ready(each)
    router.load_reported("quick", StepMetrics(step=1, running=100), 1.0)
    decision = router.route(request(range(1000)), 1.0)
    assert decision.decode_worker == "slow"
    loads = {each.decode_worker: each.terms["decode load"] for each in decision.evidence.paths()}
    assert loads["slow"] == 0.0
    router.load_reported("slow", StepMetrics(step=1, running=40), 1.0)
    assert router.route(request(range(1000), "next"), 1.0).decode_worker == "quick"


def test_explain_says_what_a_sequence_weighed():
    router = Router(RouterSettings(itl_ms=ITL_MS), seed=1)
    router.worker_ready(worker("quick", 1.0))
    router.worker_ready(worker("slow", 2.0))
    for name in ("quick", "slow"):
        router.load_reported(name, StepMetrics(step=1, running=10), 1.0)
    terms = {
        each.worker: each.terms["decode_ms"]
        for each in router.route(request(range(8)), 1.0).evidence.explain()
    }
    assert terms["quick"] == pytest.approx(100.0)
    assert terms["slow"] == pytest.approx(100.0 * 171 / 36, rel=0.15)
