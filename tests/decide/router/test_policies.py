from __future__ import annotations

from collections import Counter

import pytest
from tests.decide.router.routing_cases import B, D, P, card, request

from tokenmill.decide.router.cost import LoadFacts
from tokenmill.decide.router.policies import POLICIES, make_policy
from tokenmill.decide.router.policies.least_loaded import LeastLoaded
from tokenmill.decide.router.policies.power_of_two import PowerOfTwo
from tokenmill.decide.router.policies.random_worker import RandomWorker
from tokenmill.decide.router.policies.round_robin import RoundRobin
from tokenmill.decide.router.policies.session import Session
from tokenmill.decide.router.types import Candidate
from tokenmill.errors import ConfigError

REQUEST = request(range(10))


def candidate(name: str, role=B, *, card_fields=None, **load) -> Candidate:
    return Candidate(card(name, role, **(card_fields or {})), LoadFacts(**load))


def choose(policy, *candidates, wanted=REQUEST) -> str:
    return policy.choose(list(candidates), wanted, 0.0).worker


def count(policy, *candidates, times=60, wanted=REQUEST) -> Counter:
    return Counter(choose(policy, *candidates, wanted=wanted) for _ in range(times))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_chooses_and_says_why(name):
    policy = make_policy(name, 1)
    choice = policy.choose([candidate("a")], REQUEST, 0.0)
    assert choice.worker == "a"
    assert choice.reasons[0].startswith("a: ")


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match="'kw' is unknown; known are kv, least-loaded"):
        make_policy("kw", 1)


def test_fewest_sequences_win():
    assert choose(LeastLoaded(), candidate("a", decoding=3), candidate("b", decoding=2)) == "b"


def test_sequences_are_weighed_by_room():
    small = candidate("a", decoding=4, card_fields={"max_sequences": 8})
    large = candidate("b", decoding=8, card_fields={"max_sequences": 64})
    assert choose(LeastLoaded(), small, large) == "b"


def test_kv_use_counts():
    full = candidate("a", D, blocks_used=90, blocks_total=100)
    assert choose(LeastLoaded(), full, candidate("b", D, decoding=3)) == "b"


def test_prefill_workers_are_compared_by_queued_tokens_alone():
    queue = candidate("a", P, queue_tokens=1000)
    held = candidate("b", P, blocks_used=99, blocks_total=100)
    assert choose(LeastLoaded(), queue, held) == "b"


def test_ties_are_broken_fairly_and_by_seed():
    assert count(LeastLoaded(seed=4), *map(candidate, "abc")) == {"a": 20, "b": 20, "c": 20}
    starts = {choose(LeastLoaded(seed=seed), *map(candidate, "abcdefgh")) for seed in range(40)}
    assert len(starts) > 4


def test_round_robin_takes_turns_whatever_the_load():
    workers = candidate("a", queue_tokens=9999), candidate("b"), candidate("c")
    policy = RoundRobin(seed=3)
    turns = [choose(policy, *workers) for _ in range(6)]
    assert turns[:3] == turns[3:]
    assert set(turns) == {"a", "b", "c"}


def test_random_is_even_and_seeded():
    chosen = count(RandomWorker(seed=1), *map(candidate, "ab"), times=1000)
    assert 400 < chosen["a"] < 600
    one, two = (RandomWorker(seed=8) for _ in range(2))
    assert [choose(one, *map(candidate, "abc")) for _ in range(20)] == [
        choose(two, *map(candidate, "abc")) for _ in range(20)
    ]


def test_power_of_two_never_takes_the_most_loaded():
    workers = [candidate(name, decoding=number) for number, name in enumerate("abcd")]
    chosen = count(PowerOfTwo(seed=2), *workers, times=600)
    assert chosen["d"] == 0
    assert chosen["a"] > chosen["b"] > chosen["c"] > 0  # 3/6, 2/6, 1/6
    assert choose(PowerOfTwo(), candidate("x")) == "x"


def in_session(name: str):
    return request(range(10), session=name)


def test_a_session_stays_where_it_is():
    workers = [candidate(f"w{number}") for number in range(8)]
    for name in ("alice", "bob"):
        assert len(count(Session(seed=1), *workers, wanted=in_session(name))) == 1
    homes = {choose(Session(seed=seed), *workers, wanted=in_session("alice")) for seed in range(5)}
    assert len(homes) == 1  # frontends agree


def test_sessions_are_spread_and_move_only_when_their_worker_goes():
    workers = [candidate(f"w{number}") for number in range(8)]
    policy = Session()
    homes = {n: choose(policy, *workers, wanted=in_session(f"s{n}")) for n in range(400)}
    assert min(Counter(homes.values()).values()) > 20
    left = [each for each in workers if each.card.worker_id != "w3"]
    for number, home in homes.items():
        after = choose(policy, *left, wanted=in_session(f"s{number}"))
        assert after == home or home == "w3"


def test_an_overloaded_worker_loses_its_sessions_while_others_have_room():
    workers = [candidate(f"w{number}") for number in range(4)]
    home = choose(Session(), *workers, wanted=in_session("s"))
    busy = [
        candidate(each.card.worker_id, decoding=30 if each.card.worker_id == home else 1) for each in workers
    ]
    second = choose(Session(), *busy, wanted=in_session("s"))
    assert second != home
    full = [candidate(each.card.worker_id, decoding=30) for each in workers]
    assert choose(Session(), *full, wanted=in_session("s")) == home


def test_without_a_session_the_least_loaded_is_taken():
    assert choose(Session(), candidate("a", decoding=2), candidate("b")) == "b"
