"""KV that goes to another worker, and KV that comes from one."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.transitions import IllegalTransition
from tokenmill.decide.batching.types import (
    AbortPull,
    AdvanceKv,
    Emit,
    Finish,
    OfferKv,
    PullKv,
    SealKv,
    SequenceState,
    WithdrawKv,
)
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import FinishReason

PROMPT = list(range(100, 112))


# The sender ------------------------------------------------------------------------------------


def test_prefill_is_offered_filled_sealed_and_released(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", PROMPT, role=Role.PREFILL)
    plan = engine.plan()
    assert engine.planned == [OfferKv("a", [0, 1, 2], tokens=12, ready=0, cached_tokens=0)]
    assert engine.execute(plan) == [AdvanceKv("a", 8)]
    assert engine.step(50) == [
        AdvanceKv("a", 12),
        Emit("a", 0, 50),
        SealKv("a", 50),
        Finish("a", FinishReason.HANDOFF),
    ]
    assert engine.sequence("a").state is SequenceState.EXPORTED
    metrics = engine.scheduler.metrics(0.0)
    assert (metrics.exported, metrics.kv_blocks_used, metrics.handoffs_out_total) == (1, 3, 1)
    assert not engine.scheduler.has_work
    assert engine.cancel("a") == []
    assert engine.released("a") == []
    assert engine.used_blocks == 0


def test_an_export_leaves_its_place_to_the_next(drive) -> None:
    engine = drive(max_sequences=1)
    engine.add("a", 4, role=Role.PREFILL)
    engine.add("b", 4, role=Role.PREFILL)
    engine.step()
    assert engine.chunks(engine.plan()) == [("b", 0, 4)]


def test_cached_tokens_are_ready_at_once_and_stay_cached(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, role=Role.PREFILL)
    engine.step()
    engine.released("a")
    engine.add("b", [*PROMPT, 1], role=Role.PREFILL)
    engine.plan()
    (offer,) = engine.planned
    assert (offer.tokens, offer.ready, offer.cached_tokens) == (13, 12, 12)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"max_tokens": 1}, Finish("a", FinishReason.LENGTH)),
        ({"stop_ids": frozenset({50})}, Finish("a", FinishReason.STOP, 50)),
    ],
)
def test_an_end_at_the_first_token_withdraws(drive, fields: dict, end: Finish) -> None:
    engine = drive()
    engine.add("a", PROMPT, role=Role.PREFILL, **fields)
    said = engine.step(50)
    assert said[:2] == [AdvanceKv("a", 12), Emit("a", 0, 50)]
    assert isinstance(said[2], WithdrawKv)
    assert said[3:] == [end]
    assert engine.used_blocks == 3
    engine.released("a")
    assert engine.used_blocks == 0


def test_a_replay_exports_prompt_and_output(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, output=[7, 8], max_tokens=4, role=Role.PREFILL)
    plan = engine.plan()
    assert engine.planned[0].tokens == 14
    assert engine.chunks(plan) == [("a", 0, 14)]
    assert engine.execute(plan, [9])[1:3] == [Emit("a", 2, 9), SealKv("a", 9)]


def test_a_receiver_that_dies_early_does_not_stop_prefill(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", PROMPT, role=Role.PREFILL)
    engine.step()
    assert engine.released("a") == []
    assert engine.used_blocks == 3
    assert engine.step(50) == [Emit("a", 0, 50), Finish("a", FinishReason.HANDOFF)]
    assert engine.used_blocks == 0
    metrics = engine.scheduler.metrics(0.0)
    assert (metrics.handoffs_out_total, metrics.handoffs_failed_total) == (0, 1)


def test_cancelling_prefill_keeps_the_blocks_until_released(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", PROMPT, role=Role.PREFILL)
    engine.step()
    assert engine.cancel("a") == [WithdrawKv("a", "cancelled"), Finish("a", FinishReason.CANCELLED)]
    assert engine.sequence("a").state is SequenceState.EXPORTED
    assert engine.used_blocks == 3
    engine.released("a")
    assert engine.used_blocks == 0


@pytest.mark.parametrize("released_first", [True, False])
def test_cancelled_and_released_during_a_step(drive, released_first: bool) -> None:
    engine = drive()
    engine.add("a", PROMPT, role=Role.PREFILL)
    plan = engine.plan()
    engine.cancel("a")
    if released_first:
        engine.released("a")
    assert engine.used_blocks == 3
    assert engine.execute(plan) == []
    assert engine.used_blocks == (0 if released_first else 3)


def test_an_open_offer_is_never_preempted(drive) -> None:
    engine = drive(total_blocks=5, block_tokens=4, prefill_budget=4)
    engine.add("a", 3, max_tokens=4)
    engine.add("p", 16, role=Role.PREFILL)
    engine.step()
    engine.step()
    # a needs a second block now, and p, which came later, has all the others.
    for start in (5, 9, 13):
        plan = engine.plan()
        assert engine.chunks(plan) == [("p", start, min(4, 16 - start))]
        engine.execute(plan)
    assert engine.plan().chunks == []
    engine.released("p")
    engine.run()
    assert engine.scheduler.metrics(0.0).preemptions_total == 0
    assert len(engine.emitted("a")) == 4


def test_a_release_nobody_knows(drive) -> None:
    engine = drive()
    assert engine.released("ghost") == []
    engine.add("a", 4)
    assert engine.released("a") == []


# The receiver ----------------------------------------------------------------------------------


def receive(engine, name: str = "a", prompt: list[int] = PROMPT, **fields) -> PullKv:
    engine.add(name, prompt, role=Role.DECODE, receives=True, **fields)
    engine.plan()
    (pull,) = [i for i in engine.planned if isinstance(i, PullKv)]
    assert pull.request_id == name
    return pull


def test_received_kv_is_decoded_from_the_second_token_on(drive) -> None:
    engine = drive()
    assert receive(engine) == PullKv("a", [0, 1, 2], tokens=12, from_token=0)
    assert not engine.scheduler.has_work
    assert engine.used_blocks == 4
    assert engine.arrived("a", 50) == []
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 12, 1)]
    assert plan.decode_tokens == 1
    assert engine.execute(plan, [51]) == [Emit("a", 1, 51)]
    metrics = engine.scheduler.metrics(0.0)
    assert (metrics.handoffs_in_total, metrics.prefill_tokens_total) == (1, 0)


def test_a_received_replay_goes_on_after_its_new_token(drive) -> None:
    engine = drive()
    pull = receive(engine, output=[1, 2])
    assert pull.tokens == 14
    engine.arrived("a", 50)
    assert engine.step(51) == [Emit("a", 3, 51)]


def test_what_is_cached_is_not_pulled(drive) -> None:
    engine = drive()
    engine.add("warm", PROMPT[:9], max_tokens=1)
    engine.step()
    pull = receive(engine)
    assert (pull.from_token, pull.tokens) == (8, 12)
    assert engine.sequence("a").cached_tokens == 8


def test_received_blocks_are_cached(drive) -> None:
    engine = drive()
    receive(engine)
    engine.arrived("a", 50)
    engine.add("b", [*PROMPT, 1], max_tokens=1)
    assert ("b", 12, 1) in engine.chunks(engine.plan())


def test_a_first_token_that_ends_it(drive) -> None:
    engine = drive()
    receive(engine, stop_ids=frozenset({50}))
    assert engine.arrived("a", 50) == [Finish("a", FinishReason.STOP, 50)]
    receive(engine, "b", max_tokens=1)
    assert engine.arrived("b", 50) == [Finish("b", FinishReason.LENGTH, cached_tokens=12)]
    assert engine.used_blocks == 0


def test_lost_kv_is_computed_here(drive) -> None:
    engine = drive()
    receive(engine)
    assert engine.lost("a") == []
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 0, 12)]
    assert engine.execute(plan, [50]) == [Emit("a", 0, 50)]
    metrics = engine.scheduler.metrics(0.0)
    assert (metrics.handoffs_in_total, metrics.handoffs_failed_total) == (0, 1)


def test_lost_kv_that_was_all_cached_spares_the_cached_block(drive) -> None:
    engine = drive()
    engine.add("warm", PROMPT, max_tokens=1)
    engine.step()
    pull = receive(engine)
    assert pull.from_token == pull.tokens == 12
    engine.lost("a")
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 8, 4)]
    assert engine.sequence("a").blocks[:2] == pull.blocks[:2]
    assert engine.sequence("a").blocks[2] != pull.blocks[2]
    engine.execute(plan)
    engine.step()
    assert len(engine.emitted("a")) == 2


def test_all_cached_and_arrived(drive) -> None:
    engine = drive()
    engine.add("warm", PROMPT, max_tokens=1)
    engine.step()
    receive(engine)
    engine.arrived("a", 50)
    assert engine.step(51) == [Emit("a", 1, 51)]


@pytest.mark.parametrize("answer", ["lost", "arrived"])
def test_cancelling_a_transfer_keeps_the_blocks_until_it_has_ended(drive, answer: str) -> None:
    engine = drive()
    receive(engine)
    assert engine.cancel("a") == [AbortPull("a"), Finish("a", FinishReason.CANCELLED)]
    assert engine.cancel("a") == []
    assert engine.used_blocks == 4
    assert (engine.lost("a") if answer == "lost" else engine.arrived("a", 50)) == []
    assert engine.used_blocks == 0
    assert engine.scheduler.metrics(0.0).handoffs_failed_total == 0


def test_a_received_one_that_is_preempted_is_computed_here(drive) -> None:
    engine = drive(total_blocks=4, block_tokens=4)
    engine.add("old", 4, max_tokens=7)
    receive(engine, "a", PROMPT[:7], max_tokens=4)
    engine.execute(engine.scheduler._plan)
    engine.arrived("a", 50)
    engine.run()
    assert engine.scheduler.metrics(0.0).preemptions_total == 1
    assert sum(isinstance(i, PullKv) for i in engine.said) == 1
    assert len(engine.emitted("old")) == 7
    assert [i.index for i in engine.said if isinstance(i, Emit) and i.request_id == "a"] == [1, 2, 3]


def test_transfer_events_that_nobody_awaits(drive) -> None:
    engine = drive()
    assert engine.lost("ghost") == engine.arrived("ghost", 1) == []
    receive(engine)
    engine.arrived("a", 50)
    with pytest.raises(IllegalTransition, match="awaits no transfer"):
        engine.arrived("a", 50)
    with pytest.raises(IllegalTransition, match="awaits no transfer"):
        engine.lost("a")
