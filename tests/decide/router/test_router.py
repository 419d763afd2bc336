from __future__ import annotations

from collections import Counter

import pytest
from tests.decide.router.routing_cases import BLOCK, B, D, P, Plant, card, pair, request

from tokenmill.decide.router.cost import CostWeights
from tokenmill.decide.router.policies import POLICIES
from tokenmill.decide.router.types import Choice
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.kv_events import BlocksStored, CacheCleared, CacheTier, KvEvents
from tokenmill.protocol.router_sync import EndedNote, PredictedNote, SentNote

PROMPT = list(range(100, 500))
OTHER = list(range(900, 1300))


# Which stages ----------------------------------------------------------------------------------------------


def test_nobody_is_chosen_of_nobody():
    assert Plant().route(PROMPT) is None
    assert Plant(card("p", P)).route(PROMPT) is None


def test_one_worker_does_it_all():
    decision = Plant(card("b")).route(PROMPT)
    assert pair(decision) == ("b", None)
    assert (decision.prefill_tokens, decision.cached_tokens) == (400, 0)
    assert decision.reasons[0].startswith("b: cheapest")


def test_a_prompt_may_be_empty():
    assert pair(Plant(card("b")).route([])) == ("b", None)


@pytest.mark.parametrize("policy", ["kv", *POLICIES])
def test_prefill_and_decode_are_paired_by_every_policy(policy):
    plant = Plant(card("p", P), card("d", D), prefill="remote", policy_name=policy)
    assert pair(plant.route(PROMPT, session="s")) == ("d", "p")
    assert plant.router.wants_kv is (policy == "kv")


@pytest.mark.parametrize("fields", [{"transports": ["shm"]}, {"transports": []}, {"fingerprint": "other"}])
def test_without_a_fitting_prefill_worker_decode_does_it_all(fields):
    decision = Plant(card("p", P, **fields), card("d", D), prefill="remote").route(PROMPT)
    assert pair(decision) == ("d", None)
    assert "prefill itself" in decision.reasons[-1]


@pytest.mark.parametrize("prefill", ["local", "auto", "remote"])
def test_a_decode_worker_that_cannot_do_without_is_never_alone(prefill):
    decode = card("d", D, alone=False)
    assert pair(Plant(card("p", P), decode, prefill=prefill).route(PROMPT)) == ("d", "p")
    assert Plant(decode, prefill=prefill).route(PROMPT) is None
    assert Plant(card("p", P, fingerprint="x"), decode, prefill=prefill).route(PROMPT) is None
    plant = Plant(card("p", P), decode, card("b", B), prefill=prefill)
    for _ in range(4):
        assert pair(plant.route(PROMPT, excluded={"p"})) == ("b", None)
        assert pair(plant.route(PROMPT, excluded={"p", "d"})) == ("b", None)
        assert pair(plant.route(PROMPT)) in (("d", "p"), ("b", None))


def test_excluded_workers_are_not_chosen():
    plant = Plant(card("p", P), card("d", D), card("d2", D), prefill="remote")
    assert pair(plant.route(PROMPT, excluded={"d"})) == ("d2", "p")
    assert pair(plant.route(PROMPT, excluded={"p", "d"})) == ("d2", None)
    assert plant.route(PROMPT, excluded={"d", "d2"}) is None
    assert pair(plant.route(PROMPT, excluded={"d", "unheard of"})) == ("d2", "p")


def test_the_shorter_way_is_taken():
    plant = Plant(card("p", P), card("d", D))
    long = list(range(8000))
    plant.load("d", running=9, kv_blocks_used=500, kv_blocks_total=4000, decode_context_tokens=2000)
    decision = plant.route(long)
    assert pair(decision) == ("d", "p")  # it would slow nine others
    paths = decision.evidence.paths()
    assert {path.kind for path in paths} == {"local", "remote"}
    assert next(path for path in paths if path.chosen).terms["total_ms"] == min(
        path.terms["total_ms"] for path in paths
    )
    plant.load("p", waiting_prefill_tokens=1_000_000)
    decision = plant.route(long)
    assert pair(decision) == ("d", None)
    assert "prefill itself" in decision.reasons[-1]


