"""The fast choice against the cost function asked for every worker."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decide.router.routing_cases import BLOCK, Plant, card

from tokenmill.decide.router.cost import CachedTokens, CostWeights, cost_terms
from tokenmill.protocol.kv_events import CacheTier
from tokenmill.protocol.metrics import StepMetrics

PROMPT = [7 * token % 1009 for token in range(800)]

WORKER = st.fixed_dictionaries(
    {
        "engine": st.sampled_from(["fast", "slow"]),
        "block_tokens": st.sampled_from([BLOCK, 3 * BLOCK]),
        "queue": st.integers(0, 5) | st.integers(0, 40_000),
        "running": st.integers(0, 9),
        "used": st.integers(0, 1000),
        "device": st.integers(0, 200) | st.sampled_from([0, 50]),
        "host": st.integers(0, 60),
        "disk": st.integers(0, 60),
    }
)


def step(number: int, token_ms: float) -> StepMetrics:
    return StepMetrics(step=number, step_ms=1024 * token_ms, prefill_tokens=1024, prefill_context_tokens=1)


def plant_of(workers, *, tiers: bool) -> Plant:
    plant = Plant(predicted_ttl_s=0.0)
    for number, each in enumerate(workers):
        name = f"w{number}"
        plant.join(card(name, engine=each["engine"], block_tokens=each["block_tokens"]))
        begin = 0
        for tier in CacheTier:
            blocks = each[tier.name.lower()] if tiers or tier is CacheTier.DEVICE else 0
            end = begin + blocks * BLOCK // each["block_tokens"] * each["block_tokens"]
            if begin == 0:
                plant.caches(name, PROMPT[:end], tier)
            elif end > begin:
                plant.caches(name, PROMPT[:end], tier)  # the head is in the lower tier as well
            begin = end
        for steps in range(1, 10):
            plant.router.load_reported(name, step(steps, 0.1 if each["engine"] == "slow" else 0.02), 1.0)
        plant.load(
            name,
            waiting_prefill_tokens=each["queue"],
            running=each["running"],
            kv_blocks_used=each["used"],
            kv_blocks_total=1000,
        )
    return plant


def cached_by(each, tokens: int, *, tiers: bool) -> CachedTokens:
    """What a worker has, reckoned plainly."""
    size, parts, begin = each["block_tokens"], [], 0
    for tier in CacheTier:
        blocks = each[tier.name.lower()] if tiers or tier is CacheTier.DEVICE else 0
        end = min(begin + blocks * BLOCK // size * size, (tokens - 1) // size * size)
        parts.append(max(0, end - begin))
        begin = max(begin, end)
    return CachedTokens(*parts)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(WORKER, min_size=1, max_size=20),
    st.integers(1, 800),
    st.booleans(),
    st.sets(st.integers(0, 25), max_size=5),
)
def test_the_choice_is_the_cost_functions(workers, tokens, tiers, barred):
    plant = plant_of(workers, tiers=tiers)
    decision = plant.route(PROMPT[:tokens], excluded={f"w{number}" for number in barred})
    weights = CostWeights()
    costs = {}
    for number, each in enumerate(workers):
        if number not in barred:
            facts = plant.router._roster.seats[f"w{number}"].facts
            cached = cached_by(each, tokens, tiers=tiers)
            costs[f"w{number}"] = (
                cost_terms(facts.load, facts.speed, tokens, cached, weights).total_ms,
                cached,
            )
    if not costs:
        assert decision is None
        return
    total_ms, cached = costs[decision.decode_worker]
    assert total_ms <= min(cost_ms for cost_ms, _ in costs.values()) + 1e-9
    assert decision.cached_tokens == sum(cached)
    assert decision.prefill_tokens == tokens - sum(cached)
    for weighed in decision.evidence.explain():
        cost_ms, truly = costs[weighed.worker]
        if weighed.cached_exact:
            assert weighed.cached == truly
            assert abs(weighed.terms["total_ms"] - cost_ms) < 1e-9
        else:
            assert sum(weighed.cached) <= sum(truly)
    assert {weighed.worker for weighed in decision.evidence.explain()} == set(costs)


def test_speeds_are_learned_and_told_apart():
    fast = dict.fromkeys(["queue", "running", "used", "device", "host", "disk"], 0) | {"block_tokens": BLOCK}
    plant = plant_of([{**fast, "engine": "slow"}, {**fast, "engine": "fast"}], tiers=False)
    decisions = [plant.route(PROMPT) for _ in range(4)]
    assert {decision.decode_worker for decision in decisions} == {"w1"}
    slow, quick = (plant.router._roster.seats[name].facts.speed.token_ms for name in ("w0", "w1"))
    assert 3 < slow / quick < 7


def test_equally_cheap_workers_take_turns():
    plant = Plant(*(card(f"w{number}") for number in range(5)))
    plant.caches("w0", PROMPT[:40])
    for worker in ("w1", "w2", "w3"):
        plant.caches(worker, PROMPT[:400])
    chosen = [plant.chosen(PROMPT) for _ in range(12)]
    assert sorted(chosen) == sorted(["w1", "w2", "w3"] * 4)
    nothing = [plant.chosen([5] * 100) for _ in range(20)]
    assert all(nothing.count(f"w{number}") == 4 for number in range(5))
