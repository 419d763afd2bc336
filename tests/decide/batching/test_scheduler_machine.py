"""Drive the scheduler with every legal order of events against a model of requests and of KV memory.

The model remembers, for each slot of KV memory, which token prefix it was computed from. A chunk is only
right if every earlier slot of its sequence holds its own prefix, at the start of the step and at its end:
this shows that the prefix cache, preemption, sharing and transfers never read another's KV.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    AbortPull,
    AdvanceKv,
    BatchingConfig,
    Emit,
    ExportReleased,
    Finish,
    KvArrived,
    KvLost,
    OfferKv,
    PullKv,
    Reject,
    RejectCode,
    RequestArrived,
    RequestCancelled,
    SealKv,
    SequenceRequest,
    SequenceState,
    StepAbandoned,
    StepExecuted,
    StepPlan,
    WithdrawKv,
)
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import FinishReason
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared

STOP = 9
TOKENS = st.integers(0, 2)
# Most prompts begin alike, and so do outputs, lest the prefix cache never hit.
PROMPTS = st.builds(
    lambda common, own: [0] * common + own, st.integers(0, 11), st.lists(TOKENS, min_size=1, max_size=3)
) | st.sampled_from([[0] * 8, [0] * 12])
GARBAGE = "garbage"

configs = st.builds(
    BatchingConfig,
    total_blocks=st.integers(4, 12),
    block_tokens=st.sampled_from([2, 2, 3, 4, 1]),
    max_model_len=st.integers(12, 40),
    token_budget=st.integers(2, 16),
    prefill_budget=st.none() | st.integers(1, 8),
    join_tokens=st.none() | st.integers(1, 8),
    max_sequences=st.integers(2, 5),
    max_waiting=st.integers(2, 6),
    prefix_cache=st.sampled_from([True, True, False]),
    watermark=st.sampled_from([0.0, 0.1, 0.4]),
    role=st.sampled_from(Role),
)


class RequestModel:
    """What the outside knows of one request."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request
        self.tokens = request.prompt + request.output
        self.end: Finish | None = None
        self.offer: OfferKv | None = None
        self.ready = 0
        self.closed = False
        self.pull: PullKv | None = None

    @property
    def outputs(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, RequestModel] = {}
        self.offers: dict[str, RequestModel] = {}
        self.pulls: dict[str, RequestModel] = {}
        self.plan: StepPlan | None = None
        self.slots: dict[tuple[int, int], Any] = {}
        self.mirror: set[int] = set()
        self.arrivals = 0

    @initialize(config=configs)
    def start(self, config: BatchingConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)

    # KV memory -------------------------------------------------------------------------------

    def slot(self, blocks: list[int], position: int) -> tuple[int, int]:
        return blocks[position // self.config.block_tokens], position % self.config.block_tokens

    @staticmethod
    def meaning(model: RequestModel, position: int) -> tuple[str, tuple[int, ...]]:
        return model.request.cache_salt, tuple(model.tokens[: position + 1])

    def write(self, blocks: list[int], model: RequestModel, span: range) -> None:
        for position in span:
            self.slots[self.slot(blocks, position)] = self.meaning(model, position)

    def spoil(self, blocks: list[int], span: range) -> None:
        for position in span:
            self.slots[self.slot(blocks, position)] = GARBAGE

    def check(self, blocks: list[int], model: RequestModel, until: int) -> None:
        for position in range(until):
            assert self.slots.get(self.slot(blocks, position)) == self.meaning(model, position)

    # Instructions ----------------------------------------------------------------------------

    def obey(self, instructions: list[Any]) -> list[Emit]:
        emits = []
        for instruction in instructions:
            model = self.models[instruction.request_id]
            match instruction:
                case Emit(index=index, token=token):
                    assert model.end is None
                    assert index == model.outputs
                    model.tokens.append(token)
                    emits.append(instruction)
                case Finish():
                    self.finished(model, instruction)
                case OfferKv(blocks=blocks, tokens=tokens, ready=ready):
                    assert model.offer is None
                    assert tokens == len(model.tokens)
                    assert len(blocks) == -(-tokens // self.config.block_tokens)
                    model.offer, model.ready = instruction, ready
                    self.offers[instruction.request_id] = model
                case AdvanceKv(ready=ready):
                    assert instruction.request_id in self.offers
                    assert not model.closed
                    assert model.ready < ready <= model.offer.tokens
                    model.ready = ready
                case SealKv(first_token=token):
                    assert instruction.request_id in self.offers
                    assert not model.closed
                    assert model.ready == model.offer.tokens
                    assert model.tokens[-1] == token
                    model.closed = True
                case WithdrawKv():
                    assert instruction.request_id in self.offers
                    assert not model.closed
                    model.closed = True
                case PullKv(tokens=tokens, from_token=from_token, blocks=blocks):
                    assert model.pull is None
                    assert tokens == len(model.tokens)
                    assert len(blocks) == -(-tokens // self.config.block_tokens)
                    self.check(blocks, model, from_token)
                    model.pull = instruction
                    self.pulls[instruction.request_id] = model
                case AbortPull():
                    assert instruction.request_id in self.pulls
                case Reject():
                    pytest.fail(f"{instruction} outside arrival")
        return emits

    def finished(self, model: RequestModel, finish: Finish) -> None:
        assert model.end is None, "one end only"
        model.end = finish
        request = model.request
        stops = model.outputs > 0 and model.tokens[-1] in request.stop_ids
        stops = stops and model.outputs >= request.min_tokens
        full = model.outputs >= request.max_tokens or len(model.tokens) >= self.most_tokens
        if finish.reason is FinishReason.STOP:
            assert stops
            assert finish.stop_token == model.tokens[-1]
            return
        assert finish.stop_token is None
        if finish.reason is FinishReason.CANCELLED:
            return
        assert not stops
        if finish.reason is FinishReason.LENGTH:
            assert full
        else:
            assert finish.reason is FinishReason.HANDOFF
            assert not full
            assert request.role is Role.PREFILL
            assert model.outputs == len(request.output) + 1

    @property
    def most_tokens(self) -> int:
        return min(self.config.max_model_len, self.config.total_blocks * self.config.block_tokens + 1)

    def must_go_on(self, model: RequestModel) -> None:
        """A request that was not ended has no reason to end."""
        request = model.request
        assert request.role is not Role.PREFILL or model.outputs == len(request.output)
        assert model.outputs < request.max_tokens
        assert len(model.tokens) < self.most_tokens
        if model.outputs and model.outputs >= request.min_tokens:
            assert model.tokens[-1] not in request.stop_ids

    # Rules -----------------------------------------------------------------------------------

    @rule(
        prompt=PROMPTS,
        output=st.just([]) | st.lists(TOKENS, max_size=3),
        max_tokens=st.sampled_from([1, 2, 6, 12, 20]),
        min_tokens=st.sampled_from([0, 0, 3]),
        role=st.sampled_from(Role),
        receives=st.sampled_from([True, True, False]),
        priority=st.sampled_from([0, 0, 1]),
        cache_salt=st.sampled_from(["", "", "tenant"]),
        score_prompt=st.sampled_from([False, False, False, True]),
        again=st.booleans(),
        data=st.data(),
    )
    def arrive(self, role: Role, receives: bool, again: bool, data: Any, **fields: Any) -> None:
        name = f"r{self.arrivals}"
        live = [name for name, model in self.models.items() if model.end is None]
        duplicate = again and bool(live) and data.draw(st.integers(0, 9)) == 0
        if duplicate:
            name = data.draw(st.sampled_from(live))
        request = SequenceRequest(
            request_id=RequestId(name),
            role=role,
            receives=receives and role is Role.DECODE,
            stop_ids=frozenset({STOP}),
            **fields,
        )
        answer = self.scheduler.handle(RequestArrived(request), 0.0)
        if duplicate:
            assert [reject.code for reject in answer] == [RejectCode.DUPLICATE]
            return
        self.arrivals += 1
        self.models[name] = model = RequestModel(request)
        if answer and isinstance(answer[0], Reject):
            del self.models[name]
            self.check_reject(request, answer[0])
            return
        self.obey(answer)
        if model.end is None:
            self.must_go_on(model)

    def check_reject(self, request: SequenceRequest, reject: Reject) -> None:
        length = len(request.prompt) + len(request.output)
        match reject.code:
            case RejectCode.TOO_LONG:
                assert length >= self.config.max_model_len
            case RejectCode.NO_ROOM:
                assert length + 1 > self.config.total_blocks * self.config.block_tokens
            case RejectCode.QUEUE_FULL:
                assert self.scheduler.metrics(0.0).waiting >= self.config.max_waiting
            case RejectCode.DUPLICATE:
                pytest.fail("not a duplicate")

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        model = self.models[name]
        had_ended = model.end is not None
        answer = self.scheduler.handle(RequestCancelled(RequestId(name)), 0.0)
        self.obey(answer)
        if had_ended:
            assert answer == []
            return
        assert model.end is not None
        assert model.end.reason is FinishReason.CANCELLED
        assert (name in self.offers) == model.closed
        assert (name in self.pulls) == any(isinstance(i, AbortPull) for i in answer)

    @precondition(lambda self: self.plan is None)
    @rule()
    def next_step(self) -> None:
        sequences = self.scheduler._batch.sequences.values()
        running = [s for s in sequences if s.state is SequenceState.RUNNING]
        step = self.scheduler.next_step(0.0)
        self.obey(step.instructions)
        self.check_preempted(running)
        if not step.plan.chunks:
            return
        self.plan = step.plan
        for chunk in self.plan.chunks:
            model = self.models[chunk.sequence.request.request_id]
            assert model.end is None
            assert chunk.sequence.tokens == model.tokens
            self.check(chunk.sequence.blocks, model, chunk.start)
        # What a step writes is unknown until it has ended.
        for chunk in self.plan.chunks:
            self.spoil(chunk.sequence.blocks, range(chunk.start, chunk.start + chunk.length))

    def check_preempted(self, running: list[Any]) -> None:
        """All that stood behind a preempted sequence were preempted too, and none that exports."""
        preempted = [s for s in running if s.state is SequenceState.WAITING]
        for victim in preempted:
            assert victim.request.role is not Role.PREFILL
            for other in running:
                if other.state is SequenceState.RUNNING and other.request.role is not Role.PREFILL:
                    assert other.rank > victim.rank

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data())
    def execute(self, data: Any) -> None:
        tokens = st.sampled_from([0, 0, 0, 1, STOP])
        count = sum(chunk.samples for chunk in self.plan.chunks)
        self.executed(data.draw(st.lists(tokens, min_size=count, max_size=count)))

    @precondition(lambda self: self.plan is not None)
    @rule()
    def abandon(self) -> None:
        plan, self.plan = self.plan, None
        assert self.scheduler.handle(StepAbandoned(plan), 0.0) == []

    @precondition(lambda self: self.plan is None)
    @rule(steps=st.integers(2, 8))
    def run_steps(self, steps: int) -> None:
        for _ in range(steps):
            self.next_step()
            if self.plan is None:
                return
            self.all_is_well()
            self.executed([0] * sum(chunk.samples for chunk in self.plan.chunks))
            self.all_is_well()

    def executed(self, sampled: list[int]) -> None:
        plan, self.plan = self.plan, None
        expected, names, tokens = [], [], iter(sampled)
        for chunk in plan.chunks:
            name = chunk.sequence.request.request_id
            model = self.models[name]
            self.write(chunk.sequence.blocks, model, range(chunk.start, chunk.start + chunk.length))
        for chunk in plan.chunks:
            name = chunk.sequence.request.request_id
            model = self.models[name]
            self.check(chunk.sequence.blocks, model, chunk.start + chunk.length)
            names.append(name)
            token = next(tokens) if chunk.samples else None
            if chunk.samples and model.end is None:
                expected.append(Emit(name, model.outputs, token))
        assert self.obey(self.scheduler.handle(StepExecuted(plan, sampled), 0.0)) == expected
        for name in names:
            if self.models[name].end is None:
                self.must_go_on(self.models[name])

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def transfer_writes(self, data: Any) -> None:
        model = self.pulls[data.draw(st.sampled_from(sorted(self.pulls)))]
        self.spoil(model.pull.blocks, range(model.pull.from_token, model.pull.tokens))

    @precondition(lambda self: self.pulls)
    @rule(data=st.data(), token=st.sampled_from([0, 0, 1, STOP]))
    def kv_arrives(self, data: Any, token: int) -> None:
        self.arrived(data.draw(st.sampled_from(sorted(self.pulls))), token)

    def arrived(self, name: str, token: int) -> None:
        model = self.pulls.pop(name)
        self.write(model.pull.blocks, model, range(model.pull.from_token, model.pull.tokens))
        if model.end is None:
            model.tokens.append(token)
        assert self.obey(self.scheduler.handle(KvArrived(RequestId(name), token), 0.0)) == []
        if model.end is None:
            self.must_go_on(model)

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def kv_is_lost(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.pulls)))
        model = self.pulls.pop(name)
        self.spoil(model.pull.blocks, range(model.pull.from_token, model.pull.tokens))
        assert self.scheduler.handle(KvLost(RequestId(name)), 0.0) == []

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def export_is_released(self, data: Any) -> None:
        self.released(data.draw(st.sampled_from(sorted(self.offers))))

    def released(self, name: str) -> None:
        del self.offers[name]
        assert self.scheduler.handle(ExportReleased(RequestId(name)), 0.0) == []

    @rule()
    def drain_kv_events(self) -> None:
        for event in self.scheduler.drain_kv_events():
            match event:
                case BlocksStored(hashes=hashes, parent=parent):
                    assert not self.mirror & set(hashes)
                    assert parent not in hashes
                    self.mirror |= set(hashes)
                case BlocksRemoved(hashes=hashes):
                    assert self.mirror >= set(hashes)
                    self.mirror -= set(hashes)
                case CacheCleared():
                    self.mirror.clear()
        assert self.mirror == self.scheduler._batch.pool.names

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.validate()
        for model in self.offers.values():
            self.check(model.offer.blocks, model, model.ready)

    def teardown(self) -> None:
        """Everything ends, once, and nothing is left behind."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if self.plan is None:
                self.next_step()
            if self.plan is not None:
                self.executed([0] * sum(chunk.samples for chunk in self.plan.chunks))
            elif self.offers:
                self.released(min(self.offers))
            elif self.pulls:
                self.arrived(min(self.pulls), 0)
            else:
                assert not self.scheduler.has_work, "work is left that nothing can move"
                break
            self.all_is_well()
        assert all(model.end for model in self.models.values())
        metrics = self.scheduler.metrics(0.0)
        assert metrics.kv_blocks_used == metrics.running + metrics.waiting + metrics.receiving == 0
        assert metrics.exported == 0
        self.drain_kv_events()


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, print_blob=True
)
TestScheduler = SchedulerMachine.TestCase