def test_the_way_may_be_laid_down():
    for mode, expected in (("local", ("d", None)), ("remote", ("d", "p"))):
        plant = Plant(card("p", P), card("d", D), prefill=mode)
        assert {pair(plant.route([7] * count)) for count in (10, 9000)} == {expected}


def test_a_decode_worker_without_the_cache_is_tried_as_well_where_it_is_less_loaded():
    plant = Plant(card("p", P), card("d1", D), card("d2", D), prefill="remote")
    long = list(range(4000))
    plant.caches("d1", long)
    plant.load("d1", running=1, decode_context_tokens=4000)
    decision = plant.route(long)
    assert {path.decode_worker for path in decision.evidence.paths()} == {"d1", "d2"}


# Caches ----------------------------------------------------------------------------------------------------


def test_the_worker_with_the_prefix_is_chosen():
    plant = Plant(*(card(name) for name in "abc"))
    plant.caches("b", PROMPT[:300])
    decision = plant.route(PROMPT)
    assert decision.decode_worker == "b"
    assert (decision.cached_tokens, decision.prefill_tokens) == (300, 100)
    assert plant.route(OTHER).cached_tokens == 0


def test_a_load_outweighs_a_hit():
    plant = Plant(card("a"), card("b"), weights=CostWeights(queue=1.0, prefill=1.0))
    plant.caches("b", PROMPT)
    plant.load("b", waiting_prefill_tokens=300)
    assert plant.chosen(PROMPT) == "b"
    plant.load("b", waiting_prefill_tokens=500)
    assert plant.chosen(PROMPT) == "a"


def test_the_last_token_is_never_cached():
    plant = Plant(card("a"))
    plant.caches("a", PROMPT)
    assert plant.route(PROMPT).cached_tokens == len(PROMPT) - BLOCK
    assert plant.route([*PROMPT, 1]).cached_tokens == len(PROMPT)


def test_removed_blocks_are_forgotten():
    plant = Plant(card("a"), card("b"))
    plant.caches("a", PROMPT)
    plant.caches("b", PROMPT[:200])
    plant.drops("a", PROMPT, 75)
    decision = plant.route(PROMPT)
    assert (decision.decode_worker, decision.cached_tokens) == ("b", 200)


def test_a_cleared_cache_is_forgotten():
    plant = Plant(card("a"), card("b"))
    plant.caches("a", PROMPT)
    plant.tell("a", CacheCleared())
    assert plant.route(PROMPT).cached_tokens == 0
    plant.caches("a", OTHER)
    assert plant.route(OTHER).decode_worker == "a"
    assert plant.router.stats().worker_blocks == {"a": 100, "b": 0}


def test_a_gap_forgets_the_worker_until_it_starts_anew():
    plant = Plant(card("a"), card("b"))
    plant.caches("a", PROMPT)
    plant.numbers["a"] += 1
    assert not plant.caches("a", OTHER)
    assert not plant.caches("a", OTHER)
    assert plant.route(PROMPT).cached_tokens == 0
    plant.numbers["a"] = 0
    assert plant.caches("a", PROMPT)
    assert plant.route(PROMPT).decode_worker == "a"
    assert plant.router.stats().gaps_total == 2


def test_salts_keep_caches_apart():
    plant = Plant(card("a"), card("b"))
    plant.caches("a", PROMPT, salt="x")
    assert plant.route(PROMPT).cached_tokens == 0
    assert plant.route(PROMPT, cache_salt="x").decode_worker == "a"


def test_nearer_tiers_are_worth_more():
    plant = Plant(card("a"), card("b"), card("c"))
    plant.caches("a", PROMPT, CacheTier.DISK)
    assert plant.chosen(PROMPT) == "a"
    plant.caches("b", PROMPT, CacheTier.HOST)
    assert plant.chosen(PROMPT) == "b"
    plant.caches("c", PROMPT)
    assert plant.chosen(PROMPT) == "c"
    told = {weighed.worker: weighed.cached for weighed in plant.route(PROMPT).evidence.explain()}
    assert told == {"a": (0, 0, 396), "b": (0, 396, 0), "c": (396, 0, 0)}


