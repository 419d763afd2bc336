"""A plant of workers under one router on a virtual clock.

Runs the objects that serve (``decide.router``, ``decide.batching``) as fast as they go and tells them only
what they would know: what workers say reaches the router after ``message_delay_s``, loads no oftener than
each ``report_interval_s``, as in ``serve.worker``. It must not know trace formats or how a router decides.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

import msgspec

from tokenmill.clock import VirtualClock
from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.types import RouteRequest
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.kv_events import KvEvents
from tokenmill.simulate.prompts import PromptMaker
from tokenmill.simulate.report import Figures, Journal
from tokenmill.simulate.timing import PlantTimes
from tokenmill.simulate.traces import Trace, sessions_of
from tokenmill.simulate.worker import PlantWorker


class PlantConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``workers`` alike, each with limits ``batching``. Delays in seconds."""

    workers: int
    batching: BatchingConfig
    message_delay_s: float = 0.001
    report_interval_s: float = 0.05


class _Post:
    """One worker with what it has told: KV events after each step, its load at most once an interval."""

    __slots__ = ("events_told", "report_due", "reported_at", "worker")

    def __init__(self, worker: PlantWorker) -> None:
        self.worker = worker
        self.events_told = 0
        self.reported_at = float("-inf")
        self.report_due = False


class Plant:
    """One run: ``Plant(...).run(trace)``. Deterministic for the same arguments and router seed."""

    def __init__(self, config: PlantConfig, router: Router, times: PlantTimes) -> None:
        self._config = config
        self._router = router
        self._times = times
        self._clock = VirtualClock()
        self._journal = Journal()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._posts: dict[WorkerId, _Post] = {}
        self._sessions: dict[RequestId, str] = {}

    def run(self, trace: Trace) -> Figures:
        """Serve the whole trace and return its figures. Raises ValueError for an empty trace."""
        prompts = PromptMaker(trace)
        self._sessions = {RequestId(str(at)): name for at, name in enumerate(sessions_of(trace))}
        self._start_workers(prompts)
        for number, request in enumerate(trace.requests):
            self._run_until(request.at_s)
            self._arrive(RequestId(str(number)), prompts.packed(request), request.output_tokens)
        self._run_until(math.inf)
        return self._journal.figures()

    def _run_until(self, instant: float) -> None:
        """Let happen what is due before ``instant``, then move there if time is finite. What is due just then
        comes after the arrivals of that instant: a worker that stands still sees them all before it begins a
        step."""
        due, advance_to = self._due, self._clock.advance_to
        while due and due[0][0] < instant:
            at, _, act = heapq.heappop(due)
            advance_to(at)
            act()
        if instant < math.inf:
            advance_to(instant)

    def _start_workers(self, prompts: PromptMaker) -> None:
        for number in range(self._config.workers):
            worker_id = WorkerId(f"w{number}")
            worker = PlantWorker(worker_id, self._config.batching, self._times, prompts, self._journal)
            self._posts[worker_id] = _Post(worker)
            self._router.worker_ready(worker.card)

    def _arrive(self, request_id: RequestId, packed: bytes, output_tokens: int) -> None:
        now = self._clock.now()
        request = RouteRequest(
            request_id=request_id,
            packed=packed,
            output_tokens=output_tokens,
            session=self._sessions[request_id],
        )
        self._journal.arrived(request_id, request.tokens, now)
        decision = self._router.route(request, now)
        if decision is None:
            self._journal.refused(request_id)
            return
        self._router.sent(
            decision.decode_worker, request_id, decision.prefill_tokens, now, tokens=request.tokens
        )
        post = self._posts[decision.decode_worker]
        post.worker.submit(request_id, packed, output_tokens, now)
        if not post.worker.busy:
            self._at(now, lambda: self._wake(post))

    def _wake(self, post: _Post) -> None:
        if not post.worker.busy:
            self._step(post, self._clock.now())

    def _step(self, post: _Post, now: float) -> None:
        end = post.worker.start(now)
        if end is not None:
            self._at(end, lambda: self._step_ended(post))
        self._tell(post, now)

    def _step_ended(self, post: _Post) -> None:
        now = self._clock.now()
        post.worker.finish(now)
        self._step(post, now)

    def _tell(self, post: _Post, now: float) -> None:
        """Send what the worker has to say after a step."""
        worker, delay_s = post.worker, self._config.message_delay_s
        worker_id = worker.card.worker_id
        events = worker.drain_kv_events()
        if events:
            batch = KvEvents(post.events_told, events)
            post.events_told += len(events)
            self._at(now + delay_s, lambda: self._events_came(worker_id, batch))
        if worker.ended:
            ended, worker.ended = worker.ended, []
            self._at(now + delay_s, lambda: self._streams_ended(worker_id, ended))
        if not post.report_due:
            post.report_due = True
            at = max(now, post.reported_at + self._config.report_interval_s)
            if at > now:
                self._at(at, lambda: self._report(post))
            else:
                self._report(post)

    def _report(self, post: _Post) -> None:
        now = self._clock.now()
        post.report_due = False
        post.reported_at = now
        worker_id, metrics = post.worker.card.worker_id, post.worker.metrics()
        at = now + self._config.message_delay_s
        self._at(at, lambda: self._router.load_reported(worker_id, metrics, at))

    def _events_came(self, worker_id: WorkerId, batch: KvEvents) -> None:
        if not self._router.kv_changed(worker_id, batch, self._clock.now()):
            raise RuntimeError(f"{worker_id}: the router missed events of a plant that loses none")

    def _streams_ended(self, worker_id: WorkerId, ended: list[RequestId]) -> None:
        for request_id in ended:
            self._router.ended(worker_id, request_id)

    def _at(self, instant: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (instant, next(self._number), act))
