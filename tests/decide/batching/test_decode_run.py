"""Decode steps counted many at a time leave the scheduler as single steps do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import BatchingConfig, RequestArrived, SequenceRequest, StepExecuted
from tokenmill.protocol.ids import RequestId


def begun(prompts: list[int], outputs: list[int], **limits: int) -> Scheduler:
    """Return a scheduler whose prompts are computed, so that only decoding is left."""
    config = BatchingConfig(
        **{"total_blocks": 200, "max_model_len": 400, "block_tokens": 4, "token_budget": 4096} | limits
    )
    scheduler = Scheduler(config)
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        tokens = [number + 1] * prompt
        request = SequenceRequest(request_id=RequestId(str(number)), prompt=tokens, max_tokens=output)
        assert scheduler.handle(RequestArrived(request), 0.0) == []
    single(scheduler)
    return scheduler


def single(scheduler: Scheduler) -> bool:
    plan = scheduler.next_step(0.0).plan
    if not plan.chunks:
        return False
    samples = plan.decode_tokens + sum(chunk.samples for chunk in plan.chunks[plan.decode_tokens :])
    scheduler.handle(StepExecuted(plan, [0] * samples), 0.0)
    return True


def state(scheduler: Scheduler) -> tuple[object, ...]:
    scheduler.validate()
    sequences = scheduler._batch.sequences.values()
    return (
        [(s.request.request_id, s.computed, list(s.tokens), s.blocks, s.next_commit) for s in sequences],
        scheduler.metrics(1.0),
        scheduler.drain_kv_events(),
    )


@settings(deadline=None)
@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    outputs=st.lists(st.integers(2, 60), min_size=5, max_size=5),
    bites=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    total_blocks=st.sampled_from([60, 200]),
)
def test_runs_leave_what_single_steps_leave(
    prompts: list[int], outputs: list[int], bites: list[int], total_blocks: int
) -> None:
    by_runs = begun(prompts, outputs[: len(prompts)], total_blocks=total_blocks)
    by_steps = begun(prompts, outputs[: len(prompts)], total_blocks=total_blocks)
    assert state(by_runs) == state(by_steps)
    run = by_runs.decode_run()
    if run is None:
        return
    steps = 0
    for bite in bites:
        taken = min(bite, run.quiet)
        by_runs.advance(run, taken)
        steps += taken
        if run.quiet == 0 and not run.cross():
            break
    crossed = run.quiet > 0  # then blocks for the next step have been handed out
    run.close()
    for _ in range(steps):
        assert single(by_steps)
    if not crossed:
        assert state(by_runs) == state(by_steps)
    while single(by_runs):
        assert single(by_steps)
    assert not single(by_steps)
    ended, stepped = state(by_runs), state(by_steps)
    assert ended[:2] == stepped[:2]


def test_a_run_stops_before_a_sequence_ends() -> None:
    scheduler = begun([3, 3], [9, 30])
    run = scheduler.decode_run()
    assert run is not None
    assert run.most == 7  # one token came with the prompt, and one is left for a step that looks at it
    run.close()


def test_there_is_no_run_where_more_is_to_be_done() -> None:
    scheduler = begun([3], [9])
    waiting = SequenceRequest(request_id=RequestId("w"), prompt=[1, 2], max_tokens=3)
    scheduler.handle(RequestArrived(waiting), 0.0)
    assert scheduler.decode_run() is None
    assert begun([3], [1]).decode_run() is None
    plan = scheduler.next_step(0.0).plan
    with pytest.raises(ValueError, match="still being executed"):
        scheduler.decode_run()
    scheduler.handle(StepExecuted(plan, [0, 0]), 0.0)
    assert scheduler.decode_run() is not None


def test_a_run_needs_blocks_for_all() -> None:
    scheduler = begun([4, 4], [9, 9], total_blocks=3, watermark=0)
    assert scheduler.decode_run() is None
    assert scheduler.metrics(1.0).kv_blocks_used == 2