def test_a_worker_that_is_gone_takes_its_cache_with_it():
    plant = Plant(card("a"), card("b"))
    plant.caches("a", PROMPT)
    plant.router.worker_gone(WorkerId("a"))
    assert plant.chosen(PROMPT) == "b"
    plant.join(card("c"))
    decision = plant.route(PROMPT)
    assert decision.cached_tokens == 0
    for _ in range(600):
        plant.load("b")  # facts drive the sweep
    assert plant.router.stats().index_blocks == 0
    plant.join(card("a"))
    assert plant.route(PROMPT).cached_tokens == 0


def test_facts_of_strangers_are_ignored():
    plant = Plant(card("a"))
    router, worker, name = plant.router, WorkerId("x"), RequestId("r")
    router.worker_gone(worker)
    plant.load("x", running=1)
    router.sent(worker, name, 5, 1.0)
    router.ended(worker, name)
    router.peer_said("p", [SentNote(worker, name, 5), PredictedNote(worker, [])], 1.0)
    assert router.kv_changed(worker, KvEvents(7, [CacheCleared()]), 1.0)
    assert router.stats().workers == 1


# Predictions -----------------------------------------------------------------------------------------------


def test_what_follows_soon_goes_where_the_first_went():
    plant = Plant(*(card(f"w{number}") for number in range(8)), predicted_ttl_s=5.0)
    for number in range(8):
        plant.tell(f"w{number}", CacheCleared())
    long = list(range(4000))
    first = plant.route(long, send=True)
    plant.now += 0.5
    plant.load(first.decode_worker, running=1)
    second = plant.route([*long, 1])
    assert second.decode_worker == first.decode_worker
    assert second.cached_tokens >= 0.8 * len(long)
    plant.now += 4.6
    assert plant.route([*long, 1]).cached_tokens == 0


def test_workers_without_events_are_believed_for_longer():
    plant = Plant(card("a"), card("b"), predicted_ttl_s=5.0, approximate_ttl_s=120.0)
    first = plant.route(PROMPT, send=True)
    plant.now += 100
    plant.load(first.decode_worker)
    again = plant.route(PROMPT)
    assert again.cached_tokens > 300
    assert again.decode_worker == first.decode_worker
    plant.now += 21
    assert plant.route(PROMPT).cached_tokens == 0


def test_without_events_the_router_asks_for_none_and_still_predicts():
    plant = Plant(card("a"), card("b"), kv_events=False)
    assert not plant.router.wants_kv
    first = plant.route(PROMPT, send=True)
    plant.now += 60
    plant.load(first.decode_worker)
    assert plant.route(PROMPT).cached_tokens > 300


def test_what_was_not_sent_is_not_expected():
    plant = Plant(card("a"), card("b"))
    plant.route(PROMPT)
    assert plant.route(PROMPT).cached_tokens == 0


def test_both_workers_of_a_handoff_are_expected_to_have_it():
    plant = Plant(card("p", P), card("d", D), prefill="remote")
    plant.route(PROMPT, send=True)
    decision = plant.route(PROMPT)
    told = {weighed.worker: sum(weighed.cached) for weighed in decision.evidence.explain()}
    assert min(told.values()) > 300


def test_what_events_confirm_is_not_predicted_again():
    plant = Plant(card("a"))
    plant.caches("a", PROMPT)
    plant.route(PROMPT, send=True)
    assert plant.router.stats().predicted == 0
    plant.route(OTHER, send=True)
    assert plant.router.stats().predicted > 0


# Load ------------------------------------------------------------------------------------------------------


def test_what_was_sent_counts_until_a_report_covers_it():
    plant = Plant(card("a"), card("b"), predicted_ttl_s=0, approximate_ttl_s=0)
    first = plant.route(PROMPT, send=True).decode_worker
    second = plant.route(OTHER, send=True).decode_worker
    assert {first, second} == {"a", "b"}
    plant.router.ended(first, RequestId("r1"))
    assert plant.chosen(PROMPT) == first
    plant.now += 1
    plant.load(second)
    assert Counter(plant.chosen(OTHER) for _ in range(10)) == {"a": 5, "b": 5}


