"""What is simulated: stages, links, settings of the objects that decide, and what happens to them.

Plain values, so that a factory file, a test and a benchmark describe a plant the same way. It must not know
trace formats, files or how anything is simulated.
"""

from __future__ import annotations

import msgspec

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.router.admission_words import AdmissionSettings
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.protocol.step_table import StepTable
from tokenmill.simulate.timing import PlantTimes
from tokenmill.spec.factory import Slo


class StageScene(msgspec.Struct, frozen=True, kw_only=True):
    """Workers alike. Worker i of stage s is called ``s-i``.

    ``role`` counts, whatever ``batching.role`` says. ``times``: the device behind each worker. ``model``:
    workers of one model hand caches over to each other. ``device``: its name in reports. ``start_s``: seconds
    that a worker takes to come up when it is added or comes back. ``hosts``: worker i stands on
    ``hosts[i % len(hosts)]``; empty: each on one of its own. ``kv_bytes_per_token``: of the cache that is
    handed over. ``step_table``: what its workers tell of their step times; None: nothing.
    """

    name: str
    role: Role
    workers: int
    batching: BatchingConfig
    times: PlantTimes
    model: str = ""
    device: str = ""
    start_s: float = 0.0
    hosts: tuple[str, ...] = ()
    kv_bytes_per_token: float = 0.0
    step_table: StepTable | None = None

    def worker_name(self, index: int) -> str:
        """Return what worker ``index`` is called."""
        return f"{self.name}-{index}"

    def host_of(self, index: int) -> str:
        """Return the host of worker ``index``."""
        return self.hosts[index % len(self.hosts)] if self.hosts else self.worker_name(index)


class LinkScene(msgspec.Struct, frozen=True, kw_only=True):
    """What one host's port carries in each direction, bytes a second; transfers at once share it evenly.
    ``latency_s``: added to each transfer."""

    bytes_per_s: float
    latency_s: float = 0.0


class WorkerFails(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker is gone at ``at_s``, with its cache; after ``back_after_s`` seconds a new one begins to start
    in its place (None: never)."""

    at_s: float
    stage: str
    index: int
    back_after_s: float | None = None


class WorkerSlow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Steps that a worker begins from ``at_s`` to before ``until_s`` take ``factor`` times as long."""

    at_s: float
    until_s: float
    stage: str
    index: int
    factor: float


class StageScaled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A stage is to have ``workers`` workers from ``at_s`` on: new ones come up after ``start_s``, those with
    the highest numbers take nothing new and leave when they have finished what they have."""

    at_s: float
    stage: str
    workers: int


class LinkSlow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ports of ``host`` (None: of all) carry ``1 / factor`` of what they should from ``at_s`` to before
    ``until_s``."""

    at_s: float
    until_s: float
    host: str | None = None
    factor: float


SceneEvent = WorkerFails | WorkerSlow | StageScaled | LinkSlow

_FABRIC = LinkScene(bytes_per_s=10e9, latency_s=1e-3)
_WITHIN = LinkScene(bytes_per_s=200e9, latency_s=2e-4)


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A plant and all that happens to it but the requests.

    ``links``: ports between hosts; ``same_host``: between workers of one host. ``policy``: the router's, in
    place of the one in ``router``; empty: that one. ``admission``: the queue in front; None: there is none,
    and what nobody takes is refused. ``front_s``: what the way from the client to the worker's queue and back
    adds to a request's first token and to its last. ``message_delay_s``: one way between frontend and worker.
    ``report_interval_s``: least time between two load reports of a worker. ``early_handoff``: caches are
    offered when a prompt is begun, not when it is done. ``most_attempts``: workers that a request is given
    before it is refused. ``slo``: what reports measure against.
    """

    stages: list[StageScene]
    links: LinkScene = _FABRIC
    same_host: LinkScene = _WITHIN
    router: RouterSettings = RouterSettings()
    policy: str = ""
    admission: AdmissionSettings | None = None
    front_s: float = 0.0
    message_delay_s: float = 0.001
    report_interval_s: float = 0.05
    early_handoff: bool = True
    most_attempts: int = 4
    seed: int = 0
    events: list[SceneEvent] = []
    slo: Slo | None = None


def check_scene(scene: Scene) -> None:
    """Raise ConfigError, naming the field and the fix, for a scene that cannot be simulated."""
    names = [stage.name for stage in scene.stages]
    if not names:
        raise ConfigError("stages: give at least one", param="stages")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"stages: two are called {name!r}; rename one", param="stages")
    for stage in scene.stages:
        if stage.workers < 0:
            raise ConfigError(
                f"stage {stage.name}: workers is {stage.workers}; give 0 or more", param="stages"
            )
    for link, field in ((scene.links, "links"), (scene.same_host, "same_host")):
        if link.bytes_per_s <= 0 or link.latency_s < 0:
            raise ConfigError(f"{field}: bytes_per_s must be above 0 and latency_s not below 0", param=field)
    for field in ("message_delay_s", "report_interval_s"):
        if getattr(scene, field) <= 0:
            raise ConfigError(f"{field} is {getattr(scene, field)}; give seconds above 0", param=field)
    if scene.front_s < 0:
        raise ConfigError(f"front_s is {scene.front_s}; give seconds, 0 or more", param="front_s")
    for event in scene.events:
        _check_event(event, names)


def _check_event(event: SceneEvent, stages: list[str]) -> None:
    kind = type(event).__name__
    if event.at_s < 0:
        raise ConfigError(f"events: {kind} at_s is {event.at_s}; give 0 or more", param="events")
    if not isinstance(event, LinkSlow) and event.stage not in stages:
        raise ConfigError(
            f"events: {kind} names stage {event.stage!r}; there are {', '.join(stages)}", param="events"
        )
    if isinstance(event, StageScaled) and event.workers < 0:
        raise ConfigError(f"events: {kind} workers is {event.workers}; give 0 or more", param="events")
    if isinstance(event, WorkerSlow | LinkSlow):
        if event.factor <= 0:
            raise ConfigError(f"events: {kind} factor is {event.factor}; give one above 0", param="events")
        if event.until_s <= event.at_s:
            raise ConfigError(f"events: {kind} until_s must be after at_s", param="events")
