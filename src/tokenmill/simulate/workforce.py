"""The workers of a plant and what happens to them: coming up, failing, slowing down, leaving.

It must not know requests or how they are routed.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.simulate.flight import Flight
from tokenmill.simulate.front import Front
from tokenmill.simulate.kernel import SCENE, Kernel
from tokenmill.simulate.ports import Links
from tokenmill.simulate.record import GapHistogram, LoggedEvent
from tokenmill.simulate.scene import (
    LinkSlow,
    Scene,
    SceneEvent,
    StageScaled,
    StageScene,
    WorkerFails,
    WorkerSlow,
)
from tokenmill.simulate.worker import Around, SimWorker


class StageCrew:
    """One stage's workers: ``present`` are there, starting and leaving ones too; ``past`` are not any
    more."""

    def __init__(self, stage: StageScene) -> None:
        self.stage = stage
        self.present: list[SimWorker] = []
        self.past: list[SimWorker] = []
        self.past_worker_s = 0.0
        self.came: dict[int, int] = {}
        """How many workers there were at each place."""


class Workforce:
    """All workers of ``scene``. ``log``: what happened, in words."""

    def __init__(
        self,
        scene: Scene,
        kernel: Kernel,
        front: Front,
        links: Links,
        gaps: GapHistogram,
        flights: dict[RequestId, Flight],
        *,
        jump: bool,
    ) -> None:
        self.log: list[LoggedEvent] = []
        self.crews = [StageCrew(stage) for stage in scene.stages]
        self._scene = scene
        self._kernel = kernel
        self._front = front
        self._links = links
        self._around = Around(kernel, front, flights, gaps, scene.report_interval_s, jump)
        self._workers = 0
        front.on_idle = self._maybe_leave
        for crew in self.crews:
            for index in range(crew.stage.workers):
                self._ready(self._come(crew, index))
        for number, event in enumerate(scene.events):
            self._foresee(number, event)

    # Coming and going ----------------------------------------------------------------------------------

    def _come(self, crew: StageCrew, index: int) -> SimWorker:
        stage = crew.stage
        times = crew.came[index] = crew.came.get(index, 0) + 1
        name = stage.worker_name(index) + (f".{times}" if times > 1 else "")
        worker = SimWorker(
            self._workers,
            index,
            stage,
            _card(WorkerId(name), stage, early_handoff=self._scene.early_handoff),
            self._around,
        )
        self._workers += 1
        crew.present.append(worker)
        return worker

    def _ready(self, worker: SimWorker) -> None:
        if worker.gone or worker.draining:
            return
        worker.ready = True
        front = self._front
        front.read()
        front.workers[worker.card.worker_id] = worker
        front.router.worker_ready(worker.card)
        if front.gate is not None:
            front.gate.look(self._kernel.now)

    def _start(self, crew: StageCrew, index: int) -> None:
        worker = self._come(crew, index)
        if crew.stage.start_s:
            self._say(f"{worker.card.worker_id} is coming up")
        self._later(crew.stage.start_s, lambda: self._came_up(worker))

    def _came_up(self, worker: SimWorker) -> None:
        if not worker.gone and not worker.draining:
            self._say(f"{worker.card.worker_id} is ready")
            self._ready(worker)

    def _maybe_leave(self, worker: SimWorker) -> None:
        """It has nothing to do just now: if it is to leave, nothing is left of any sequence and no cache is
        on its way there, it goes."""
        metrics = worker.scheduler.metrics(0.0)
        if metrics.running or metrics.waiting or metrics.receiving or metrics.exported:
            return
        if self._front.has_promised(worker):
            return
        self._leave(worker)
        self._say(f"{worker.card.worker_id} has left")

    def _leave(self, worker: SimWorker) -> None:
        worker.gone = True
        for crew in self.crews:
            if worker in crew.present:
                crew.present.remove(worker)
                crew.past.append(worker)
                crew.past_worker_s += self._kernel.now - worker.there_since

    # Events --------------------------------------------------------------------------------------------

    def _foresee(self, number: int, event: SceneEvent) -> None:
        kernel = self._kernel
        match event:
            case WorkerFails():
                kernel.at(event.at_s, SCENE, number, lambda _: self._fails(event))
            case StageScaled():
                kernel.at(event.at_s, SCENE, number, lambda _: self._scaled(event))
            case WorkerSlow():
                kernel.at(event.at_s, SCENE, number, lambda _: self._slow(event, event.factor))
                kernel.at(event.until_s, SCENE, number, lambda _: self._slow(event, 1 / event.factor))
            case LinkSlow():
                kernel.at(event.at_s, SCENE, number, lambda _: self._link_slow(event, event.factor))
                kernel.at(event.until_s, SCENE, number, lambda _: self._link_slow(event, 1.0))

    def _fails(self, event: WorkerFails) -> None:
        crew = self._crew(event.stage)
        worker = _at(crew, event.index)
        if worker is None:
            self._say(f"{crew.stage.worker_name(event.index)} was to fail, and is not there")
            return
        self._say(f"{worker.card.worker_id} has failed")
        worker.fail()
        self._leave(worker)
        if worker.ready:
            self._later(self._scene.message_delay_s, lambda: self._front.lost(worker))
        if event.back_after_s is not None:
            self._later(event.back_after_s, lambda: self._start(crew, event.index))

    def _slow(self, event: WorkerSlow, factor: float) -> None:
        worker = _at(self._crew(event.stage), event.index)
        if worker is not None:
            changed = worker.factor * factor
            worker.slow_down(1.0 if abs(changed - 1.0) < 1e-9 else changed)
            self._say(f"{worker.card.worker_id} takes {worker.factor:g} times as long for a step")

    def _link_slow(self, event: LinkSlow, factor: float) -> None:
        self._links.slow_down(event.host, factor)
        whose = event.host or "all hosts"
        self._say(
            f"links of {whose} are slower by {factor:g}" if factor != 1.0 else f"links of {whose} recover"
        )

    def _scaled(self, event: StageScaled) -> None:
        crew = self._crew(event.stage)
        staying = sorted((w for w in crew.present if not w.draining), key=lambda worker: worker.index)
        self._say(f"stage {event.stage} goes from {len(staying)} to {event.workers} workers")
        for worker in staying[event.workers :]:
            worker.draining = True
            if worker.ready:
                self._front.read()
                self._front.router.worker_gone(worker.card.worker_id)
            if not worker.busy:
                self._maybe_leave(worker)
        taken = {worker.index for worker in crew.present}
        index = 0
        for _ in range(event.workers - len(staying)):
            while index in taken:
                index += 1
            taken.add(index)
            self._start(crew, index)

    def _crew(self, stage: str) -> StageCrew:
        return next(crew for crew in self.crews if crew.stage.name == stage)

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        self._kernel.at(self._kernel.now + delay_s, SCENE, self._workers, lambda _: act())

    def _say(self, what: str) -> None:
        self.log.append(LoggedEvent(self._kernel.now, what))


def _at(crew: StageCrew, index: int) -> SimWorker | None:
    return next((worker for worker in crew.present if worker.index == index), None)


def _card(worker_id: WorkerId, stage: StageScene, *, early_handoff: bool) -> WorkerCard:
    batching = stage.batching
    paired = stage.role is not Role.BOTH
    budget = min(batching.prefill_budget or batching.token_budget, batching.token_budget)
    return WorkerCard(
        worker_id=worker_id,
        role=stage.role,
        stage=stage.name,
        state=WorkerState.READY,
        address="",
        engine="plant",
        model=stage.model or "plant",
        max_model_len=batching.max_model_len,
        block_tokens=batching.block_tokens,
        kv_blocks=batching.total_blocks,
        max_sequences=batching.max_sequences,
        prefill_budget=budget if paired else 0,
        step_table=stage.step_table,
        transports=["plant"] if paired else [],
        early_handoff=early_handoff and paired,
        fingerprint=stage.model or "plant",
    )
