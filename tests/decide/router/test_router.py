from __future__ import annotations

from collections import Counter

import pytest

from tokenmill.decide.router.least_loaded import LeastLoaded
from tokenmill.decide.router.load import WorkerLoad
from tokenmill.decide.router.stages import StageRouter, can_hand_over, readiness
from tokenmill.decide.router.types import Candidate, Decision, RouteRequest
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.metrics import StepMetrics


def card(name: str, role: Role = Role.BOTH, **fields) -> WorkerCard:
    return WorkerCard(
        **{
            "worker_id": WorkerId(name),
            "role": role,
            "stage": role.value,
            "state": WorkerState.READY,
            "address": "tcp://h:1",
            "engine": "sim",
            "model": "m",
            "max_model_len": 100,
            "block_tokens": 16,
            "kv_blocks": 100,
            "max_sequences": 10,
            "transports": ["tcp"],
            "fingerprint": "f",
            **fields,
        }
    )


def candidate(name: str, role: Role = Role.BOTH, metrics: StepMetrics | None = None, **fields) -> Candidate:
    load = WorkerLoad()
    if metrics is not None:
        load.reported(metrics, 1.0)
    return Candidate(card(name, role, **fields), load)


REQUEST = RouteRequest(request_id=RequestId("r"), prompt=[1] * 10, output_tokens=5)
P, D, B = Role.PREFILL, Role.DECODE, Role.BOTH


def choose(*candidates, policy=None) -> str:
    return (policy or LeastLoaded()).choose(list(candidates), REQUEST, 0.0).worker


def test_fewest_sequences_win():
    assert (
        choose(candidate("a", metrics=StepMetrics(running=3)), candidate("b", metrics=StepMetrics(waiting=2)))
        == "b"
    )
    assert choose(candidate("a", metrics=StepMetrics(receiving=1)), candidate("b")) == "b"


def test_sequences_are_weighed_by_room():
    small = candidate("a", metrics=StepMetrics(running=4), max_sequences=8)
    large = candidate("b", metrics=StepMetrics(running=8), max_sequences=64)
    assert choose(small, large) == "b"


def test_kv_use_counts():
    full = candidate("a", D, StepMetrics(kv_blocks_used=90, kv_blocks_total=100))
    assert choose(full, candidate("b", D, StepMetrics(running=3))) == "b"


def test_prefill_workers_are_compared_by_queued_tokens_alone():
    queue = candidate("a", P, StepMetrics(waiting_prefill_tokens=1000))
    held = candidate("b", P, StepMetrics(kv_blocks_used=99, kv_blocks_total=100, exported=9))
    assert choose(queue, held) == "b"


def test_what_was_sent_since_the_report_counts():
    one, two = candidate("a", P), candidate("b", P)
    one.load.sent(RequestId("x"), 500, 0.0)
    two.load.sent(RequestId("y"), 300, 0.0)
    assert choose(one, two) == "b"


def test_ties_are_broken_fairly_and_by_seed():
    policy = LeastLoaded(seed=4)
    names = Counter(choose(*map(candidate, "abc"), policy=policy) for _ in range(30))
    assert names == {"a": 10, "b": 10, "c": 10}
    starts = {choose(*map(candidate, "abcdefgh"), policy=LeastLoaded(seed=seed)) for seed in range(40)}
    assert len(starts) > 4
    again = [choose(*map(candidate, "abc"), policy=LeastLoaded(seed=9)) for _ in range(3)]
    assert len(set(again)) == 1


def test_the_reason_names_the_worker():
    choice = LeastLoaded().choose([candidate("a")], REQUEST, 0.0)
    assert choice.reasons[0].startswith("a: least loaded")


def test_load_forgets_what_a_report_covers_and_what_has_ended():
    load = WorkerLoad()
    load.sent(RequestId("old"), 100, 0.0)
    load.sent(RequestId("new"), 10, 0.995)
    assert (load.sent_sequences, load.sent_prefill_tokens, load.open_streams) == (2, 110, 2)
    load.reported(StepMetrics(running=1), 1.0)
    assert (load.sent_sequences, load.sent_prefill_tokens, load.open_streams) == (1, 10, 2)
    load.ended(RequestId("new"))
    load.ended(RequestId("old"))
    assert (load.sent_sequences, load.sent_prefill_tokens, load.open_streams) == (0, 0, 0)
    load.lost()
    assert load.metrics.running == 0


def route(*candidates, excluded=frozenset()) -> Decision | None:
    return StageRouter(LeastLoaded()).choose(candidates, REQUEST, 0.0, excluded)


def pair(decision: Decision | None) -> tuple | None:
    return decision and (decision.decode_worker, decision.prefill_worker)


def test_prefill_and_decode_are_paired():
    assert pair(route(candidate("p", P), candidate("d", D))) == ("d", "p")


def test_the_less_loaded_of_decode_and_both_takes_it():
    busy = StepMetrics(running=9)
    workers = (candidate("p", P), candidate("d", D, busy), candidate("b", B))
    assert pair(route(*workers)) == ("b", None)
    workers = (candidate("p", P), candidate("d", D), candidate("b", B, busy))
    assert pair(route(*workers)) == ("d", "p")


@pytest.mark.parametrize("fields", [{"transports": ["shm"]}, {"transports": []}, {"fingerprint": "other"}])
def test_without_a_fitting_prefill_worker_decode_does_it_all(fields):
    prefill = candidate("p", P, **fields)
    decision = route(prefill, candidate("d", D))
    assert pair(decision) == ("d", None)
    assert "prefill itself" in decision.reasons[-1]
    assert not can_hand_over(prefill.card, card("d", D))


def test_excluded_workers_are_not_chosen():
    workers = (candidate("p", P), candidate("d", D), candidate("d2", D))
    assert pair(route(*workers, excluded=frozenset({WorkerId("d")}))) == ("d2", "p")
    assert pair(route(*workers, excluded=frozenset({WorkerId("p"), WorkerId("d")}))) == ("d2", None)
    assert route(candidate("p", P)) is None
    assert route() is None


@pytest.mark.parametrize(
    ("cards", "ready", "mode"),
    [
        ([], False, "none"),
        ([card("p", P)], False, "none"),
        ([card("b", B)], True, "aggregated"),
        ([card("d", D)], True, "degraded"),
        ([card("p", P), card("d", D)], True, "disaggregated"),
        ([card("p", P), card("d", D), card("b", B)], True, "mixed"),
        ([card("p", P, fingerprint="x"), card("d", D)], True, "degraded"),
        ([card("p", P), card("b", B)], True, "aggregated"),
    ],
)
def test_readiness(cards, ready, mode):
    judged = readiness(cards)
    assert (judged.ready, judged.mode) == (ready, mode)
    assert bool(judged.notes) == (mode in ("none", "degraded"))
