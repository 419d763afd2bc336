"""From prompt to last token: stop rules, cancelling, counting."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.types import Emit, Finish, StepAbandoned, StepExecuted, StepPlan
from tokenmill.protocol.items import FinishReason


def test_prefill_then_decode(drive) -> None:
    engine = drive()
    engine.add("a", 6, max_tokens=3)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 0, 6)]
    assert (plan.step, plan.prefill_tokens, plan.decode_tokens) == (1, 6, 0)
    assert engine.execute(plan, [50]) == [Emit("a", 0, 50)]
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 6, 1)]
    assert (plan.step, plan.prefill_tokens, plan.decode_tokens) == (2, 0, 1)
    assert engine.execute(plan, [51]) == [Emit("a", 1, 51)]
    assert engine.step(52) == [Emit("a", 2, 52), Finish("a", FinishReason.LENGTH)]
    assert not engine.scheduler.has_work
    assert engine.used_blocks == 0


def test_an_idle_scheduler_plans_nothing(drive) -> None:
    engine = drive()
    plan = engine.plan()
    assert plan.chunks == []
    assert plan.step == 0
    assert engine.plan().step == 0


def test_a_stop_token_is_sent_and_named(drive) -> None:
    engine = drive()
    engine.add("a", 3, stop_ids=frozenset({7, 8}))
    engine.step(1)
    assert engine.step(8) == [Emit("a", 1, 8), Finish("a", FinishReason.STOP, 8)]


def test_no_stop_before_min_tokens(drive) -> None:
    engine = drive()
    engine.add("a", 3, stop_ids=frozenset({7}), min_tokens=3)
    assert engine.step(7) == [Emit("a", 0, 7)]
    assert engine.step(7) == [Emit("a", 1, 7)]
    assert engine.step(7) == [Emit("a", 2, 7), Finish("a", FinishReason.STOP, 7)]


def test_the_context_length_ends_a_sequence(drive) -> None:
    engine = drive(max_model_len=6)
    engine.add("a", 4)
    engine.run()
    assert len(engine.emitted("a")) == 2
    assert engine.finish("a").reason is FinishReason.LENGTH


def test_alone_in_a_full_pool_it_ends_for_length(drive) -> None:
    engine = drive(total_blocks=2, block_tokens=4)
    engine.add("a", 5)
    engine.run()
    # Eight places hold eight tokens; the logits of the eighth give a ninth.
    assert len(engine.emitted("a")) == 4
    assert engine.finish("a").reason is FinishReason.LENGTH


def test_a_replay_goes_on_where_it_was(drive) -> None:
    engine = drive()
    engine.add("a", 4, output=[50, 51], max_tokens=4)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 0, 6)]
    assert engine.execute(plan, [52]) == [Emit("a", 2, 52)]
    assert engine.step(53)[-1] == Finish("a", FinishReason.LENGTH)


def test_a_long_prompt_is_computed_in_chunks(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", 20)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 0, 8)]
    assert engine.execute(plan) == []
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 8, 8)]
    assert engine.execute(plan) == []
    plan = engine.plan()
    assert [chunk.samples for chunk in plan.chunks] == [True]
    assert engine.execute(plan, [9]) == [Emit("a", 0, 9)]


def test_cancelling_in_the_queue(drive) -> None:
    engine = drive()
    engine.add("a", 4)
    assert engine.cancel("a") == [Finish("a", FinishReason.CANCELLED)]
    assert engine.cancel("a") == []
    assert not engine.scheduler.has_work


def test_cancelling_between_steps_frees_at_once(drive) -> None:
    engine = drive()
    engine.add("a", 4)
    engine.step()
    assert engine.cancel("a") == [Finish("a", FinishReason.CANCELLED)]
    assert engine.used_blocks == 0


def test_cancelling_during_a_step_leaves_its_blocks_until_the_end(drive) -> None:
    engine = drive()
    engine.add("a", 4)
    plan = engine.plan()
    assert engine.cancel("a") == [Finish("a", FinishReason.CANCELLED)]
    assert plan.chunks[0].sequence.blocks == [0]
    assert engine.used_blocks == 1
    assert engine.execute(plan) == []
    assert engine.used_blocks == 0


def test_one_plan_at_a_time(drive) -> None:
    engine = drive()
    engine.add("a", 4)
    plan = engine.plan()
    with pytest.raises(ValueError, match="step 1 is still being executed"):
        engine.scheduler.next_step(0.0)
    with pytest.raises(ValueError, match="step 5 is not the one under way"):
        engine.handle(StepExecuted(StepPlan(5, [], 0, 0), []))
    with pytest.raises(ValueError, match="2 tokens do not fit"):
        engine.handle(StepExecuted(plan, [1, 2]))
    engine.execute(plan)


def test_an_abandoned_step_is_planned_again(drive) -> None:
    engine = drive()
    engine.add("a", 4)
    engine.add("b", 4)
    plan = engine.plan()
    engine.cancel("b")
    assert engine.handle(StepAbandoned(plan)) == []
    assert engine.used_blocks == 1
    with pytest.raises(ValueError, match="step 1 is not the one under way"):
        engine.handle(StepAbandoned(plan))
    again = engine.plan()
    assert (again.step, engine.chunks(again)) == (2, [("a", 0, 4)])
    assert engine.execute(again, [9]) == [Emit("a", 0, 9)]


def test_metrics(drive) -> None:
    engine = drive(token_budget=8, max_sequences=3, block_tokens=4)
    for name, length in [("a", 3), ("b", 12), ("c", 5), ("d", 7)]:
        engine.add(name, length)
    before = engine.scheduler.metrics(0.0)
    assert (before.step, before.waiting, before.waiting_prefill_tokens) == (0, 4, 27)
    engine.step()
    after = engine.scheduler.metrics(2.5)
    assert (after.step, after.step_ms, after.prefill_tokens, after.decode_tokens) == (1, 2.5, 8, 0)
    assert (after.running, after.waiting, after.waiting_prefill_tokens) == (2, 2, 19)
    assert (after.kv_blocks_used, after.kv_blocks_total) == (4, 64)
    engine.step()
    later = engine.scheduler.metrics(1.0)
    assert (later.prefill_tokens, later.decode_tokens) == (7, 1)
    assert (later.prefill_tokens_total, later.decode_tokens_total) == (15, 1)
    assert (later.prefix_hit_tokens_total, later.prefix_query_tokens_total) == (0, 15)
