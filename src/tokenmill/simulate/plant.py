"""A factory on a virtual clock: a scene and a trace in, a record out.

Runs the objects that serve (``decide.router``, its admission, ``decide.batching``) as fast as they go and
tells them only what they would know. Deterministic: the same scene and trace give the same record, to the
last bit. It must not know files, prices or how a router decides.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.router import PolicyMaker, Router
from tokenmill.decide.router.router_with_room import RouterWithRoom
from tokenmill.protocol.ids import RequestId
from tokenmill.simulate.flight import Flight
from tokenmill.simulate.front import Front
from tokenmill.simulate.gate import Gatekeeper
from tokenmill.simulate.handoffs import Handoffs
from tokenmill.simulate.kernel import SAMPLE, Kernel
from tokenmill.simulate.ports import Links
from tokenmill.simulate.prompts import PromptBook
from tokenmill.simulate.record import GapHistogram, RequestRecord, RunRecord
from tokenmill.simulate.sampling import Sampler, stage_record
from tokenmill.simulate.scene import Scene, check_scene
from tokenmill.simulate.traces import Trace, sessions_of
from tokenmill.simulate.workforce import Workforce

Progress = Callable[[float, int], None]
"""Told virtual seconds and requests that are over, now and then."""

_SAMPLES_A_TRACE = 400
_LEAST_SAMPLE_S = 0.1


def simulate(
    scene: Scene,
    trace: Trace,
    *,
    progress: Progress | None = None,
    policy: PolicyMaker | None = None,
    jump: bool = True,
) -> RunRecord:
    """Serve the whole trace and return what happened.

    ``policy``: a router policy of the user's own, in place of the scene's. ``jump``: cross steps in which
    nothing but decoding happens at once; off, the same result comes step by step, slower. Raises ConfigError
    for a scene that cannot be simulated and ValueError for an empty trace.
    """
    check_scene(scene)
    if not trace.requests:
        raise ValueError("the trace has no requests: there is nothing to simulate")
    with _rare_collections():
        return Plant(scene, trace, progress=progress, policy=policy, jump=jump).run()


def _add_front(records: list[RequestRecord], front_s: float) -> None:
    """The same for each request, so that it moves no arrival against another: it is added at the end."""
    for record in records:
        if record.first_s:
            record.first_s += front_s
            record.last_s += front_s


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Nearly all that a run makes is freed by its last reference: looking for cycles costs a tenth of the
    time for nothing."""
    before = gc.get_threshold()
    gc.set_threshold(500_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Plant:
    """One run."""

    def __init__(
        self, scene: Scene, trace: Trace, *, progress: Progress | None, policy: PolicyMaker | None, jump: bool
    ) -> None:
        self._scene = scene
        self._trace = trace
        self._progress = progress
        self._kernel = kernel = Kernel()
        flights: dict[RequestId, Flight] = {}
        self._gaps = GapHistogram()
        settings = dataclasses.replace(
            scene.router, policy=scene.policy or scene.router.policy, index_shards=1
        )
        gate = None
        if scene.admission is not None:
            admission = Admission(scene.admission)
            gate = Gatekeeper(admission, kernel)
            router: Router = RouterWithRoom(settings, admission.room, seed=scene.seed, policy=policy)
        else:
            router = Router(settings, seed=scene.seed, policy=policy)
        delay_s = scene.message_delay_s
        self._front = front = Front(
            kernel, router, gate, flights, delay_s=delay_s, most_attempts=scene.most_attempts
        )
        links = Links(scene.links, scene.same_host, kernel)
        self._handoffs = Handoffs(kernel, links, front.offer, delay_s=delay_s, early=scene.early_handoff)
        front.handoffs = self._handoffs
        self._workforce = Workforce(scene, kernel, front, links, self._gaps, flights, jump=jump)
        requests = trace.requests
        span_s = requests[-1].at_s - requests[0].at_s
        interval_s = max(_LEAST_SAMPLE_S, span_s / _SAMPLES_A_TRACE)
        self._sampler = Sampler(self._workforce.crews, interval_s)
        self._coming = len(requests)

    def run(self) -> RunRecord:
        """Let it all happen."""
        kernel, front = self._kernel, self._front
        book = PromptBook(self._trace)
        sessions = sessions_of(self._trace)
        records: list[RequestRecord] = []
        self._sample_later()
        for number, request in enumerate(self._trace.requests):
            kernel.run_until(request.at_s)
            record = RequestRecord(
                number=number,
                arrived_s=request.at_s,
                prompt_tokens=request.prompt_tokens,
                klass=request.klass or request.tenant,
            )
            records.append(record)
            self._coming -= 1
            front.arrive(
                Flight(
                    record,
                    book.prompt(request),
                    request.output_tokens,
                    session=sessions[number],
                    tenant=request.tenant,
                    priority=request.priority,
                )
            )
        while front.left and not kernel.idle:
            kernel.run_out(1)
        if front.left:
            names = ", ".join(list(front.flights)[:5])
            raise RuntimeError(
                f"{front.left} requests are left and nothing is due: {names}; a bug of the plant"
            )
        return self._recorded(records)

    def _sample_later(self) -> None:
        at = self._kernel.now + self._sampler.interval_s
        self._kernel.at(at, SAMPLE, 0, self._on_sample)

    def _on_sample(self, _: int) -> None:
        now, front = self._kernel.now, self._front
        if not front.left and not self._coming:
            return
        self._sampler.look(now, front.gate.waiting if front.gate is not None else 0)
        if self._progress is not None:
            self._progress(now, front.done)
        if self._coming or not self._kernel.idle:
            self._sample_later()

    def _recorded(self, records: list[RequestRecord]) -> RunRecord:
        now = self._kernel.now
        gaps = self._gaps
        gaps.total_s = math.fsum(e.last_s - e.first_s for e in records if e.last_s)
        if self._scene.front_s:
            _add_front(records, self._scene.front_s)
        crews, samples = self._workforce.crews, self._sampler.samples
        stages = [stage_record(crew, samples[at], now) for at, crew in enumerate(crews)]
        if self._progress is not None:
            self._progress(now, self._front.done)
        return RunRecord(
            requests=records,
            gaps=gaps,
            stages=stages,
            queued=self._sampler.queued,
            events_log=self._workforce.log,
            makespan_s=max(0.0, max(record.last_s for record in records) - records[0].arrived_s),
            handoffs=self._handoffs.arrived,
            handoffs_failed=self._handoffs.failed,
            handoff_bytes=self._handoffs.moved_bytes,
            migrations=self._front.migrations,
            steps=sum(stage.steps for stage in stages),
            seed=self._scene.seed,
        )
