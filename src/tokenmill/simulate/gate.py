"""Admission on a virtual clock: the queue in front of the workers.

Exists as the virtual-time counterpart of ``serve.frontend.admission``: the same object decides who waits. It
must not know workers' insides or messages.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.admission_room import Gate
from tokenmill.decide.router.admission_words import (
    AdmissionEvent,
    AdmissionInstruction,
    Arrived,
    Ended,
    PassedOver,
    Place,
    Placed,
    RefusedFor,
    RoomChanged,
    TimePassed,
    WorkersChanged,
)
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.simulate.kernel import FRONT, Kernel

NOBODY = RefusedFor.NO_WORKER.value
"""Why a request is refused for which there is no worker."""

_Waiting = tuple[RouteRequest, AbstractSet[WorkerId]]


class Gatekeeper:
    """Asks ``admission`` before the router."""

    def __init__(self, admission: Admission, kernel: Kernel) -> None:
        self.admission = admission
        self._kernel = kernel
        self._router: Router
        self._place: Callable[[RequestId, Decision], None]
        self._refuse: Callable[[RequestId, str], None]
        self._waiting: dict[RequestId, _Waiting] = {}
        self._workers_version = admission.room.version
        self._timer_at: float | None = None
        self._timer = 0

    def connect(
        self,
        router: Router,
        place: Callable[[RequestId, Decision], None],
        refuse: Callable[[RequestId, str], None],
    ) -> None:
        """Say who chooses, and who is told."""
        self._router, self._place, self._refuse = router, place, refuse

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    # Facts ---------------------------------------------------------------------------------------------

    def ask(self, route: RouteRequest, excluded: AbstractSet[WorkerId], now: float) -> None:
        """A request wants a worker: it is placed at once, or waits."""
        decision = self._choose(route, excluded, now) if self.admission.open else None
        if decision is not None:
            self._place(route.request_id, decision)
            return
        self._waiting[route.request_id] = route, excluded
        self._handle(
            Arrived(
                request_id=route.request_id,
                tokens=route.tokens,
                tenant=route.tenant,
                priority=route.priority,
                replay=route.replay,
            ),
            now,
        )
        self.look(now)

    def prefilled(self, request_id: RequestId, now: float) -> None:
        """A request's first token has come."""
        self.admission.room.prefilled(request_id, now)

    def over(self, request_id: RequestId, output_tokens: int, now: float) -> None:
        """A request is over."""
        self.admission.room.released(request_id)
        if self.admission.is_charged(request_id):
            self._handle(Ended(request_id, output_tokens), now)

    def look(self, now: float) -> None:
        """Things may not be what they were: place who can be placed."""
        if not self._waiting:
            return
        version, self._workers_version = self._workers_version, self.admission.room.version
        self._handle(RoomChanged() if version == self._workers_version else WorkersChanged(), now)
        self._set_timer()

    def _set_timer(self) -> None:
        due_at = self.admission.next_due_at()
        if due_at is None or (self._timer_at is not None and self._timer_at <= due_at):
            return
        self._timer_at = due_at
        self._timer += 1
        self._kernel.at(max(due_at, self._kernel.now), FRONT, -1, self._on_timer, self._timer)

    def _on_timer(self, timer: int) -> None:
        if timer != self._timer:
            return
        self._timer_at = None
        now = self._kernel.now
        self._handle(TimePassed(), now)
        self.look(now)

    # Choices -------------------------------------------------------------------------------------------

    def _choose(self, route: RouteRequest, excluded: AbstractSet[WorkerId], now: float) -> Decision | None:
        """Choose, leaving out busy workers where their stage has others; None: only busy ones would do."""
        room, router = self.admission.room, self._router
        passed_over = room.busy_workers
        decision = router.route(route, now, excluded | passed_over if passed_over else excluded)
        if decision is not None and self._is_busy(decision):
            if room.gate is not Gate.OPEN:
                return None
            decision = router.route(route, now, excluded | passed_over | room.one_stage_workers())
        if decision is None or self._is_busy(decision):
            return None
        if decision.prefill_worker is not None:
            tokens = max(1, decision.prefill_tokens)
            room.promised(decision.decode_worker, decision.prefill_worker, route.request_id, tokens)
        return decision

    def _is_busy(self, decision: Decision) -> bool:
        room = self.admission.room
        return room.is_busy(decision.decode_worker) or room.is_busy(decision.prefill_worker)

    def _handle(self, event: AdmissionEvent, now: float) -> None:
        instructions = self.admission.handle(event, now)
        while instructions:
            answer: AdmissionEvent | None = None
            for instruction in instructions:
                answer = self._carry_out(instruction, now)
            instructions = [] if answer is None else self.admission.handle(answer, now)

    def _carry_out(self, instruction: AdmissionInstruction, now: float) -> AdmissionEvent | None:
        request_id = instruction.request_id
        if not isinstance(instruction, Place):
            self._waiting.pop(request_id)
            self._refuse(request_id, instruction.reason.value)
            return None
        route, excluded = self._waiting[request_id]
        decision = self._choose(route, excluded, now)
        if decision is None:
            return PassedOver(request_id, nobody=not self.admission.room.has_other_than(excluded))
        del self._waiting[request_id]
        self._place(request_id, decision)
        return Placed(request_id, decision.prefill_tokens, decision.cached_tokens)
