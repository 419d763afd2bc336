"""The queue in front of the workers: ``Plant`` for sequences, with admission before the set of workers.

Exists as the shell around ``decide.router.admission``: it carries arrivals, load changes and time in, and
decisions and refusals out. It must not know HTTP, text or how a worker is chosen.

While someone has room and nobody waits, a sequence passes through ``decide`` and admission hears nothing of
it but what workers tell. All else is handled on the next turn of the loop, one fact after the other, so that
no callback ever runs inside the call that caused it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from tokenmill.clock import Clock
from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.admission_room import Gate
from tokenmill.decide.router.admission_words import (
    AdmissionEvent,
    AdmissionInstruction,
    AdmissionStats,
    Arrived,
    Cancelled,
    Ended,
    PassedOver,
    Place,
    Placed,
    Refuse,
    RefusedFor,
    RoomChanged,
    TimePassed,
    WorkersChanged,
)
from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.errors import DeadlineExceeded, Overloaded, QueueTimeout, TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.serve.frontend.linked_stream import OnEnd, OnItem
from tokenmill.serve.frontend.metrics import SECONDS_BOUNDS, Histogram
from tokenmill.serve.frontend.plant import OpenedStream, Outcome
from tokenmill.serve.frontend.workers import WorkerSet


class QueuedRequest:
    """``Waiter``: one that waits in the queue."""

    __slots__ = ("_plant", "arrived", "excluded", "on_decision", "request", "since")

    def __init__(
        self,
        plant: AdmittingPlant,
        request: RouteRequest,
        excluded: AbstractSet[WorkerId],
        on_decision: Callable[[Outcome], None],
        since: float,
    ) -> None:
        self._plant = plant
        self.request = request
        self.excluded = excluded
        self.on_decision = on_decision
        self.since = since
        self.arrived = _arrived(request)

    def cancel(self) -> None:
        """Wait no longer; no callback is called."""
        self._plant.stop_waiting(self)


class AdmittingPlant:
    """``Plant``: workers behind a queue. ``close`` it. All methods belong to the loop's thread.

    ``admission.room`` hears of workers' loads through the router that ``workers`` feeds.
    """

    def __init__(self, workers: WorkerSet, admission: Admission, clock: Clock) -> None:
        self.admission = admission
        self.refused: Counter[RefusedFor] = Counter()
        self.queued_total = 0
        """Sequences that had to wait, since the start."""
        self.waited = Histogram(SECONDS_BOUNDS)
        """How long those waited that were given a worker."""
        self._workers = workers
        self._clock = clock
        # Those who wait, and facts not handled yet; both bounded by client connections times their choices.
        self._queued: dict[RequestId, QueuedRequest] = {}
        self._inbox: deque[AdmissionEvent] = deque()
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._workers_version = admission.room.version
        self._closed = False
        workers.on_change.append(self._changed)
        self.watch = workers.watch

    def close(self) -> None:
        """End all waiting; nobody is admitted any more."""
        self._closed = True
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        queued, self._queued = self._queued, {}
        for waiting in queued.values():
            waiting.on_decision(None)

    # Plant ---------------------------------------------------------------------------------------------

    def decide(self, request: RouteRequest, excluded: AbstractSet[WorkerId]) -> Decision | None:
        """``Plant``: who serves ``request`` at once; None: it has to wait."""
        if self._inbox or not self.admission.open:
            return None
        return self._route(request, excluded)

    def wait(
        self, request: RouteRequest, excluded: AbstractSet[WorkerId], on_decision: Callable[[Outcome], None]
    ) -> QueuedRequest:
        """``Plant``: queue ``request``; tell ``on_decision`` who serves it, why nobody does, or None where
        nobody is there."""
        waiting = QueuedRequest(self, request, excluded, on_decision, self._clock.now())
        self._queued[request.request_id] = waiting
        self.queued_total += 1
        self._tell(waiting.arrived)
        return waiting

    def stop_waiting(self, waiting: QueuedRequest) -> None:
        """Strike one that waits."""
        request_id = waiting.request.request_id
        if self._queued.get(request_id) is waiting:
            del self._queued[request_id]
            self._tell(Cancelled(request_id))

    def open(
        self,
        worker: WorkerId,
        request: GenerateRequest,
        on_item: OnItem,
        on_end: OnEnd,
        *,
        cached_tokens: int = 0,
    ) -> OpenedStream:
        """``Plant``: open a stream to a worker."""
        return self._workers.open(worker, request, on_item, on_end, cached_tokens=cached_tokens)

    def began(self, request_id: RequestId) -> None:
        """``Plant``: a sequence's first token came: its prefill is no more in anybody's way."""
        self.admission.room.prefilled(request_id, self._clock.now())
        self._changed()

    def over(self, request_id: RequestId, output_tokens: int) -> None:
        """``Plant``: a sequence has come to its end, with so many tokens."""
        self.admission.room.released(request_id)
        if self.admission.is_charged(request_id):
            self._tell(Ended(request_id, output_tokens))

    # Routing -------------------------------------------------------------------------------------------

    def _route(self, request: RouteRequest, excluded: AbstractSet[WorkerId]) -> Decision | None:
        """Choose, leaving out busy workers where their stage has others; None: only busy ones would do."""
        room = self.admission.room
        passed_over = room.busy_workers
        decision = self._workers.decide(request, excluded | passed_over if passed_over else excluded)
        if decision is not None and self._is_busy(decision):
            if room.gate is not Gate.OPEN:
                return None
            # Some worker for both stages has room, and this choice is for a pair that has not.
            one_stage = room.one_stage_workers()
            decision = self._workers.decide(request, excluded | passed_over | one_stage)
        if decision is None or self._is_busy(decision):
            return None
        prefill = decision.prefill_worker
        if prefill is not None:
            tokens = max(1, decision.prefill_tokens)
            room.promised(decision.decode_worker, prefill, request.request_id, tokens)
        return decision

    def _is_busy(self, decision: Decision) -> bool:
        room = self.admission.room
        return room.is_busy(decision.decode_worker) or room.is_busy(decision.prefill_worker)

    # Facts ---------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Workers are not what they were; called often."""
        if self._queued:
            self._look_soon()

    def _tell(self, event: AdmissionEvent) -> None:
        self._inbox.append(event)
        self._look_soon()

    def _look_soon(self) -> None:
        if self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Handle what has come together."""
        self._soon = None
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, Arrived) and not self._is_queued(event):
                continue  # cancelled before it was in the queue
            self._handle(event)
        version, self._workers_version = self._workers_version, self.admission.room.version
        self._handle(RoomChanged() if version == self._workers_version else WorkersChanged())
        self._set_timer()

    def _is_queued(self, event: Arrived) -> bool:
        waiting = self._queued.get(event.request_id)
        return waiting is not None and waiting.arrived is event

    def _on_timer(self) -> None:
        self._timer = None
        self._handle(TimePassed())
        self._look_soon()

    def _set_timer(self) -> None:
        due_at = self.admission.next_due_at()
        # One that is too early does no harm: most leave the queue long before they are due.
        if self._timer is not None and (due_at is None or due_at < self._timer_at):
            self._timer.cancel()
            self._timer = None
        if due_at is not None and self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due_at - self._clock.now()), self._on_timer)
            self._timer_at = due_at

    # Instructions --------------------------------------------------------------------------------------

    def _handle(self, event: AdmissionEvent) -> None:
        instructions = self.admission.handle(event, self._clock.now())
        while instructions:
            answer: AdmissionEvent | None = None
            for instruction in instructions:
                answer = self._carry_out(instruction)
            instructions = [] if answer is None else self.admission.handle(answer, self._clock.now())

    def _carry_out(self, instruction: AdmissionInstruction) -> AdmissionEvent | None:
        if isinstance(instruction, Place):
            return self._place(instruction.request_id)
        self._refuse(instruction)
        return None

    def _place(self, request_id: RequestId) -> AdmissionEvent:
        waiting = self._queued.get(request_id)
        if waiting is None:
            return Cancelled(request_id)  # as the inbox will say, too
        decision = self._route(waiting.request, waiting.excluded)
        if decision is None:
            return PassedOver(request_id, nobody=not self.admission.room.has_other_than(waiting.excluded))
        del self._queued[request_id]
        self.waited.observe(self._clock.now() - waiting.since)
        # Its streams are opened in here, so that the next one meets the load that this one makes.
        waiting.on_decision(decision)
        return Placed(request_id, decision.prefill_tokens, decision.cached_tokens)

    def _refuse(self, refusal: Refuse) -> None:
        waiting = self._queued.pop(refusal.request_id, None)
        if waiting is None:
            return
        self.refused[refusal.reason] += 1
        waiting.on_decision(_error_of(refusal, self._clock.now() - waiting.since))

    # For people ----------------------------------------------------------------------------------------

    def stats(self) -> AdmissionStats:
        """What waits now."""
        return self.admission.stats(self._clock.now())


def _arrived(request: RouteRequest) -> Arrived:
    return Arrived(
        request_id=request.request_id,
        tokens=request.tokens,
        tenant=request.tenant,
        priority=request.priority,
        deadline_at=request.deadline_at,
        group=request.group,
        sibling=request.choice > 0,
        replay=request.replay,
    )


def _error_of(refusal: Refuse, waited_s: float) -> TokenmillError | None:
    """Return what the client is told; None: that there is no worker."""
    after_s = refusal.retry_after_s
    again = f"try again in {after_s:.0f} s"
    if refusal.reason is RefusedFor.NO_WORKER:
        return None
    if refusal.reason is RefusedFor.QUEUE_FULL:
        return Overloaded(f"all workers are busy and the queue is full; {again}", retry_after_s=after_s)
    if refusal.reason is RefusedFor.EVICTED:
        message = f"all workers are busy, and others have more right to the places in the full queue; {again}"
        return Overloaded(message, retry_after_s=after_s)
    error: TokenmillError
    if refusal.reason is RefusedFor.DEADLINE:
        error = DeadlineExceeded(f"the request's deadline passed after {waited_s:.1f} s in the queue")
    elif refusal.reason is RefusedFor.TOO_LATE:
        error = QueueTimeout(f"all workers are busy until after the request's deadline; {again}")
    else:
        error = QueueTimeout(f"all workers were busy for {waited_s:.1f} s; {again}")
    error.retry_after_s = after_s
    return error