def test_a_burst_is_spread():
    plant = Plant(*(card(f"w{number}") for number in range(10)))
    chosen = Counter(
        plant.route(list(range(1000 * number, 1000 * number + 400)), send=True).decode_worker
        for number in range(50)
    )
    assert set(chosen.values()) == {5}


def test_room_counts_near_the_end():
    plant = Plant(card("a"), card("b"))
    plant.load("a", kv_blocks_used=980, kv_blocks_total=1000)
    plant.load("b", kv_blocks_used=100, kv_blocks_total=1000, running=1)
    assert plant.chosen(PROMPT) == "b"


def test_weights_are_settings():
    plant = Plant(card("a"), card("b"), weights=CostWeights(decode_stall_ms=0.0, room_ms=0.0))
    plant.load("a", running=10)
    plant.load("b", waiting_prefill_tokens=10)
    assert plant.chosen(PROMPT) == "a"


def test_a_temperature_spreads_by_cost():
    plant = Plant(*(card(name) for name in "abc"), temperature_ms=10.0)
    weights = CostWeights()
    plant.load("b", running=1)
    chosen = Counter(plant.chosen(PROMPT) for _ in range(3000))
    assert abs(chosen["a"] - chosen["c"]) < 300
    expected = 2.718281828 ** (-weights.decode_stall_ms / 10.0)
    assert expected / 2 < chosen["b"] / chosen["a"] < expected * 2
    again = Plant(*(card(name) for name in "abc"), temperature_ms=10.0)
    again.load("b", running=1)
    assert [again.chosen(PROMPT) for _ in range(50)] == repeat(50)


def repeat(count: int) -> list:
    plant = Plant(*(card(name) for name in "abc"), temperature_ms=10.0)
    plant.load("b", running=1)
    return [plant.chosen(PROMPT) for _ in range(count)]


# Other frontends -------------------------------------------------------------------------------------------


def test_a_frontend_that_heard_the_notes_chooses_as_the_one_that_made_them():
    workers = [card(f"w{number}", max_sequences=4 + number) for number in range(6)]
    one, two = (Plant(*workers, seed=5, send_notes=True) for _ in range(2))
    for plant in (one, two):
        for number in range(6):
            plant.load(f"w{number}", running=number, waiting_prefill_tokens=37 * number)
    for number in range(40):
        begin = 500 * (number % 7)
        tokens = list(range(begin, begin + 300 + number))
        wanted = request(tokens, f"r{number}")
        decision = one.router.route(wanted, one.now)
        one.send(decision, wanted)
        if number % 3 == 0:
            one.router.ended(decision.decode_worker, wanted.request_id)
        two.router.peer_said("one", one.router.drain_notes(), two.now)
        here, there = (plant.router.route(request(tokens, "probe"), plant.now) for plant in (one, two))
        costs = [
            {
                weighed.worker: weighed.terms["total_ms"]
                for weighed in each.evidence.explain()
                if weighed.chosen
            }
            for each in (here, there)
        ]
        assert list(costs[0].values()) == list(costs[1].values())
        assert here.cached_tokens == there.cached_tokens
    assert two.router.drain_notes() == []


def test_a_frontend_that_is_gone_has_nothing_in_flight():
    plant = Plant(card("a"), card("b"))
    plant.router.peer_said("p", [SentNote(WorkerId("a"), RequestId("r"), 5000, 5000)], plant.now)
    assert {plant.chosen(PROMPT) for _ in range(4)} == {"b"}
    plant.router.peer_gone("p")
    assert {plant.chosen(PROMPT) for _ in range(4)} == {"a", "b"}


def test_notes_tell_what_was_sent_and_ended():
    plant = Plant(card("a"), send_notes=True)
    plant.route(PROMPT, send=True)
    plant.router.ended(WorkerId("a"), RequestId("r1"))
    predicted, sent, ended = plant.router.drain_notes()
    assert isinstance(predicted, PredictedNote)
    assert predicted.names
    assert sent == SentNote(WorkerId("a"), RequestId("r1"), 400, 400)
    assert ended == EndedNote(WorkerId("a"), RequestId("r1"))
    assert plant.router.drain_notes() == []


