"""Which processes to start, stop and restart, and when. No process, socket or clock in here.

``Supervision.handle(event, now)`` is the only way in. After every event ``_reconcile`` compares what runs
with what should run, so that no order of events needs code of its own.

- A process that exits unasked is restarted after 0.5 s, doubled up to 30 s; a minute of health forgives all.
- One that reports a fault of its configuration before it was ever ready is not tried again.
- A changed stage is replaced one replica at a time: the new one must be ready before the old one drains. Only
  where the two would need the same port the old one goes first.
- A stop drains front doors first, then workers; who outlives its grace is killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

from tokenmill.operate.deploy.plant import (
    AnnounceReady,
    Event,
    Finish,
    Instruction,
    KillProcess,
    PlanChanged,
    ProcessExited,
    ProcessFailed,
    ProcessReady,
    ProcessSpec,
    ProcessStarted,
    ProcessStatus,
    Report,
    SetTimer,
    StartProcess,
    State,
    StopAsked,
    StopProcess,
    TimerFired,
)
from tokenmill.spec.process import WorkerConfig

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MOST_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
"""So long ready, and earlier crashes count no more."""

BOOT_ATTEMPTS: Final = 5
"""So often a process may crash in a factory that was never ready; then the start has failed."""

READY_TIMEOUT_S: Final = 1800.0
"""How long loading may take: large checkpoints from a slow disk take many minutes."""

KILL_AGAIN_S: Final = 5.0
"""After how long a kill that has shown no effect is repeated."""


@dataclass(kw_only=True)
class Instance:
    """One process, from the order to start it until its exit was seen."""

    number: int
    spec: ProcessSpec
    state: State
    since: float
    deadline: float
    """When patience ends: for becoming ready, or for exiting."""

    pid: int | None = None
    ready_since: float | None = None
    config_fault: bool = False
    message: str = ""


@dataclass(kw_only=True)
class Slot:
    """What is remembered of a place in the plan across its processes."""

    crashes: int = 0
    restarts: int = 0
    not_before: float = 0.0
    given_up: bool = False
    message: str = ""


class Supervision:
    """Decides about all processes of one factory on one machine."""

    def __init__(self) -> None:
        self._desired: dict[str, ProcessSpec] = {}
        self._instances: dict[int, Instance] = {}
        self._slots: dict[str, Slot] = {}
        self._numbers = 0
        self._stopping = False
        self._was_ready = False
        self._announced = False
        self._finished = False
        self._verdict = Finish(status=0)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take one fact; return what to do, in order. ``now``: seconds, never going back."""
        out: list[Instruction] = []
        match event:
            case PlanChanged():
                self._on_plan(event)
            case ProcessExited():
                self._on_exit(event, now)
            case StopAsked():
                self._stopping = True
                if event.at_once:
                    out += [self._kill(each, now) for each in self._instances.values()]
            case TimerFired():
                pass
            case _:
                self._on_report(event, now)
        out += self._reconcile(now)
        return out

    def statuses(self) -> list[ProcessStatus]:
        """All that runs or should, in the plan's order; what is on its way out comes last."""
        rows: list[ProcessStatus] = []
        living = sorted(self._instances.values(), key=lambda each: -each.number)
        for name, spec in self._desired.items():
            mine = [each for each in living if each.spec.name == name]
            best = next((each for each in mine if each.state is State.READY), mine[0] if mine else None)
            if best is not None or not self._stopping:
                rows.append(self._row(spec, best))
            rows += [self._row(each.spec, each) for each in mine if each is not best]
        rows += [self._row(each.spec, each) for each in living if each.spec.name not in self._desired]
        return rows

    @property
    def ready(self) -> bool:
        """Whether all that should run serves, as it should now be."""
        return not self._stopping and all(self._settled(spec) for spec in self._desired.values())

    def _settled(self, spec: ProcessSpec) -> bool:
        fresh = self._fresh(spec)
        return fresh is not None and fresh.state is State.READY

    def _row(self, spec: ProcessSpec, instance: Instance | None) -> ProcessStatus:
        slot = self._slots.get(spec.name, Slot())
        idle = State.FAILED if slot.given_up else State.WAITING
        return ProcessStatus(
            name=spec.name,
            stage=spec.stage,
            role=str(spec.config.role) if isinstance(spec.config, WorkerConfig) else "",
            state=instance.state if instance else idle,
            pid=instance.pid if instance else None,
            since=instance.since if instance else None,
            restarts=slot.restarts,
            message=slot.message if slot.given_up or not instance else instance.message,
        )

    # -- events

    def _on_plan(self, event: PlanChanged) -> None:
        if self._stopping:
            return
        self._desired = {spec.name: spec for spec in event.specs}
        self._announced = False
        for name in self._desired:
            slot = self._slots.setdefault(name, Slot())
            slot.given_up, slot.crashes, slot.not_before = False, 0, 0.0
        for name in self._slots.keys() - self._desired.keys():
            if not any(each.spec.name == name for each in self._instances.values()):
                del self._slots[name]

    def _on_report(self, event: Report, now: float) -> None:
        instance = self._instances.get(event.instance)
        if instance is None:
            return
        match event:
            case ProcessStarted(pid=pid):
                instance.pid = pid
                if instance.state is State.STARTING:
                    instance.state = State.LOADING
            case ProcessReady():
                if instance.state in {State.STARTING, State.LOADING}:
                    instance.state = State.READY
                    instance.ready_since = now
                    instance.deadline = inf
            case ProcessFailed():
                instance.message, instance.config_fault = event.message, event.config_fault
                if instance.state is not State.DRAINING:
                    instance.state = State.FAILED
                    instance.deadline = now + KILL_AGAIN_S

    def _on_exit(self, event: ProcessExited, now: float) -> None:
        instance = self._instances.pop(event.instance, None)
        if instance is None:
            return
        name = instance.spec.name
        slot = self._slots.setdefault(name, Slot())
        if instance.state is State.DRAINING or self._stopping or self._desired.get(name) != instance.spec:
            return  # it was to go anyway
        slot.message = instance.message or event.message or f"exited with status {event.code}"
        if event.code is not None and event.code < 0:  # its last line had nothing to do with it
            slot.message = instance.message or f"killed by signal {-event.code}"
        if instance.ready_since is not None and now - instance.ready_since >= HEALTHY_AFTER_S:
            slot.crashes = 0
        slot.crashes += 1
        never_ready = instance.ready_since is None
        if never_ready and (instance.config_fault or event.code == 2):
            slot.given_up = True
            self._boot_failed(instance.spec, slot, status=2)
        elif not self._was_ready and slot.crashes >= BOOT_ATTEMPTS:
            slot.given_up = True
            self._boot_failed(instance.spec, slot, status=1)
        else:
            slot.restarts += 1
            slot.not_before = now + min(BACKOFF_FIRST_S * 2 ** (slot.crashes - 1), BACKOFF_MOST_S)

    def _boot_failed(self, spec: ProcessSpec, slot: Slot, status: int) -> None:
        """A factory that never came up ends with the first hopeless process; a running one keeps the rest."""
        if not self._was_ready and not self._stopping:
            self._stopping = True
            self._verdict = Finish(status=status, message=f"{spec.name}: {slot.message}")

    # -- what runs against what should

    def _reconcile(self, now: float) -> list[Instruction]:
        if self._finished:
            return []
        out = list(self._overdue(now))
        if self._stopping:
            out += self._drain_all(now)
        else:
            out += self._replace_and_start(now)
            out += self._drain_surplus(now)
        if self.ready and not self._announced:
            self._announced = self._was_ready = True
            out.append(AnnounceReady())
        if self._stopping and not self._instances:
            self._finished = True
            out.append(self._verdict)
        elif (at := self._next_deadline(now)) is not None:
            out.append(SetTimer(at=at))
        return out

    def _overdue(self, now: float) -> Iterator[Instruction]:
        for instance in self._instances.values():
            if instance.deadline <= now:
                if instance.state is not State.DRAINING and not instance.message:
                    instance.message = f"not ready after {READY_TIMEOUT_S:.0f} s"
                yield self._kill(instance, now)

    def _drain_all(self, now: float) -> Iterator[Instruction]:
        fronts = [each for each in self._instances.values() if each.spec.is_frontend]
        for instance in fronts or list(self._instances.values()):
            yield from self._stop(instance, now)

    def _replace_and_start(self, now: float) -> Iterator[Instruction]:
        moving = {spec.stage for spec in self._desired.values() if self._in_replacement(spec)}
        for spec in self._desired.values():
            fresh, old = self._fresh(spec), self._old(spec)
            if fresh is not None:
                if fresh.state is State.READY:
                    for instance in old:
                        moving.add(spec.stage)
                        yield from self._stop(instance, now)
                continue
            slot = self._slots[spec.name]
            if slot.given_up:
                continue
            serving = any(each.state is State.READY for each in old)
            if serving and spec.stage in moving:
                continue  # one replica of a stage at a time
            clash = self._holder(spec)
            if serving and (clash is None or clash in old):
                moving.add(spec.stage)
            if not serving or clash in old:
                for instance in old:
                    yield from self._stop(instance, now)
            if clash is None and slot.not_before <= now:
                yield self._start(spec, now)

    def _drain_surplus(self, now: float) -> Iterator[Instruction]:
        """Stop what the plan no longer has; whole stages only once the stages that take over are ready."""
        stages = {spec.stage for spec in self._desired.values()}
        unready = [
            spec
            for spec in self._desired.values()
            if not spec.is_frontend and not self._settled(spec) and not self._slots[spec.name].given_up
        ]
        arriving = {
            spec.stage
            for spec in unready
            if not any(self._settled(other) for other in self._desired.values() if other.stage == spec.stage)
        }
        for instance in list(self._instances.values()):
            gone = instance.spec.name not in self._desired
            waits = instance.spec.stage not in stages and arriving and instance.state is State.READY
            waits = waits and not any(spec.exclusive & instance.spec.exclusive for spec in unready)
            if gone and (not waits or instance.spec.is_frontend):
                yield from self._stop(instance, now)

    def _in_replacement(self, spec: ProcessSpec) -> bool:
        fresh = self._fresh(spec)
        unready = fresh is not None and fresh.state is not State.READY
        leaving = any(
            each.state is State.DRAINING for each in self._instances.values() if each.spec.name == spec.name
        )
        return leaving or (unready and bool(self._old(spec)))

    def _fresh(self, spec: ProcessSpec) -> Instance | None:
        """The process that is what the plan wants."""
        return next((each for each in self._active(spec.name) if each.spec == spec), None)

    def _old(self, spec: ProcessSpec) -> list[Instance]:
        return [each for each in self._active(spec.name) if each.spec != spec]

    def _active(self, name: str) -> Iterator[Instance]:
        for each in self._instances.values():
            if each.spec.name == name and each.state is not State.DRAINING:
                yield each

    def _holder(self, spec: ProcessSpec) -> Instance | None:
        """Who still holds what ``spec`` needs for itself alone."""
        return next((each for each in self._instances.values() if each.spec.exclusive & spec.exclusive), None)

    # -- orders

    def _start(self, spec: ProcessSpec, now: float) -> StartProcess:
        self._numbers += 1
        self._instances[self._numbers] = Instance(
            number=self._numbers, spec=spec, state=State.STARTING, since=now, deadline=now + READY_TIMEOUT_S
        )
        return StartProcess(instance=self._numbers, spec=spec)

    def _stop(self, instance: Instance, now: float) -> Iterator[StopProcess]:
        if instance.state is not State.DRAINING:
            instance.state = State.DRAINING
            instance.deadline = now + instance.spec.grace_s
            yield StopProcess(instance=instance.number)

    def _kill(self, instance: Instance, now: float) -> KillProcess:
        instance.deadline = now + KILL_AGAIN_S
        if self._stopping:
            instance.state = State.DRAINING
        return KillProcess(instance=instance.number)

    def _next_deadline(self, now: float) -> float | None:
        times = [each.deadline for each in self._instances.values() if each.deadline < inf]
        if not self._stopping:
            times += [
                slot.not_before
                for name, slot in self._slots.items()
                if name in self._desired and slot.not_before > now and not slot.given_up
            ]
        return min(times, default=None)
