"""A scheduler with a pretend engine that executes each plan at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Emit,
    ExportReleased,
    Finish,
    Instruction,
    KvArrived,
    KvLost,
    RequestArrived,
    RequestCancelled,
    Sequence,
    SequenceRequest,
    StepExecuted,
    StepPlan,
)
from tokenmill.protocol.ids import RequestId


class Driver:
    """Feeds a scheduler, checks its invariants after each call, and keeps what it said."""

    def __init__(self, **limits: Any) -> None:
        limits = {"total_blocks": 64, "block_tokens": 4, "max_model_len": 1000, "watermark": 0.0} | limits
        self.scheduler = Scheduler(BatchingConfig(**limits))
        self.said: list[Instruction] = []
        self.next_token = 1000

    def handle(self, event: Any) -> list[Instruction]:
        said = self.scheduler.handle(event, 0.0)
        self.scheduler.validate()
        self.said += said
        return said

    def add(
        self, name: str, prompt: int | list[int], max_tokens: int = 100, **fields: Any
    ) -> list[Instruction]:
        """Send a request; an integer prompt is a length, and no two such prompts begin alike."""
        if isinstance(prompt, int):
            prompt = [sum(map(ord, name)) * 1000 + i for i in range(prompt)]
        fields = {"prompt": prompt, "max_tokens": max_tokens} | fields
        return self.handle(RequestArrived(SequenceRequest(request_id=RequestId(name), **fields)))

    def cancel(self, name: str) -> list[Instruction]:
        return self.handle(RequestCancelled(RequestId(name)))

    def arrived(self, name: str, token: int) -> list[Instruction]:
        return self.handle(KvArrived(RequestId(name), token))

    def lost(self, name: str) -> list[Instruction]:
        return self.handle(KvLost(RequestId(name)))

    def released(self, name: str) -> list[Instruction]:
        return self.handle(ExportReleased(RequestId(name)))

    def plan(self) -> StepPlan:
        step = self.scheduler.next_step(0.0)
        self.scheduler.validate()
        self.said += step.instructions
        self.planned = step.instructions
        return step.plan

    def execute(self, plan: StepPlan, tokens: Iterable[int] | None = None) -> list[Instruction]:
        if tokens is None:
            count = sum(chunk.samples for chunk in plan.chunks)
            tokens = range(self.next_token, self.next_token + count)
            self.next_token += count
        return self.handle(StepExecuted(plan, list(tokens)))

    def step(self, *tokens: int) -> list[Instruction]:
        """Run one step, which samples ``tokens`` or, without any, tokens never seen before."""
        plan = self.plan()
        return self.execute(plan, tokens or None) if plan.chunks else []

    def run(self, most_steps: int = 500) -> None:
        """Step until there is nothing to do."""
        for _ in range(most_steps):
            plan = self.plan()
            if not plan.chunks:
                return
            self.execute(plan)
        raise AssertionError(f"still busy after {most_steps} steps")

    def chunks(self, plan: StepPlan) -> list[tuple[str, int, int]]:
        return [(c.sequence.request.request_id, c.start, c.length) for c in plan.chunks]

    def sequence(self, name: str) -> Sequence:
        return self.scheduler._batch.sequences[RequestId(name)]

    def emitted(self, name: str) -> list[int]:
        """Tokens sent for a request, after checking that their positions have no gap."""
        emits = [i for i in self.said if isinstance(i, Emit) and i.request_id == name]
        first = emits[0].index if emits else 0
        assert [emit.index for emit in emits] == list(range(first, first + len(emits)))
        return [emit.token for emit in emits]

    def finish(self, name: str) -> Finish:
        (finish,) = [i for i in self.said if isinstance(i, Finish) and i.request_id == name]
        return finish

    @property
    def used_blocks(self) -> int:
        return self.scheduler.metrics(0.0).kv_blocks_used


@pytest.fixture
def drive() -> type[Driver]:
    return Driver