def test_a_peers_notes_end_with_its_notes():
    plant = Plant(card("a"), card("b"))
    worker, name = WorkerId("a"), RequestId("r")
    plant.router.sent(worker, name, 100, plant.now)
    plant.router.peer_said("p", [SentNote(worker, name, 5000, 5000), EndedNote(worker, name)], plant.now)
    plant.router._roster.refresh()
    (facts,) = (seat.facts for seat in plant.router._roster.seats.values() if seat.card.worker_id == "a")
    assert facts.load.queue_tokens == 100


def test_without_others_no_notes_are_kept():
    plant = Plant(card("a"))
    plant.route(PROMPT, send=True)
    assert plant.router.drain_notes() == []


# Evidence and counts ---------------------------------------------------------------------------------------


def test_evidence_says_what_was_known_then():
    plant = Plant(card("a"), card("b"))
    plant.caches("a", PROMPT[:200])
    decision = plant.route(PROMPT)
    before = decision.evidence.explain()
    plant.load("a", waiting_prefill_tokens=9999)
    plant.tell("a", CacheCleared())
    plant.router.worker_gone(WorkerId("b"))
    assert decision.evidence.explain() == before
    best, other = before
    assert (best.worker, best.chosen, best.cached.device, other.chosen) == ("a", "both", 200, "")
    names = {"queue_ms", "decode_ms", "room_ms", "prefill_ms", "total_ms"}
    assert names <= set(best.terms)
    assert best.load["queue_tokens"] == 0
    assert best.terms["total_ms"] < other.terms["total_ms"]


def test_counts():
    plant = Plant(card("p", P), card("d", D), prefill="remote")
    plant.caches("p", PROMPT[:100])
    plant.route(PROMPT, send=True)
    stats = plant.router.stats()
    assert (stats.workers, stats.index_blocks, stats.index_limit) == (2, 25, 1_000_000)
    assert (stats.routed_total, stats.routed_remote_total) == (1, 1)
    assert (stats.routed_tokens_total, stats.routed_cached_tokens_total) == (400, 100)
    assert (stats.events_total, stats.forgotten_blocks_total) == (2, 0)


def test_a_small_index_is_right_all_the_same():
    plant = Plant(card("a"), card("b"), index_blocks=64, predicted_ttl_s=0, approximate_ttl_s=0)
    for number in range(30):
        plant.caches("a", range(1000 * number, 1000 * number + 40))
    assert plant.router.stats().index_blocks <= 64
    for number in range(30):
        assert plant.route(range(1000 * number, 1000 * number + 40)).cached_tokens <= 36
    assert plant.route(range(29_000, 29_040)).cached_tokens == 36
    assert plant.router.stats().forgotten_blocks_total > 200


def test_a_changed_card_counts_at_once():
    plant = Plant(card("a", P), card("d", D), prefill="remote")
    plant.router.worker_ready(card("a", B))
    assert plant.route(PROMPT, excluded={"d"}).decode_worker == "a"


class Stranger:
    def choose(self, candidates, wanted, now):
        return Choice(WorkerId("nobody"))


def test_a_policy_that_takes_whom_it_was_not_offered_is_told_so():
    plant = Plant(card("a"), policy=Stranger)
    with pytest.raises(ConfigError, match="Stranger chose 'nobody'"):
        plant.route(PROMPT)


class MostCached:
    needs_cache = True

    def choose(self, candidates, wanted, now):
        best = max(candidates, key=lambda each: each.cached_tokens)
        return Choice(best.card.worker_id)


def test_a_users_policy_sees_what_is_cached_where():
    plant = Plant(card("a"), card("b"), card("c"), policy=MostCached)
    assert plant.router.wants_kv
    plant.caches("b", PROMPT[:200])
    plant.caches("c", PROMPT[:100])
    decision = plant.route(PROMPT)
    assert (decision.decode_worker, decision.cached_tokens) == ("b", 200)
    assert not Plant(policy=Stranger).router.wants_kv


def test_events_of_a_worker_whose_block_is_stored_twice():
    plant = Plant(card("a"))
    plant.caches("a", PROMPT[:100])
    plant.caches("a", PROMPT)
    plant.drops("a", PROMPT, 100)
    assert plant.router.stats().worker_blocks == {"a": 0}
    assert plant.tell("a", BlocksStored([]))
