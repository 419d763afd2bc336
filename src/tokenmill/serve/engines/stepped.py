"""The shell around an embedded engine: one thread that steps, one event loop that talks.

The engine thread feeds events to the step scheduler, carries its plan to the executor, and hands what the
step gave to the event loop: at most one wake-up a step, whatever the batch, and none while the loop has not
yet taken what earlier steps gave. Moving KV blocks is the event
loop's business; its outcomes come back to the thread as events. The thread alone touches scheduler and
executor; the loop alone touches transport and sink.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

import structlog

from tokenmill.clock import Clock
from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Event,
    Finish,
    Instruction,
    Reject,
    RequestArrived,
    RequestCancelled,
    SequenceRequest,
    StepAbandoned,
    StepExecuted,
    StepPlan,
)
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished, Item
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.answers import Answers
from tokenmill.serve.engines.base import (
    EngineInfo,
    EngineOutput,
    Executor,
    ExecutorFacts,
    Sink,
    StepFailed,
    StepResult,
)
from tokenmill.serve.engines.handover import Handover, KvInstruction
from tokenmill.serve.engines.outbox import JoinedItems
from tokenmill.serve.transfer.base import KvTransport

log = structlog.get_logger(__name__)

MAX_FAILED_STEPS = 3
"""So many failed steps in a row mean that the engine is broken, not a request."""

IDLE_WAIT_S = 1.0
"""The engine thread looks up from an empty inbox at least this often."""

_BROKEN = Failed(503, "engine_broken", "this worker's engine has failed", retryable=True)

MakeBatching = Callable[[ExecutorFacts], BatchingConfig]


class SteppedEngine:
    """An ``Engine`` made of an ``Executor``, the step scheduler and a KV transport.

    ``make_batching`` gives the batch's limits once the executor knows what fits. Without a transport
    the engine offers no cache and computes by itself what it is told to fetch.
    """

    def __init__(
        self,
        *,
        name: str,
        executor: Executor,
        make_batching: MakeBatching,
        transport: KvTransport | None,
        clock: Clock,
        lease_s: float = 30.0,
    ) -> None:
        self._name = name
        self._executor = executor
        self._make_batching = make_batching
        self._clock = clock
        self._transport = transport
        self._handover = Handover(transport, self._post, self._say, lease_s=lease_s)
        self._answers = Answers()
        self._inbox: deque[Event | GenerateRequest] = deque()
        # What the loop has not taken yet: no more than open requests may still generate.
        self._outbox: deque[tuple[EngineOutput, list[KvInstruction]]] = deque()
        self._loop_called = False
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._sink: Sink
        self._scheduler: Scheduler
        self._batching: BatchingConfig
        self._facts: ExecutorFacts
        self._metrics = StepMetrics()
        self._broken: asyncio.Future[str]
        self._failed_steps = 0
        self._runnable = False
        self._step_ms = 0.0
        self._eos: frozenset[int] = frozenset()

    # On the event loop's thread ------------------------------------------------------------------

    async def start(self, sink: Sink) -> EngineInfo:
        """See ``Engine.start``."""
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self._broken = self._loop.create_future()
        loaded: asyncio.Future[ExecutorFacts] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loaded,), name=f"{self._name}-steps", daemon=True
        )
        self._thread.start()
        try:
            self._facts = await loaded
            if self._transport is not None:
                await self._transport.start(self._executor.memory)
        except BaseException:
            await self.stop()
            raise
        return self._info()

    def submit(self, request: GenerateRequest) -> None:
        """See ``Engine.submit``."""
        problem = self._problem(request)
        if problem is not None:
            self._say([(request.request_id, problem)])
            return
        self._handover.expect(request.request_id, request.handoff)
        self._post(request)

    def cancel(self, request_id: RequestId) -> None:
        """See ``Engine.cancel``."""
        self._post(RequestCancelled(request_id))

    def metrics(self) -> StepMetrics:
        """See ``Engine.metrics``."""
        return self._metrics

    async def failure(self) -> str:
        """See ``Engine.failure``."""
        return await asyncio.shield(self._broken)

    async def stop(self) -> None:
        """See ``Engine.stop``."""
        self._stopping = True
        self._wake.set()
        await self._handover.stop()
        if self._transport is not None:
            await self._transport.stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join)
        if hasattr(self, "_broken") and not self._broken.done():
            self._broken.cancel()

    def _info(self) -> EngineInfo:
        facts, batching = self._facts, self._batching
        return EngineInfo(
            engine=self._name,
            model=facts.model,
            max_model_len=batching.max_model_len,
            block_tokens=batching.block_tokens,
            kv_blocks=batching.total_blocks,
            max_sequences=batching.max_sequences,
            vocab_size=facts.vocab_size,
            eos_token_ids=facts.eos_token_ids,
            transports=[self._transport.name] if self._transport is not None else [],
            early_handoff=True,
            fingerprint=facts.fingerprint,
            prefill_budget=min(batching.prefill_budget or batching.token_budget, batching.token_budget),
        )

    def _problem(self, request: GenerateRequest) -> Failed | None:
        """Say what is wrong with a request that the executor must never see."""
        if not request.prompt:
            return Failed(400, "invalid_prompt", "prompt: must have at least one token")
        vocab_size = self._facts.vocab_size
        # One pass each in C; a bad id would otherwise surface as an index error in the device's kernels.
        if max(request.prompt) >= vocab_size or min(request.prompt) < 0:
            return Failed(400, "invalid_prompt", f"prompt: token ids must be from 0 to {vocab_size - 1}")
        if self._broken.done():
            return _BROKEN
        if self._stopping:
            return _gone()
        return None

    def _post(self, event: Event | GenerateRequest) -> None:
        self._inbox.append(event)
        self._wake.set()

    def _say(self, items: list[tuple[RequestId, Item]]) -> None:
        self._sink(EngineOutput(items, self._metrics, []))

    def _take_outbox(self) -> None:
        """Take what steps gave since the last time."""
        self._loop_called = False  # first: what is put in from now on may not be seen below
        outbox = self._outbox
        if not outbox:
            return
        output = self._moved(*outbox.popleft())
        if outbox:
            joined, kv_events = JoinedItems(), list(output.kv_events)
            joined.add(output.items)
            while outbox:
                output = self._moved(*outbox.popleft())
                joined.add(output.items)
                kv_events += output.kv_events
            output = EngineOutput(joined.items, output.metrics, kv_events)
        self._metrics = output.metrics
        self._sink(output)

    def _moved(self, output: EngineOutput, moves: list[KvInstruction]) -> EngineOutput:
        """Carry out what concerns KV blocks; return what is to be passed on."""
        for request_id, item in output.items:
            if isinstance(item, Finished | Failed):
                self._handover.forget(request_id)
        if self._stopping:
            moves = []  # the transport is closing, and ends what it has by itself
        offers = [offer for move in moves if (offer := self._handover.carry_out(move)) is not None]
        return EngineOutput(offers + output.items, output.metrics, output.kv_events) if offers else output

    def _break(self, why: str) -> None:
        if not self._broken.done():
            self._broken.set_result(why)

    def _thread_ended(self, open_ids: list[RequestId]) -> None:
        """End what the thread had open and what it never saw. Here, since here alone requests come in."""
        self._stopping = True
        self._take_outbox()
        waiting = [event.request_id for event in self._inbox if isinstance(event, GenerateRequest)]
        self._inbox.clear()
        if open_ids or waiting:
            end = _BROKEN if self._broken.done() else _gone()
            items: list[tuple[RequestId, Item]] = [(each, end) for each in (*open_ids, *waiting)]
            self._outbox.append((EngineOutput(items, StepMetrics(), []), []))
            self._take_outbox()

    # On the engine's thread ----------------------------------------------------------------------

    def _run(self, loaded: asyncio.Future[ExecutorFacts]) -> None:
        try:
            facts = self._executor.load()
            self._eos = frozenset(facts.eos_token_ids)
            self._batching = self._make_batching(facts)
            self._scheduler = Scheduler(self._batching)
        except BaseException as error:  # noqa: BLE001 - carried to whoever awaits ``start``
            self._executor.close()
            self._call(_fail_unless_done, loaded, error)
            return
        self._call(_set_unless_done, loaded, facts)
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            log.exception("engine thread ended", engine=self._name)
            self._call(self._break, f"{type(error).__name__}: {error}")
        self._call(self._thread_ended, self._answers.open_requests())
        self._executor.close()

    def _turn(self) -> None:
        """Take events, run one step if there is one, report."""
        if not self._inbox and not self._runnable:
            self._wake.wait(IDLE_WAIT_S)
        self._wake.clear()
        heard, instructions = self._take_events()
        step = self._scheduler.next_step(self._clock.now())
        instructions += step.instructions
        self._runnable = bool(step.plan.chunks)
        if not self._runnable:
            if heard or instructions:
                self._report(instructions, None, 0.0)
            return
        if instructions:
            # Before the step: an offer must reach the receiver while the prompt is still being computed.
            self._report(instructions, None, 0.0)
        self._step(step.plan)

    def _step(self, plan: StepPlan) -> None:
        started = self._clock.now()
        try:
            result = self._executor.execute(plan)
        except Exception as error:  # noqa: BLE001 - one step's boundary: its requests fail, the engine goes on
            self._step_failed(plan, error)
            return
        self._failed_steps = 0
        now = self._clock.now()
        instructions = self._scheduler.handle(StepExecuted(plan, result.sampled), now)
        self._report(instructions, result, (now - started) * 1000)

    def _step_failed(self, plan: StepPlan, error: Exception) -> None:
        """End the requests that the error names, or all of the step's; give up when steps keep failing."""
        named = error.request_ids if isinstance(error, StepFailed) else []
        log.warning("step failed", engine=self._name, error=str(error), requests=named or len(plan.chunks))
        self._failed_steps = 0 if named else self._failed_steps + 1
        instructions: list[Instruction] = []
        for request_id in named or [chunk.sequence.request.request_id for chunk in plan.chunks]:
            self._answers.fail_at_end(
                request_id,
                Failed(500, "engine_error", f"{type(error).__name__}: {error}", retryable=not named),
            )
            instructions += self._scheduler.handle(RequestCancelled(request_id), self._clock.now())
        instructions += self._scheduler.handle(StepAbandoned(plan), self._clock.now())
        self._report(instructions, None, 0.0)
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise TokenmillError(
                f"{self._failed_steps} steps failed in a row, the last with: {error}"
            ) from error

    def _take_events(self) -> tuple[bool, list[Instruction]]:
        """Return whether there were any, which may come at any moment, and what follows from them."""
        heard = False
        instructions: list[Instruction] = []
        inbox, scheduler = self._inbox, self._scheduler
        while inbox:
            heard = True
            event = inbox.popleft()
            if isinstance(event, GenerateRequest):
                instructions += self._arrive(event)
            else:
                instructions += scheduler.handle(event, self._clock.now())
        return heard, instructions

    def _arrive(self, request: GenerateRequest) -> list[Instruction]:
        sampling = request.sampling
        stop_ids = frozenset() if sampling.ignore_eos else self._eos
        if sampling.stop_token_ids:
            stop_ids = stop_ids.union(sampling.stop_token_ids)
        arrived = RequestArrived(
            SequenceRequest(
                request_id=request.request_id,
                prompt=request.prompt,
                output=request.output,
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                stop_ids=stop_ids,
                role=request.role,
                receives=request.handoff is not None,
                priority=request.priority,
                cache_salt=request.cache_salt,
                score_prompt=sampling.prompt_logprobs is not None,
            )
        )
        instructions = self._scheduler.handle(arrived, self._clock.now())
        if any(isinstance(i, Reject) for i in instructions):
            return instructions
        self._executor.admit(request.request_id, sampling, len(request.prompt))
        self._answers.begin(request)
        return instructions

    def _report(self, instructions: list[Instruction], result: StepResult | None, step_ms: float) -> None:
        """Turn instructions into items and hand everything to the loop in one call."""
        if result is not None:
            self._step_ms = step_ms
        items: list[tuple[RequestId, Item]] = []
        moves: list[KvInstruction] = []
        self._answers.compose(instructions, result, items, moves)
        for instruction in instructions:
            if isinstance(instruction, Finish):
                self._executor.retire(instruction.request_id)
        scheduler = self._scheduler
        output = EngineOutput(items, scheduler.metrics(self._step_ms), scheduler.drain_kv_events())
        self._outbox.append((output, moves))
        if not self._loop_called:
            self._loop_called = True
            self._call(self._take_outbox)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop is closed: the process is ending and there is nobody left to tell.
            self._stopping = True


def _gone() -> Failed:
    return Failed(503, "worker_stopping", "the worker was stopped", retryable=True)


def _set_unless_done(future: asyncio.Future[ExecutorFacts], facts: ExecutorFacts) -> None:
    if not future.done():
        future.set_result(facts)


def _fail_unless_done(future: asyncio.Future[ExecutorFacts], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
