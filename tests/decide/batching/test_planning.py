"""Who takes part in a step: budgets, order, watermark, preemption."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.types import Emit, Finish, SequenceState
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import FinishReason


def test_decodes_come_before_prefill_chunks(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", 3)
    engine.add("b", 4)
    engine.step()
    engine.add("c", 20)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 3, 1), ("b", 4, 1), ("c", 0, 6)]
    assert (plan.decode_tokens, plan.prefill_tokens) == (2, 6)


def test_the_prefill_budget_keeps_decode_steps_short(drive) -> None:
    engine = drive(token_budget=100, prefill_budget=5)
    engine.add("a", 3)
    engine.step()
    engine.add("b", 8)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 3, 1), ("b", 0, 5)]
    engine.execute(plan)
    engine.add("c", 10)
    assert engine.chunks(engine.plan()) == [("a", 4, 1), ("b", 5, 3), ("c", 0, 2)]


def test_a_prompt_that_is_nearly_done_goes_alone_past_join_tokens(drive) -> None:
    engine = drive(token_budget=20, join_tokens=6)
    engine.add("a", 10)
    engine.add("b", 30)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 0, 10)]
    engine.execute(plan)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 10, 1), ("b", 0, 19)]


def test_others_join_a_small_step_as_far_as_join_tokens(drive) -> None:
    engine = drive(token_budget=20, join_tokens=6)
    engine.add("a", 2)
    engine.add("b", 30)
    engine.add("c", 3)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 0, 2), ("b", 0, 4)]
    engine.execute(plan)
    assert engine.chunks(engine.plan()) == [("a", 2, 1), ("b", 4, 19)]


def test_begun_prefill_goes_on_before_new_ones_even_of_higher_priority(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", 20)
    engine.step()
    engine.add("b", 4, priority=9)
    assert engine.chunks(engine.plan()) == [("a", 8, 8)]


def test_admission_is_by_priority_then_arrival(drive) -> None:
    engine = drive(max_sequences=3)
    for name, priority in [("a", 0), ("b", 0), ("c", 5), ("d", 5)]:
        engine.add(name, 3, priority=priority)
    assert [name for name, _, _ in engine.chunks(engine.plan())] == ["c", "d", "a"]


def test_as_many_sequences_as_places(drive) -> None:
    engine = drive(max_sequences=2)
    for name in "abc":
        engine.add(name, 3, max_tokens=2)
    assert len(engine.plan().chunks) == 2


def test_never_more_decodes_than_token_budget(drive) -> None:
    engine = drive(token_budget=3, max_sequences=100)
    for name in "abcde":
        engine.add(name, 1, max_tokens=5)
    for _ in range(4):
        plan = engine.plan()
        assert len(plan.chunks) <= 3
        engine.execute(plan)
    engine.run()
    assert all(len(engine.emitted(name)) == 5 for name in "abcde")


def test_admission_leaves_the_watermark_free(drive) -> None:
    engine = drive(total_blocks=10, block_tokens=4, watermark=0.3)
    engine.add("a", 16)
    engine.add("b", 16)
    engine.add("c", 4)
    plan = engine.plan()
    assert [name for name, _, _ in engine.chunks(plan)] == ["a"]
    engine.execute(plan)
    engine.cancel("b")
    # Four blocks and one grown are held; one more leaves four free.
    assert [name for name, _, _ in engine.chunks(engine.plan())] == ["a", "c"]


def test_the_first_gets_in_below_the_watermark_when_nobody_runs(drive) -> None:
    engine = drive(total_blocks=10, block_tokens=4, watermark=0.9)
    engine.add("a", 38)
    assert engine.chunks(engine.plan()) == [("a", 0, 38)]


def test_nobody_passes_one_that_waits_for_blocks(drive) -> None:
    engine = drive(total_blocks=10, block_tokens=4)
    engine.add("a", 16, max_tokens=2)
    engine.add("b", 32, max_tokens=2)
    engine.add("c", 4, max_tokens=2)
    engine.add("d", 4, role=Role.DECODE, receives=True)
    plan = engine.plan()
    assert [name for name, _, _ in engine.chunks(plan)] == ["a"]
    assert engine.planned == []
    engine.execute(plan)
    engine.step()
    assert [name for name, _, _ in engine.chunks(engine.plan())] == ["b", "c"]


def test_a_pulled_one_passes_one_that_waits_for_budget(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", 20)
    engine.add("b", 4)
    engine.add("c", 4, role=Role.DECODE, receives=True)
    assert engine.chunks(engine.plan()) == [("a", 0, 8)]
    assert [i.request_id for i in engine.planned] == ["c"]


# Preemption ------------------------------------------------------------------------------------


def test_the_youngest_makes_room(drive) -> None:
    engine = drive(total_blocks=3, block_tokens=4)
    for name in "abc":
        engine.add(name, 4, max_tokens=6)
    first = {c.sequence.request.request_id: c.sequence for c in engine.plan().chunks}
    engine.execute(engine.scheduler._plan)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 4, 1)]
    assert first["c"].state is SequenceState.WAITING
    assert (first["c"].blocks, first["c"].computed, first["c"].preemptions) == ([], 0, 1)
    # b stands still rather than lose its KV: nobody before it needs its block yet.
    assert first["b"].state is SequenceState.RUNNING
    engine.execute(plan)
    engine.run()
    for name in "abc":
        assert len(engine.emitted(name)) == 6
        assert engine.finish(name).reason is FinishReason.LENGTH
    assert engine.scheduler.metrics(0.0).preemptions_total >= 1
    assert engine.used_blocks == 0


def test_low_priority_makes_room_before_young(drive) -> None:
    engine = drive(total_blocks=2, block_tokens=4)
    engine.add("low", 4, max_tokens=3)
    engine.add("high", 4, max_tokens=3, priority=1)
    engine.step()
    assert engine.chunks(engine.plan()) == [("high", 4, 1)]
    assert engine.sequence("low").state is SequenceState.WAITING


def test_the_old_does_not_make_room_for_the_young(drive) -> None:
    engine = drive(total_blocks=4, block_tokens=4)
    engine.add("old", 9, max_tokens=4)
    engine.add("young", 4, max_tokens=3)
    engine.step()
    plan = engine.plan()
    assert engine.chunks(plan) == [("old", 9, 1)]
    assert engine.sequence("young").state is SequenceState.RUNNING
    engine.execute(plan)
    engine.run()
    assert engine.scheduler.metrics(0.0).preemptions_total == 0
    assert len(engine.emitted("young")) == 3


def test_a_preempted_one_recomputes_its_output_and_sends_nothing_twice(drive) -> None:
    engine = drive(total_blocks=3, block_tokens=4, prefix_cache=False)
    engine.add("a", 4, max_tokens=5)
    engine.add("b", 4, max_tokens=5)
    engine.step(10, 20)
    engine.step(11)
    engine.step(12)
    engine.step(13)
    assert engine.step(14)[-1].reason is FinishReason.LENGTH
    plan = engine.plan()
    assert engine.chunks(plan) == [("b", 4, 1)]
    engine.execute(plan, [21])
    engine.add("c", 1, max_tokens=1, priority=1)
    engine.run()
    assert engine.emitted("a") == [10, 11, 12, 13, 14]
    assert engine.emitted("b")[:2] == [20, 21]
    assert len(engine.emitted("b")) == 5


def test_recompute_covers_prompt_and_output(drive) -> None:
    engine = drive(total_blocks=4, block_tokens=4, prefix_cache=False)
    engine.add("a", 6, max_tokens=7)
    engine.add("b", 6, max_tokens=4)
    engine.step(10, 20)
    engine.step(11, 21)
    engine.step(12, 22)
    # Both have filled two blocks: a's ninth token takes the place of b.
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 8, 1)]
    sequence = engine.sequence("b")
    assert sequence.state is SequenceState.WAITING
    assert sequence.tokens[6:] == [20, 21, 22]
    for token in (13, 14, 15):
        engine.execute(plan, [token])
        plan = engine.plan()
    engine.execute(plan, [16])
    plan = engine.plan()
    assert engine.chunks(plan) == [("b", 0, 9)]
    assert engine.execute(plan, [23]) == [Emit("b", 3, 23), Finish("b", FinishReason.LENGTH)]


def test_a_preempted_one_keeps_its_place_before_later_arrivals(drive) -> None:
    engine = drive(total_blocks=3, block_tokens=4, prefix_cache=False)
    for name in "abc":
        engine.add(name, 4, max_tokens=6)
    engine.add("d", 1, max_tokens=1)
    engine.step()
    engine.plan()
    assert [s.request.request_id for s in engine.scheduler._batch.waiting] == ["d", "c"]


def test_preempting_does_not_make_room_for_newcomers(drive) -> None:
    engine = drive(total_blocks=4, block_tokens=4)
    engine.add("a", 4, max_tokens=9)
    engine.add("b", 9, max_tokens=9)
    engine.step()
    engine.add("c", 1, priority=1)
    plan = engine.plan()
    assert engine.chunks(plan) == [("a", 4, 1)]
    engine.execute(plan)
    assert engine.chunks(engine.plan()) == [("a", 5, 1), ("c", 0, 1)]


def test_a_stalled_one_waits_for_an_export(drive) -> None:
    engine = drive(total_blocks=3, block_tokens=4)
    engine.add("export", 8, role=Role.PREFILL)
    engine.add("a", 4, max_tokens=3)
    engine.step()
    assert engine.plan().chunks == []
    assert engine.scheduler.has_work
    engine.released("export")
    engine.run()
    assert len(engine.emitted("a")) == 3
    assert engine.scheduler.metrics(0.0).preemptions_total == 0


@pytest.mark.parametrize("total_blocks", [5, 6, 9, 14])
def test_everyone_finishes_in_a_tiny_pool(drive, total_blocks: int) -> None:
    engine = drive(total_blocks=total_blocks, block_tokens=2, max_sequences=8, token_budget=8)
    for number in range(12):
        engine.add(f"r{number}", 1 + number % 7, max_tokens=2 + number % 4, priority=number % 3)
    engine.run()
    assert [len(engine.emitted(f"r{n}")) for n in range(12)] == [min(2 + n % 4, 99) for n in range(12)]
    assert engine.used_blocks == 0
