"""The cost formula, term by term."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.router.cost import (
    CachedTokens,
    CostWeights,
    DeviceSpeed,
    LoadFacts,
    cost_terms,
    load_terms,
    prefill_ms,
    uncached_tokens,
)

WEIGHTS = CostWeights()
SPEED = DeviceSpeed(fixed_ms=10.0, token_ms=0.02, context_ms=1e-6)
IDLE = LoadFacts(blocks_total=1000)

counts = st.integers(0, 1 << 20)
loads = st.builds(LoadFacts, counts, st.integers(0, 4096), counts, counts)
speeds = st.builds(DeviceSpeed, st.floats(0, 100), st.floats(0, 1), st.floats(0, 1e-4))


@given(loads, speeds, st.integers(1, 200_000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_total_is_the_sum_and_splits_into_worker_and_request(
    load: LoadFacts, speed: DeviceSpeed, prompt: int, device: float, host: float, disk: float
) -> None:
    parts = [int(prompt * share / 3) for share in (device, host, disk)]
    cached = CachedTokens(*parts)
    terms = cost_terms(load, speed, prompt, cached, WEIGHTS)
    assert terms.total_ms == pytest.approx(sum(terms[:-1]))
    assert min(terms) >= 0
    assert terms[:3] == load_terms(load, speed, WEIGHTS)
    own_ms = prefill_ms(uncached_tokens(prompt, cached, WEIGHTS), prompt, speed, WEIGHTS)
    assert terms.prefill_ms == own_ms


@given(speeds, st.integers(2, 200_000), st.data())
def test_a_deeper_hit_never_costs_more(speed: DeviceSpeed, prompt: int, data: st.DataObject) -> None:
    deep = data.draw(st.integers(1, prompt - 1))
    shallow = data.draw(st.integers(0, deep))
    costs = [cost_terms(IDLE, speed, prompt, CachedTokens(hit), WEIGHTS).total_ms for hit in (deep, shallow)]
    assert costs[0] <= costs[1] + 1e-9 * costs[1]


def test_nearer_tiers_are_worth_more() -> None:
    device, host, disk, nothing = (
        cost_terms(IDLE, SPEED, 4000, cached, WEIGHTS).total_ms
        for cached in (
            CachedTokens(device=3000),
            CachedTokens(host=3000),
            CachedTokens(disk=3000),
            CachedTokens(),
        )
    )
    assert device < host < disk < nothing


def test_a_token_is_always_computed() -> None:
    assert uncached_tokens(100, CachedTokens(device=100), WEIGHTS) == 1.0


def test_the_own_prefill_counts_each_earlier_token() -> None:
    weights = CostWeights(prefill=1.0)
    # Tokens 101 .. 103 attend to 100, 101 and 102 earlier ones and half of themselves, so to speak.
    assert prefill_ms(3, 103, DeviceSpeed(0.0, 0.0, 1.0), weights) == pytest.approx(3 * (103 - 1.5))
    assert prefill_ms(1000, 1000, DeviceSpeed(5.0, 0.1, 0.0), weights) == pytest.approx(105.0)


def test_a_hit_is_worth_a_queue_of_twice_the_time_it_saves() -> None:
    speed = DeviceSpeed(fixed_ms=10.0, token_ms=0.02, context_ms=0.0)
    hit = CachedTokens(device=1000)

    def hit_wins(queue_tokens: int) -> bool:
        queued = LoadFacts(queue_tokens=queue_tokens, blocks_total=1000)
        there = cost_terms(queued, speed, 5000, hit, WEIGHTS).total_ms
        return there < cost_terms(IDLE, speed, 5000, CachedTokens(), WEIGHTS).total_ms

    assert hit_wins(1999)
    assert not hit_wins(2001)


def test_room_costs_nothing_until_it_becomes_scarce() -> None:
    at = [
        load_terms(LoadFacts(blocks_used=used, blocks_total=100), SPEED, WEIGHTS).room_ms
        for used in (0, 75, 80, 100, 120)
    ]
    assert at[:2] == [0.0, 0.0]
    assert at[2] == pytest.approx(WEIGHTS.room_ms / 5)
    assert at[3] == pytest.approx(WEIGHTS.room_ms)
    assert at[4] > at[3]
    assert load_terms(LoadFacts(blocks_used=5), SPEED, WEIGHTS).room_ms == 0.0


def test_queue_and_decodes_cost_what_their_weights_say() -> None:
    terms = load_terms(LoadFacts(queue_tokens=500, decoding=3, blocks_total=10), SPEED, WEIGHTS)
    assert terms.queue_ms == pytest.approx(WEIGHTS.queue * 500 * SPEED.token_ms)
    assert terms.decode_ms == pytest.approx(3 * WEIGHTS.decode_stall_ms)
