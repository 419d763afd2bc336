"""The step scheduler: facts in, instructions out, and between two steps a plan for the next one.

One object serves every embedded engine and the simulator. It must not know tensors, sampling or sockets.

The caller's side: call ``handle`` with each event as it happens, also while a step is being executed; call
``next_step`` when no step is, and answer its plan, if it has chunks, with ``StepExecuted`` or
``StepAbandoned``. Blocks are handed out by ``next_step`` only, and blocks named in a plan stay as they are
until it is answered: so a step never writes to a block that someone else holds. An empty plan means that only
an event can change something.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import msgspec

from tokenmill.decide.batching import handoff
from tokenmill.decide.batching.admission import Intake, check_config
from tokenmill.decide.batching.batch import Batch
from tokenmill.decide.batching.decode_run import DecodeRun, start_run
from tokenmill.decide.batching.invariants import validate
from tokenmill.decide.batching.planning import StepDraft
from tokenmill.decide.batching.tracked import Tracked
from tokenmill.decide.batching.transitions import TRANSITIONS, IllegalTransition
from tokenmill.decide.batching.types import (
    AbortPull,
    AdvanceKv,
    BatchingConfig,
    Chunk,
    Emit,
    Event,
    ExportReleased,
    Instruction,
    KvArrived,
    KvLost,
    RequestArrived,
    RequestCancelled,
    SequenceState,
    StepAbandoned,
    StepExecuted,
    StepPlan,
    WithdrawKv,
)
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import FinishReason
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics

__all__ = ["TRANSITIONS", "IllegalTransition", "Scheduler", "Step"]


class Step(msgspec.Struct, frozen=True, eq=False):
    """What to compute next, and what to tell others before it runs."""

    plan: StepPlan
    instructions: list[Instruction]


class Load(NamedTuple):
    """The counts of ``metrics`` that cost nothing; names as there."""

    running: int
    waiting: int
    kv_blocks_used: int


class Scheduler:
    """Continuous batching with chunked prefill, a prefix cache, preemption by recompute, and KV handoff.

    Raises ConfigError for limits that cannot work. Not thread-safe.
    """

    def __init__(self, config: BatchingConfig) -> None:
        check_config(config)
        self._batch = Batch(config)
        self._intake = Intake(self._batch)
        self._step = 0
        self._plan: StepPlan | None = None
        self._planned: list[Tracked] = []
        self._executed: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    @property
    def has_work(self) -> bool:
        """Some sequence waits or runs, so that ``next_step`` may have a plan."""
        return bool(self._batch.waiting or self._batch.decoding or self._batch.prefilling)

    @property
    def decoding(self) -> int:
        """Sequences that decode now."""
        return len(self._batch.decoding)

    @property
    def handoffs_in(self) -> int:
        """Caches that came in so far."""
        return self._batch.totals.handoffs_in

    @property
    def kv_share(self) -> float:
        """Blocks that sequences and exports hold, of all blocks."""
        return self._batch.pool.used_blocks / self._batch.config.total_blocks

    @property
    def load(self) -> Load:
        """What there is to do now, in short."""
        batch = self._batch
        return Load(len(batch.decoding) + len(batch.prefilling), len(batch.waiting), batch.pool.used_blocks)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take a fact in and return what follows from it, in order. ``now``: seconds.

        Unknown request ids are ignored. Raises ValueError for a step's event that does not fit the plan
        under way, and IllegalTransition for a transfer's event that the sequence does not await.
        """
        match event:
            case StepExecuted():
                return self._step_executed(event)
            case StepAbandoned():
                self._step_abandoned(event.plan)
            case RequestArrived():
                return self._intake.take(event.request, now)
            case RequestCancelled():
                return self._cancel(event.request_id)
            case KvArrived():
                return handoff.receive(self._batch, self._find(event.request_id), event)
            case KvLost():
                handoff.compute_instead(self._batch, self._find(event.request_id))
            case ExportReleased():
                handoff.release_export(self._batch, self._find(event.request_id))
            case _:
                assert_never(event)
        return []

    def next_step(self, now: float) -> Step:  # noqa: ARG002 -- no decision here depends on time yet
        """Plan the next step. ``now``: seconds. Raises ValueError while a plan is being executed."""
        if self._plan is not None:
            raise ValueError(f"step {self._plan.step} is still being executed")
        draft = StepDraft(self._batch)
        if draft.chunks:
            self._step += 1
        plan = StepPlan(self._step, draft.chunks, draft.decode_tokens, draft.prefill_tokens)
        if draft.chunks:
            self._plan = plan
            self._planned = draft.sequences
        return Step(plan, draft.instructions)

    def decode_run(self) -> DecodeRun | None:
        """Begin a run of decode steps in place of ``next_step``, for a caller who does not care what is
        sampled; None where more than decoding is to be done. Until ``DecodeRun.close`` events may come, but
        no plan may be asked for. Raises ValueError while a plan is being executed."""
        if self._plan is not None:
            raise ValueError(f"step {self._plan.step} is still being executed")
        return start_run(self._batch)

    def advance(self, run: DecodeRun, steps: int) -> None:
        """``steps`` further steps (at most ``run.quiet``) of a run were executed."""
        sequences = len(run.sequences)
        self._step += steps
        self._batch.totals.decode_tokens += steps * sequences
        run.count(steps)
        if steps:
            self._executed = (self._step, 0, sequences, 0, run.context_tokens - sequences)

    def metrics(self, step_ms: float) -> StepMetrics:
        """Return the load now. ``step_ms``: how long the last step took, milliseconds.

        ``waiting_prefill_tokens`` counts what is still to be computed of prompts, in the queue or begun.
        """
        batch, totals = self._batch, self._batch.totals
        step, prefill_tokens, decode_tokens, prefill_context, decode_context = self._executed
        begun = sum([len(s.tokens) - s.computed for s in batch.prefilling])
        fetched = sum([len(s.tokens) - s.computed for s in batch.receiving.values()])
        # By place: to sort so many keywords takes longer than all the rest.
        return StepMetrics(
            step,
            step_ms,
            prefill_tokens,
            decode_tokens,
            len(batch.decoding) + len(batch.prefilling),  # running
            len(batch.waiting),
            len(batch.receiving),
            len(batch.exported),
            batch.waiting.compute_tokens + begun,  # waiting_prefill_tokens
            batch.pool.used_blocks,
            batch.pool.total_blocks,
            totals.prefix_hit_tokens,
            totals.prefix_query_tokens,
            totals.prefill_tokens,
            totals.decode_tokens,
            totals.preemptions,
            totals.handoffs_in,
            totals.handoffs_out,
            totals.handoffs_failed,
            prefill_context,
            decode_context,
            totals.transfer_tokens,
            totals.transfer_ms,
            batch.waiting.pull_tokens + fetched,  # receiving_tokens
        )

    def drain_kv_events(self) -> list[KvEvent]:
        """Return what entered and left the prefix cache since the last call."""
        return self._batch.pool.drain_events()

    def validate(self) -> None:
        """Check every invariant of every object; raises AssertionError. Costs time: for tests."""
        validate(self._batch, self._planned, self._plan)

    def _find(self, request_id: RequestId) -> Tracked | None:
        return self._batch.sequences.get(request_id)

    def _cancel(self, request_id: RequestId) -> list[Instruction]:
        sequence = self._find(request_id)
        if sequence is None or sequence.ended:
            return []
        instructions: list[Instruction] = []
        if sequence.state is SequenceState.RECEIVING:
            instructions.append(AbortPull(request_id))
        elif sequence.offered:
            instructions.append(WithdrawKv(request_id, "cancelled"))
        instructions.append(sequence.finish(FinishReason.CANCELLED))
        # A transfer or a step may be writing to its blocks: then it is retired when that has ended.
        if sequence.state is not SequenceState.RECEIVING and sequence not in self._planned:
            self._batch.retire(sequence)
        return instructions

    def _step_abandoned(self, plan: StepPlan) -> None:
        """What the step may have written lies beyond ``computed``, so that nobody finds or reads it."""
        if plan is not self._plan:
            raise ValueError(f"step {plan.step} is not the one under way")
        planned, self._plan, self._planned = self._planned, None, []
        for sequence in planned:
            if sequence.ended:
                self._batch.retire(sequence)

    def _step_executed(self, event: StepExecuted) -> list[Instruction]:
        plan, planned, sampled = event.plan, self._planned, event.sampled
        if plan is not self._plan:
            raise ValueError(f"step {plan.step} is not the one under way")
        decodes = plan.decode_tokens
        prefills = plan.chunks[decodes:]
        if len(sampled) != decodes + sum(chunk.samples for chunk in prefills):
            raise ValueError(f"step {plan.step}: {len(sampled)} tokens do not fit the chunks that sample")
        self._plan = None
        self._planned = []
        self._batch.totals.decode_tokens += decodes
        self._batch.totals.prefill_tokens += plan.prefill_tokens
        instructions: list[Instruction] = []
        context = self._advance_decodes(planned[:decodes], sampled, instructions)
        attended = sum(c.length * c.start + c.length * (c.length + 1) // 2 for c in prefills)
        self._executed = (plan.step, plan.prefill_tokens, decodes, attended, context)
        tokens = iter(sampled[decodes:])
        for sequence, chunk in zip(planned[decodes:], prefills, strict=True):
            token = next(tokens) if chunk.samples else None
            self._advance_prefill(sequence, chunk, token, instructions)
        return instructions

    def _advance_decodes(
        self, sequences: list[Tracked], sampled: list[int], instructions: list[Instruction]
    ) -> int:
        """The hot loop: about half a microsecond for each running sequence in each step. Returns the sum of
        the sequences' lengths."""
        batch = self._batch
        context = 0
        for sequence, token in zip(sequences, sampled, strict=False):
            if sequence.ended:
                batch.retire(sequence)
                continue
            request, tokens = sequence.request, sequence.tokens
            sequence.computed = computed = len(tokens)
            context += computed
            instructions.append(Emit(request.request_id, computed - sequence.prompt_len, token))
            tokens.append(token)
            if computed >= sequence.next_commit:
                batch.commit(sequence)
            if computed + 1 >= sequence.end_len or token in request.stop_ids:
                reason = sequence.end_reason(token)
                if reason is not None:
                    instructions.append(sequence.finish(reason))
                    batch.retire(sequence)
        return context

    def _advance_prefill(
        self, sequence: Tracked, chunk: Chunk, token: int | None, instructions: list[Instruction]
    ) -> None:
        batch = self._batch
        if sequence.ended:
            batch.retire(sequence)
            return
        request_id = sequence.request.request_id
        sequence.computed = chunk.start + chunk.length
        batch.commit(sequence)
        if sequence.offered:
            instructions.append(AdvanceKv(request_id, sequence.computed))
        if token is None:
            return
        instructions.append(Emit(request_id, sequence.output_len, token))
        sequence.tokens.append(token)
        reason = sequence.end_reason(token)
        if sequence.exports:
            instructions.extend(handoff.close_offer(batch, sequence, reason))
        elif reason is not None:
            instructions.append(sequence.finish(reason))
            batch.retire(sequence)
        else:
            batch.start_decode(sequence)
