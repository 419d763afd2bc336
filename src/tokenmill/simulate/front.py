"""The simulated frontend: carries requests to the router and to admission, and their answers to workers.

Exists as the virtual-time counterpart of ``serve.frontend``: the same objects decide, and are told only what
they would know. What workers say reaches it ``message_delay_s`` later; while nobody waits in the queue that
is carried in when somebody asks next, with the time at which it came. It must not know steps or links.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from tokenmill.decide.batching.types import (
    Finish,
    Instruction,
    Reject,
    RejectCode,
    RequestArrived,
    SequenceRequest,
)
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import FinishReason
from tokenmill.protocol.kv_events import KvEvent, KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.simulate.flight import Flight
from tokenmill.simulate.gate import NOBODY, Gatekeeper
from tokenmill.simulate.handoffs import Handoff, Handoffs
from tokenmill.simulate.kernel import ARRIVAL, FRONT, Kernel
from tokenmill.simulate.record import SERVED
from tokenmill.simulate.worker import SimWorker

_MOST_UNREAD = 4096
"""Messages that may wait for the next question; then they are carried in."""


class Front:
    """``flights``: all requests that workers have, by the id of their current attempt. ``left``: requests
    that have come and are not over. ``gate``: admission; None: there is none."""

    def __init__(
        self,
        kernel: Kernel,
        router: Router,
        gate: Gatekeeper | None,
        flights: dict[RequestId, Flight],
        *,
        delay_s: float,
        most_attempts: int,
    ) -> None:
        self.router = router
        self.gate = gate
        self.flights = flights
        self.workers: dict[WorkerId, SimWorker] = {}
        self.left = 0
        self.done = 0
        self.migrations = 0
        self.handoffs: Handoffs
        self.on_idle: Callable[[SimWorker], None]
        self._kernel = kernel
        self._delay_s = delay_s
        self._most_attempts = most_attempts
        self._inbox: deque[tuple[float, Callable[[float], None]]] = deque()
        self._loads: list[tuple[float, int, WorkerId, StepMetrics]] = []
        self._reads_at = math.inf  # when it is on the heap to read
        # Admission measures how fast prompts are computed from one report to the next.
        self.last_only = gate is None
        if gate is not None:
            gate.connect(router, self._sent_off, self._refused)

    # Requests ------------------------------------------------------------------------------------------

    def arrive(self, flight: Flight) -> None:
        """A request comes."""
        self.left += 1
        self.flights[flight.request_id] = flight
        self._place(flight)

    def lost(self, worker: SimWorker) -> None:
        """A worker is found to be gone: what it had goes on elsewhere."""
        name = worker.card.worker_id
        self.read()
        self.router.worker_gone(name)
        mine = [f for f in self.flights.values() if name in (f.prefill_worker, f.decode_worker)]
        for flight in mine:
            goes_on = self.handoffs.give_up(flight.request_id, worker)
            if goes_on is None and flight.prefill_worker == name and flight.tokens:
                continue  # the decode worker has the cache already
            if goes_on:
                continue
            self.migrations += 1
            self._start_over(flight, name)
        if self.gate is not None:
            self.gate.look(self._kernel.now)

    def _start_over(self, flight: Flight, worker: WorkerId) -> None:
        del self.flights[flight.request_id]
        if flight.record.attempts >= self._most_attempts:
            self._end(flight, "attempts")
            return
        flight.start_over(worker)
        self.flights[flight.request_id] = flight
        self._place(flight, replay=True)

    def _place(self, flight: Flight, replay: bool = False) -> None:
        self.read()
        now = self._kernel.now
        route = RouteRequest(
            request_id=flight.request_id,
            packed=b"",
            named=flight.prompt,
            output_tokens=flight.missing_tokens,
            session=flight.session,
            tenant=flight.tenant,
            priority=flight.priority,
            replay=replay,
        )
        if self.gate is not None:
            self.gate.ask(route, flight.lost, now)
            self._read_in_time()
            return
        decision = self.router.route(route, now, flight.lost)
        if decision is None:
            self._refused(flight.request_id, NOBODY)
        else:
            self._sent_off(flight.request_id, decision)

    def _refused(self, request_id: RequestId, reason: str) -> None:
        self._end(self.flights.pop(request_id), reason)

    def _end(self, flight: Flight, reason: str) -> None:
        record = flight.record
        record.output_tokens = flight.done_tokens + flight.tokens
        record.last_s = flight.last_s
        if reason:
            record.reason = reason
        else:
            record.outcome = SERVED
        self.left -= 1
        self.done += 1

    def _sent_off(self, request_id: RequestId, decision: Decision) -> None:
        """A request goes to the workers that were chosen."""
        now, flight = self._kernel.now, self.flights[request_id]
        record, tokens = flight.record, flight.prompt.tokens
        record.attempts += 1
        first, decoder = decision.prefill_worker, decision.decode_worker
        if first is not None and flight.missing_tokens == 1:
            decoder = first  # the only token comes with the prompt: no decode worker will hear of it
        flight.prefill_worker, flight.decode_worker = first, decoder
        record.decode_worker, record.prefill_worker = decoder, first or decoder
        self.router.sent(first or decoder, request_id, decision.prefill_tokens, now, tokens)
        if first is None:
            self._submit(self.workers[decoder], flight, Role.BOTH)
            return
        giver, taker = self.workers[first], self.workers[decoder]
        if flight.missing_tokens > 1:
            taken = _request(flight, taker, Role.DECODE)
            self.handoffs.expect(Handoff(flight, giver, taker, taken))
        self._submit(giver, flight, Role.PREFILL)

    def _submit(self, worker: SimWorker, flight: Flight, role: Role) -> None:
        worker.handle(RequestArrived(_request(flight, worker, role)))

    def has_promised(self, worker: SimWorker) -> bool:
        """Whether some request is to go on at a worker."""
        name = worker.card.worker_id
        return any(name in (f.prefill_worker, f.decode_worker) for f in self.flights.values())

    def offer(self, handoff: Handoff) -> None:
        """A decode worker is asked to take a cache."""
        self.read()
        taker, request = handoff.taker, handoff.request
        if taker.gone:
            return  # as will be noticed
        self.router.sent(taker.card.worker_id, request.request_id, 0, self._kernel.now, len(request.prompt))
        taker.handle(RequestArrived(request))

    # What workers say ----------------------------------------------------------------------------------

    def began(self, flight: Flight) -> None:
        """See ``worker.Listener``."""
        gate = self.gate
        if gate is not None:
            request_id = flight.request_id
            self._hear(lambda at: gate.prefilled(request_id, at))

    def ended(self, worker: SimWorker, finish: Finish) -> None:
        """See ``worker.Listener``."""
        request_id, name = finish.request_id, worker.card.worker_id
        self._hear(lambda _: self.router.ended(name, request_id))
        flight = self.flights.get(request_id)
        if flight is None or finish.reason is FinishReason.CANCELLED:
            return
        prefilled_here = flight.record.prefill_worker == name
        if prefilled_here and flight.record.attempts == 1:
            flight.record.cached_tokens = finish.cached_tokens
        if finish.reason is not FinishReason.HANDOFF:
            del self.flights[request_id]
            self._end(flight, "")
            if self.gate is not None:
                gate, tokens = self.gate, flight.tokens
                self._hear(lambda at: gate.over(request_id, tokens, at))

    def rejected(self, worker: SimWorker, reject: Reject) -> None:
        """See ``worker.Listener``."""
        request_id, name = reject.request_id, worker.card.worker_id
        self._hear(lambda _: self.router.ended(name, request_id))
        flight = self.flights[request_id]
        if flight.prefill_worker is not None:
            self.handoffs.give_up(request_id, worker)
        if reject.code is RejectCode.QUEUE_FULL:
            at = self._kernel.now + 2 * self._delay_s
            flight.prefill_worker = flight.decode_worker = None  # nobody has it until then
            self._kernel.at(at, FRONT, flight.record.number, lambda _: self._start_over(flight, name))
        else:
            self._refused(request_id, reject.code)

    def moved(self, worker: SimWorker, instruction: Instruction) -> None:
        """See ``worker.Listener``."""
        self.handoffs.moved(worker, instruction)

    def cached(self, worker: SimWorker, events: list[KvEvent]) -> None:
        """See ``worker.Listener``."""
        name, batch = worker.card.worker_id, KvEvents(worker.told_events, events)
        worker.told_events += len(events)
        if self.router.wants_kv:
            self._hear(lambda at: self._changed(name, batch, at))

    def _changed(self, name: WorkerId, batch: KvEvents, at: float) -> None:
        if not self.router.kv_changed(name, batch, at):
            raise RuntimeError(f"{name}: the router missed events of a plant that loses none")

    def loaded(self, worker: SimWorker, metrics: StepMetrics, at: float) -> None:
        """See ``worker.Listener``."""
        self._loads.append((at + self._delay_s, worker.number, worker.card.worker_id, metrics))
        if len(self._loads) > _MOST_UNREAD:
            self._read_by(self._kernel.now + self._delay_s)

    def reporting(self, worker: SimWorker) -> None:
        """See ``worker.Listener``."""
        if self._in_haste:
            self._read_by(worker.report_at + self._delay_s)

    def idle(self, worker: SimWorker) -> None:
        """See ``worker.Listener``."""
        if worker.draining and not worker.gone:
            self.on_idle(worker)

    # Messages ------------------------------------------------------------------------------------------

    def _hear(self, message: Callable[[float], None]) -> None:
        at = self._kernel.now + self._delay_s
        self._inbox.append((at, message))
        if self._in_haste or len(self._inbox) > _MOST_UNREAD:
            self._read_by(at)

    @property
    def _in_haste(self) -> bool:
        return self.gate is not None and self.gate.waiting > 0

    def read(self) -> None:
        """Carry in what has come by now; at a trace's arrival, what came before it."""
        now = self._kernel.now
        if self._kernel.kind == ARRIVAL:
            now = math.nextafter(now, -math.inf)
        delay_s, later = self._delay_s, math.nextafter(now, math.inf)
        for worker in [worker for worker in self.workers.values() if worker.report_at < now]:
            worker.report_before(later, delay_s)
        inbox, loads, router = self._inbox, self._loads, self.router
        loads.sort(key=_when)
        read = 0
        for at, _, name, metrics in loads:
            if at > now:
                break
            read += 1
            while inbox and inbox[0][0] <= at:
                said_at, message = inbox.popleft()
                message(said_at)
            router.load_reported(name, metrics, at)
        del loads[:read]
        while inbox and inbox[0][0] <= now:
            said_at, message = inbox.popleft()
            message(said_at)

    def _read_by(self, instant: float) -> None:
        """Read at ``instant`` at the latest, if that is not too late already."""
        instant = max(instant, self._kernel.now)
        if instant < self._reads_at:
            self._reads_at = instant
            self._kernel.at(instant, FRONT, -1, self._on_read)

    def _on_read(self, _: int) -> None:
        if self._kernel.now < self._reads_at:
            return
        self._reads_at = math.inf
        self.read()
        if self.gate is not None:
            self.gate.look(self._kernel.now)
        self._read_in_time()

    def _read_in_time(self) -> None:
        """While somebody waits, what workers say is read when it comes."""
        if self._in_haste:
            due = [worker.report_at + self._delay_s for worker in self.workers.values()]
            due += [load[0] for load in self._loads]
            due += [self._inbox[0][0]] if self._inbox else []
            if (first := min(due, default=math.inf)) < math.inf:
                self._read_by(first)


def _when(load: tuple[float, int, WorkerId, StepMetrics]) -> tuple[float, int]:
    return load[0], load[1]


def _request(flight: Flight, worker: SimWorker, role: Role) -> SequenceRequest:
    tokens, output = flight.prompt.tokens, flight.missing_tokens
    return SequenceRequest(
        request_id=flight.request_id,
        prompt=bytearray(tokens),
        max_tokens=output,
        role=role,
        receives=role is Role.DECODE,
        priority=flight.priority,
        names=flight.prompt.sequence(worker.stage.batching.block_tokens, output),
    )
