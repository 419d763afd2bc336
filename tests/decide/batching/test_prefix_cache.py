"""What is found again, and what must not be."""

from __future__ import annotations

from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.kv_events import BlocksStored

PROMPT = list(range(100, 112))


def test_whole_blocks_of_the_prompt_are_reused(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, max_tokens=1)
    engine.step()
    engine.add("b", [*PROMPT[:10], 1, 2, 3], max_tokens=1)
    plan = engine.plan()
    assert engine.chunks(plan) == [("b", 8, 5)]
    engine.execute(plan)
    assert engine.finish("a").cached_tokens == 0
    assert engine.finish("b").cached_tokens == 8
    metrics = engine.scheduler.metrics(0.0)
    assert (metrics.prefix_hit_tokens_total, metrics.prefix_query_tokens_total) == (8, 25)


def test_the_last_token_is_always_computed(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, max_tokens=1)
    engine.step()
    engine.add("b", PROMPT, max_tokens=1)
    plan = engine.plan()
    assert engine.chunks(plan) == [("b", 8, 4)]
    assert plan.chunks[0].samples


def test_running_sequences_share_blocks(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT)
    engine.step()
    engine.add("b", [*PROMPT, 1])
    engine.step()
    assert engine.sequence("a").blocks[:3] == engine.sequence("b").blocks[:3]
    assert engine.used_blocks == 5


def test_output_blocks_are_found_by_the_next_turn(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT[:6], max_tokens=4)
    engine.run()
    turn = [*PROMPT[:6], *engine.emitted("a")]
    engine.add("b", [*turn, 1, 2])
    # Ten tokens; the last was never computed, so two blocks are full.
    assert engine.chunks(engine.plan()) == [("b", 8, 4)]


def test_tokens_computed_later_are_not_found_earlier(drive) -> None:
    engine = drive(token_budget=8, max_sequences=4)
    engine.add("a", PROMPT)
    plan = engine.plan()
    assert engine.scheduler._batch.pool.match(block_hashes(PROMPT, 4)) == []
    engine.execute(plan)
    assert len(engine.scheduler._batch.pool.match(block_hashes(PROMPT, 4))) == 2


def test_salts_are_apart(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, max_tokens=1, cache_salt="x")
    engine.step()
    engine.add("b", PROMPT, max_tokens=1)
    assert engine.chunks(engine.plan()) == [("b", 0, 12)]


def test_scoring_a_prompt_computes_all_of_it(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, max_tokens=1)
    engine.step()
    engine.add("b", PROMPT, max_tokens=1, score_prompt=True)
    plan = engine.plan()
    assert engine.chunks(plan) == [("b", 0, 12)]
    engine.execute(plan)
    assert engine.finish("b").cached_tokens == 0


def test_it_can_be_off(drive) -> None:
    engine = drive(prefix_cache=False)
    engine.add("a", PROMPT, max_tokens=1)
    engine.step()
    engine.add("b", PROMPT, max_tokens=1)
    assert engine.chunks(engine.plan()) == [("b", 0, 12)]
    assert engine.scheduler.drain_kv_events() == []


def test_a_preempted_one_finds_its_own_blocks(drive) -> None:
    engine = drive(total_blocks=5, block_tokens=4)
    engine.add("a", 6, max_tokens=4)
    engine.add("b", 9, max_tokens=4)
    engine.step(10, 20)
    engine.step(11, 21)
    engine.step(12, 22)
    # a needs a third block: b goes, but only its last, half full block is lost.
    engine.step(13)
    assert engine.scheduler.metrics(0.0).preemptions_total == 1
    plan = engine.plan()
    assert engine.chunks(plan) == [("b", 8, 4)]
    assert engine.sequence("b").cached_tokens == 0


def test_routers_are_told_the_hashes(drive) -> None:
    engine = drive()
    engine.add("a", PROMPT, max_tokens=1)
    engine.step()
    assert engine.scheduler.drain_kv_events() == [BlocksStored(block_hashes(PROMPT, 4), None)]
    engine.add("b", [*PROMPT, 1, 2, 3, 4, 5], max_tokens=1)
    engine.step()
    hashes = block_hashes([*PROMPT, 1, 2, 3, 4], 4)
    assert engine.scheduler.drain_kv_events() == [BlocksStored(hashes[3:], hashes[2])]
