"""Made-up traces: the same for a seed, with the rates, lengths and prefixes that were asked for."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.simulate.synthetic import BLOCK_TOKENS, Load, make_trace

KINDS = ["even", "poisson", "gamma", "bursts", "diurnal", "chats"]


def gaps(trace) -> list[float]:
    times = [r.at_s for r in trace.requests]
    return [after - before for before, after in pairwise(times)]


def variation(values: list[float]) -> float:
    return statistics.pstdev(values) / statistics.fmean(values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_one_trace(kind: str) -> None:
    load = Load(
        kind=kind, rate=3, seconds=100, prompt_cv=0.5, output_cv=0.5, shared=500, systems=3, tenants=2
    )
    assert make_trace(load, 1) == make_trace(load, 1)
    assert make_trace(load, 1) != make_trace(load, 2)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.floats(0.1, 20),
    st.integers(0, 200),
    st.integers(0, 3000),
    st.floats(0, 2),
    st.integers(0, 10_000),
)
def test_any_load_is_a_trace(
    kind: str, rate: float, requests: int, shared: int, spread: float, seed: int
) -> None:
    seconds = 0.0 if requests else 20.0
    load = Load(
        kind=kind, rate=rate, requests=requests, seconds=seconds, shared=shared, prompt_cv=spread, systems=2
    )
    trace = make_trace(load, seed)
    times = [r.at_s for r in trace.requests]
    assert times == sorted(times)
    assert all(at >= 0 for at in times)
    if requests:
        assert len(times) == requests
    else:
        assert all(at < 20 for at in times)
    for request in trace.requests:
        assert request.prompt_tokens >= 1
        assert request.output_tokens >= 1
        assert len(request.prefix_ids) <= -(-request.prompt_tokens // BLOCK_TOKENS)


@pytest.mark.parametrize("kind", ["even", "poisson", "gamma", "bursts", "diurnal"])
def test_the_mean_rate_is_the_one_asked_for(kind: str) -> None:
    trace = make_trace(Load(kind=kind, rate=5, seconds=20_000, period_s=2000), 7)
    assert len(trace.requests) / 20_000 == pytest.approx(5, rel=0.06)


@pytest.mark.parametrize(
    ("kind", "cv", "wanted"), [("even", 3, 0), ("poisson", 3, 1), ("gamma", 3, 3), ("gamma", 0.5, 0.5)]
)
def test_gaps_vary_as_they_should(kind: str, cv: float, wanted: float) -> None:
    trace = make_trace(Load(kind=kind, rate=5, requests=20_000, cv=cv), 3)
    assert variation(gaps(trace)) == pytest.approx(wanted, rel=0.08, abs=1e-6)


def test_bursts_are_denser_than_what_lies_between() -> None:
    load = Load(kind="bursts", rate=5, times=20, burst_s=10, calm_s=90, seconds=20_000)
    counts = Counter(int(r.at_s) for r in make_trace(load, 3).requests)
    values = [counts[second] for second in range(20_000)]
    assert statistics.pvariance(values) / statistics.fmean(values) > 5


def test_a_day_begins_at_its_quietest() -> None:
    load = Load(kind="diurnal", rate=5, swing=0.9, period_s=1000, seconds=20_000)
    night = noon = 0
    for request in make_trace(load, 3).requests:
        phase = request.at_s % 1000
        night += phase < 100 or phase >= 900
        noon += 400 <= phase < 600
    assert noon > 5 * night


def test_lengths_are_lognormal_around_their_mean() -> None:
    load = Load(kind="poisson", rate=1, requests=40_000, prompt=2000, prompt_cv=1.0, output=100)
    trace = make_trace(load, 5)
    prompts = [r.prompt_tokens for r in trace.requests]
    assert statistics.fmean(prompts) == pytest.approx(2000, rel=0.03)
    assert variation(prompts) == pytest.approx(1.0, rel=0.08)
    logs = [math.log(each) for each in prompts]
    assert statistics.fmean(logs) == pytest.approx(statistics.median(logs), abs=0.02)
    assert {r.output_tokens for r in trace.requests} == {100}


def test_system_prompts_are_shared_and_the_rest_is_not() -> None:
    load = Load(kind="poisson", rate=1, requests=300, prompt=1000, shared=650, systems=3, tenants=4)
    trace = make_trace(load, 5)
    heads = {r.prefix_ids for r in trace.requests}
    assert len(heads) == 3
    assert {len(head) for head in heads} == {650 // BLOCK_TOKENS}
    assert len({each for head in heads for each in head}) == 3 * (650 // BLOCK_TOKENS)
    assert {r.tenant for r in trace.requests} == {f"tenant-{number}" for number in range(4)}


def test_a_chat_grows_by_answer_and_message() -> None:
    load = Load(
        kind="chats",
        rate=0.5,
        seconds=2000,
        prompt=100,
        output=50,
        shared=640,
        systems=2,
        turns=4,
        think_s=30,
    )
    trace = make_trace(load, 5)
    chats = defaultdict(list)
    for request in trace.requests:
        chats[request.prefix_ids[640 // BLOCK_TOKENS]].append(request)
    heads = {r.prefix_ids[: 640 // BLOCK_TOKENS] for r in trace.requests}
    assert len(heads) == 2
    for turns in chats.values():
        assert [r.prompt_tokens for r in turns] == [740 + 150 * turn for turn in range(len(turns))]
        for before, after in pairwise(turns):
            assert after.prefix_ids[: len(before.prefix_ids)] == before.prefix_ids
            assert after.at_s > before.at_s
    begun_early = [turns for turns in chats.values() if turns[0].at_s < 1000]
    assert statistics.fmean(len(turns) for turns in begun_early) == pytest.approx(4, rel=0.2)
    pauses = [b.at_s - a.at_s for turns in chats.values() for a, b in pairwise(turns)]
    assert statistics.fmean(pauses) == pytest.approx(30 + 50 * 0.025, rel=0.2)


def test_a_chat_ends_before_it_is_too_long() -> None:
    load = Load(kind="chats", rate=1, seconds=500, prompt=100, output=100, turns=50, think_s=1, longest=1000)
    trace = make_trace(load, 5)
    assert max(r.prompt_tokens + r.output_tokens for r in trace.requests) <= 1000


def test_a_load_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no end"):
        make_trace(Load(kind="poisson"), 0)
