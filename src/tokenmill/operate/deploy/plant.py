"""The words of the supervision: what should run, what happened, what to do.

Events are facts in the past tense; instructions are orders. Plain data: no process, no clock in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from tokenmill.errors import ConfigError
from tokenmill.spec.derive import FRONTEND, to_frontend_config, worker_config
from tokenmill.spec.factory import Factory
from tokenmill.spec.placement import HERE, Gpus, Replica, assign_gpus, shared_gpus
from tokenmill.spec.process import FrontendConfig, WorkerConfig
from tokenmill.spec.stage import Stage

FRONTEND_STAGE: Final = FRONTEND

OWN_LISTEN: Final = "127.0.0.1:0"
"""Where each of several front doors can be reached for itself, on this machine."""

MAX_PROCESSES: Final = 256
"""Of one factory on one machine: each takes three of its supervisor's file descriptors; 1024 are usual."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process that should run. Two specs are equal if replacing one by the other would change nothing.

    ``threads``: compute threads (0: the process's own business); it follows from how many workers share
    machine, and no worker is restarted because a neighbour came or went. ``exclusive``: what only one process
    can hold at a time, such as a port or a GPU. ``grace_s``: how long it may take to drain.
    """

    name: str
    stage: str
    replica: int
    config: WorkerConfig | FrontendConfig
    cpus: tuple[int, ...] = ()
    threads: int = field(default=0, compare=False)
    exclusive: frozenset[str] = frozenset()
    grace_s: float = 30.0

    @property
    def is_frontend(self) -> bool:
        """Front doors stop first, so that no request meets a worker that is gone."""
        return isinstance(self.config, FrontendConfig)


@dataclass(frozen=True, kw_only=True)
class ProcessStarted:
    """The operating system has given it a pid."""

    instance: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class ProcessReady:
    """It says that it serves; ``info`` is what else it said (a frontend: its URL)."""

    instance: int
    info: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class ProcessFailed:
    """It says that it cannot serve. ``config_fault``: and that trying again will not help."""

    instance: int
    message: str
    config_fault: bool


@dataclass(frozen=True, kw_only=True)
class ProcessExited:
    """It is gone (or never came up: ``code`` None). ``message``: its last words, if any."""

    instance: int
    code: int | None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanChanged:
    """Something else should run from now on."""

    specs: tuple[ProcessSpec, ...]


@dataclass(frozen=True, kw_only=True)
class StopAsked:
    """Everything should end; ``at_once``: without draining."""

    at_once: bool = False


@dataclass(frozen=True, kw_only=True)
class TimerFired:
    """The time asked for has come (or passed: an early or late firing does no harm)."""


Report = ProcessStarted | ProcessReady | ProcessFailed
Event = Report | ProcessExited | PlanChanged | StopAsked | TimerFired


@dataclass(frozen=True, kw_only=True)
class StartProcess:
    """Start it; answered by ProcessStarted or ProcessExited."""

    instance: int
    spec: ProcessSpec


@dataclass(frozen=True, kw_only=True)
class StopProcess:
    """Ask it to drain and exit (SIGTERM)."""

    instance: int


@dataclass(frozen=True, kw_only=True)
class KillProcess:
    """End it, and what it started, at once (SIGKILL)."""

    instance: int


@dataclass(frozen=True, kw_only=True)
class SetTimer:
    """Fire at ``at`` (same clock as ``now``); replaces the timer set before."""

    at: float


@dataclass(frozen=True, kw_only=True)
class AnnounceReady:
    """All that should run is ready; again after each change of plan."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Nothing runs any more. ``status``: the command's exit status; ``message``: why, unless asked to."""

    status: int
    message: str = ""


Instruction = StartProcess | StopProcess | KillProcess | SetTimer | AnnounceReady | Finish


class State(StrEnum):
    """What a process looks like to a person."""

    WAITING = "waiting"  # for a retry, a port, or its turn
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """One line of ``tokenmill status``. ``since``: when it was started, on the supervisor's clock."""

    name: str
    stage: str
    role: str
    state: State
    pid: int | None
    since: float | None
    restarts: int
    message: str


def check_count(factory: Factory) -> None:
    """Raise ConfigError for more processes than one machine should be asked to run."""
    count = factory.frontend.replicas + sum(stage.replicas for stage in factory.stages)
    if count > MAX_PROCESSES:
        raise ConfigError(
            f"replicas: {count} processes are too many for one machine; at most {MAX_PROCESSES} in all"
        )


def process_specs(
    factory: Factory, cores: int, *, shared_port: int | None = None, held: Gpus | None = None
) -> tuple[ProcessSpec, ...]:
    """Return what a factory runs on this machine, workers first. ``cores``: how many it may use.

    ``shared_port``: all front doors listen there; None: replica i on the declared port plus i. ``held``: the
    GPUs that replicas have already. Raises ConfigError for too many.
    """
    check_count(factory)
    torch_workers = sum(stage.replicas for stage in factory.stages if stage.engine == "torch")
    share = max(1, cores // max(1, torch_workers))
    gpus = assign_gpus(factory, held)
    shared = shared_gpus(factory, gpus)
    workers = [
        _with_gpus(_worker_spec(factory, stage, replica, share), stage, gpus, shared)
        for stage in factory.stages
        for replica in range(stage.replicas)
    ]
    fronts = [_frontend_spec(factory, replica, shared_port) for replica in range(factory.frontend.replicas)]
    return (*workers, *fronts)


def _worker_spec(factory: Factory, stage: Stage, replica: int, share: int) -> ProcessSpec:
    cpus = (stage.cpus[replica % len(stage.cpus)],) if stage.cpus else ()
    config = worker_config(factory, stage, replica)
    return ProcessSpec(
        name=f"{stage.name}-{replica}",
        stage=stage.name,
        replica=replica,
        config=config,
        cpus=cpus,
        threads=config.threads or (1 if cpus or stage.engine != "torch" else share),
        grace_s=config.drain_timeout_s + STOP_MARGIN_S,
    )


def held_gpus(specs: Iterable[ProcessSpec]) -> dict[Replica, tuple[int, ...]]:
    """Return which GPUs the workers of a plan have."""
    return {
        (spec.stage, spec.replica): tuple(spec.config.gpus)
        for spec in specs
        if isinstance(spec.config, WorkerConfig) and spec.config.gpus
    }


def _with_gpus(spec: ProcessSpec, stage: Stage, gpus: Gpus, shared: set[tuple[str, int]]) -> ProcessSpec:
    """Give a launched engine its GPUs; what is meant to be shared is not exclusive."""
    assert isinstance(spec.config, WorkerConfig)
    own = gpus.get((stage.name, spec.replica), ())
    if stage.attach or not own:
        return spec
    return replace(
        spec,
        config=replace(spec.config, gpus=list(own)),
        exclusive=frozenset(f"GPU {gpu}" for gpu in own if (HERE, gpu) not in shared),
    )


def _frontend_spec(factory: Factory, replica: int, shared_port: int | None) -> ProcessSpec:
    config = to_frontend_config(factory)
    if shared_port is not None:
        own = OWN_LISTEN if factory.frontend.replicas > 1 else ""
        config = replace(config, port=shared_port, reuse_port=True, own_listen=own)
    elif config.port:
        config = replace(config, port=config.port + replica)
    return ProcessSpec(
        name=f"{FRONTEND_STAGE}-{replica}",
        stage=FRONTEND_STAGE,
        replica=replica,
        config=config,
        exclusive=frozenset({f"port {config.port}"} if config.port and not config.reuse_port else ()),
        grace_s=config.drain_timeout_s + STOP_MARGIN_S,
    )


STOP_MARGIN_S: Final = 5.0
"""How much longer than its own drain a process may take before it is killed, in seconds."""
