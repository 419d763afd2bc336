"""Small plants for tests, and a router that notes what it hears."""

from __future__ import annotations

from typing import Any

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.router_with_room import RouterWithRoom
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.kv_events import KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.simulate.record import RunRecord
from tokenmill.simulate.scene import Scene, StageScene
from tokenmill.simulate.timing import PlantTimes, PolynomialTimes

TIMES = PolynomialTimes(prefill=(10.0, 1.0, 0.0), decode=(5.0, 0.0, 0.0))
BATCHING = BatchingConfig(
    total_blocks=64, max_model_len=1024, block_tokens=8, token_budget=64, max_sequences=8, watermark=0.0
)


def stage(
    role: Role = Role.BOTH,
    workers: int = 1,
    batching: BatchingConfig = BATCHING,
    times: PlantTimes = TIMES,
    **changes: Any,
) -> StageScene:
    """Return a stage called by its role."""
    return StageScene(name=role.value, role=role, workers=workers, batching=batching, times=times, **changes)


def aggregated(workers: int = 1, policy: str = "kv", **changes: Any) -> Scene:
    """Return a plant of one stage."""
    return Scene(stages=[stage(workers=workers)], router=RouterSettings(policy=policy), **changes)


class Listening(Router):
    """Notes when it hears of what, from whom."""

    heard: list[tuple[str, WorkerId, object, float]]

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.heard = []
        LISTENERS.append(self)

    def load_reported(self, worker: WorkerId, metrics: StepMetrics, now: float) -> None:
        self.heard.append(("load", worker, metrics, now))
        super().load_reported(worker, metrics, now)

    def kv_changed(self, worker: WorkerId, batch: KvEvents, now: float) -> bool:
        self.heard.append(("kv", worker, batch, now))
        return super().kv_changed(worker, batch, now)

    def ended(self, worker: WorkerId, request_id: RequestId) -> None:
        self.heard.append(("ended", worker, request_id, 0.0))
        super().ended(worker, request_id)


class ListeningWithRoom(Listening, RouterWithRoom):
    """The same in front of an admission."""


LISTENERS: list[Listening] = []
"""All that were made since a test emptied it."""


def state(run: RunRecord) -> tuple[object, ...]:
    """Return all that a run left behind, for comparing it with another."""
    return (
        run.requests,
        run.gaps.state(),
        run.gaps.total_s,
        run.stages,
        run.queued,
        run.events_log,
        run.makespan_s,
        run.handoffs,
        run.handoffs_failed,
        run.handoff_bytes,
        run.migrations,
        run.steps,
    )
