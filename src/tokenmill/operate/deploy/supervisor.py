"""The shell around ``Supervision``: carries its orders out with real processes and tells it what happened.

It decides nothing. One supervisor runs one factory on this machine and answers the commands about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy.child import Child, Listeners
from tokenmill.operate.deploy.control import ControlReply, ControlRequest, PlantStatus, control_server
from tokenmill.operate.deploy.display import Display
from tokenmill.operate.deploy.flags import to_argv, to_environment, with_threads
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
    SetTimer,
    StartProcess,
    State,
    StopAsked,
    StopProcess,
    TimerFired,
    held_gpus,
    process_specs,
)
from tokenmill.operate.deploy.shared_port import PortReservation, can_share_ports
from tokenmill.operate.deploy.state import StateFolder, SupervisorRecord
from tokenmill.operate.deploy.supervision import Supervision
from tokenmill.spec.derive import names_of_models, scaled
from tokenmill.spec.factory import Factory
from tokenmill.spec.load import dump_factory, parse_factory
from tokenmill.spec.process import FrontendConfig, ProcessConfig

ArgvBuilder = Callable[[ProcessConfig], Sequence[str]]

_REAP_S: Final = 10.0
"""How long a killed process may take to vanish before it is left to the operating system."""

_HOPELESS: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EINVAL})
"""No such program, not allowed, no such core: trying again will not help."""


class Supervisor:
    """Runs one factory until it is asked to stop or cannot start."""

    def __init__(
        self,
        factory: Factory,
        state: StateFolder,
        *,
        clock: Clock,
        display: Display,
        environment: Mapping[str, str],
        argv: ArgvBuilder = to_argv,
    ) -> None:
        """``argv``: turns a process's config into the command that starts it."""
        self._factory = factory
        self._state = state
        self._clock = clock
        self._display = display
        self._environment = environment
        self._argv = argv
        self._core = Supervision()
        self._specs: tuple[ProcessSpec, ...] = ()
        self._children: dict[int, Child] = {}
        self._urls: dict[int, tuple[str, str]] = {}
        self._own_urls: dict[int, tuple[str, str]] = {}
        self._reservation: PortReservation | None = None
        self._events: deque[Event] = deque()  # emptied before control returns to the loop
        self._carrying_out = False
        self._timer: asyncio.TimerHandle | None = None
        self._stop_asked = False
        self._none_left = asyncio.Event()
        self._started = clock.wall()

    async def run(self) -> int:
        """Run the factory; returns the exit status. Raises TokenmillError if its name runs already.

        Cancelled: kills all processes.
        """
        self._finished: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()
        with self._state.held():
            self._run_dir = self._state.make_run_dir()
            self._parent_fd, parent_end = os.pipe()
            try:
                self._write_state()
                async with control_server(self._state.control, self._answer):
                    with self._signals():
                        self._change_plan(self._factory)
                        verdict = await self._finished
            finally:
                await self._end_all()
                os.close(self._parent_fd)
                os.close(parent_end)
                if self._reservation is not None:
                    self._reservation.close()
                shutil.rmtree(self._run_dir, ignore_errors=True)
                self._display.close()
        if verdict.message:
            fault = ConfigError if verdict.status == 2 else TokenmillError
            raise fault(verdict.message)
        return verdict.status

    # -- what comes in

    def _feed(self, event: Event) -> None:
        """Hand an event to the core and carry its orders out; events that these cause wait their turn."""
        self._events.append(event)
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while self._events:
                for order in self._core.handle(self._events.popleft(), self._clock.now()):
                    self._carry_out(order)
        finally:
            self._carrying_out = False
        self._display.progress(self._core.statuses())

    def _change_plan(self, factory: Factory) -> None:
        specs = process_specs(
            factory, usable_cores(), shared_port=self._shared_port(factory), held=held_gpus(self._specs)
        )
        self._factory, self._specs = factory, specs
        self._state.factory.write_text(dump_factory(factory), encoding="utf-8")
        self._feed(PlanChanged(specs=specs))

    def _shared_port(self, factory: Factory) -> int | None:
        """Return the port that is kept for all front doors; None where there is none to share."""
        front = factory.frontend
        if not front.replicas or not can_share_ports():
            return None
        if self._reservation is None or self._reservation.wanted != (front.host, front.port):
            fresh = PortReservation(front.host, front.port)
            if self._reservation is not None:
                self._reservation.close()
            self._reservation = fresh
        return self._reservation.port

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means to stay
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        self._stop(at_once=self._stop_asked)

    def _stop(self, *, at_once: bool) -> None:
        if not self._stop_asked:
            self._display.say("draining; once more to stop at once")
        self._stop_asked = True
        self._feed(StopAsked(at_once=at_once))

    def _answer(self, request: ControlRequest) -> ControlReply:
        match request.op:
            case "status":
                pass
            case "down":
                self._stop(at_once=request.at_once)
            case "apply" | "scale" if self._stop_asked:
                raise TokenmillError(f'"{self._state.name}" is stopping')
            case "apply":
                self._change_plan(parse_factory(request.factory, "factory"))
            case "scale":
                self._change_plan(scaled(self._factory, request.replicas))
            case _:
                raise ConfigError(f'no operation "{request.op}"')
        return ControlReply(status=self._status())

    def _status(self) -> PlantStatus:
        rows = self._core.statuses()
        failed = next((row for row in rows if row.state is State.FAILED), None)
        return PlantStatus(
            name=self._state.name,
            model=self._model,
            pid=os.getpid(),
            ready=self._core.ready,
            stopping=self._stop_asked or self._finished.done(),
            urls=self._sorted_urls(),
            own_urls=dict(self._own_urls.values()),
            now=self._clock.now(),
            failure=f"{failed.name}: {failed.message}" if failed else "",
            processes=rows,
        )

    # -- what goes out

    def _carry_out(self, order: Instruction) -> None:
        match order:
            case StartProcess(instance=instance, spec=spec):
                self._start(instance, spec)
            case StopProcess(instance=instance):
                if child := self._children.get(instance):
                    child.terminate()
            case KillProcess(instance=instance):
                if child := self._children.get(instance):
                    child.kill()
            case SetTimer(at=at):
                self._set_timer(at)
            case AnnounceReady():
                self._write_state()
                self._display.announce(self._sorted_urls(), self._model)
            case Finish():
                if not self._finished.done():
                    self._finished.set_result(order)

    def _start(self, instance: int, spec: ProcessSpec) -> None:
        run_dir = self._run_dir / str(instance)

        def command(ready_fd: int) -> Sequence[str]:
            placed = replace(
                with_threads(spec),
                registry=f"file://{self._state.registry}",
                run_dir=str(run_dir),
                parent_fd=self._parent_fd,
                ready_fd=ready_fd,
            )
            return self._argv(placed)

        try:
            run_dir.mkdir(mode=0o700)
            child = Child(
                instance,
                command,
                parent_fd=self._parent_fd,
                environment=to_environment(self._environment, spec),
                cpus=spec.cpus,
                listeners=self._listeners(instance, spec, run_dir),
            )
        except OSError as error:
            message = f"cannot be started: {error}"
            hopeless = error.errno in _HOPELESS
            self._feed(ProcessFailed(instance=instance, message=message, config_fault=hopeless))
            self._feed(ProcessExited(instance=instance, code=None, message=message))
            return
        self._children[instance] = child
        self._none_left.clear()
        self._feed(ProcessStarted(instance=instance, pid=child.pid))

    def _listeners(self, instance: int, spec: ProcessSpec, run_dir: Path) -> Listeners:
        def on_line(line: str) -> None:
            self._display.log(spec.name, line)

        def on_report(report: ProcessReady | ProcessFailed) -> None:
            if isinstance(report, ProcessReady) and isinstance(spec.config, FrontendConfig):
                self._urls[instance] = (spec.name, frontend_url(spec.config, report.info))
                if isinstance(own := report.info.get("own_url"), str):
                    self._own_urls[instance] = (spec.name, own)
            self._feed(report)

        def on_exit(event: ProcessExited) -> None:
            self._children.pop(instance, None)
            if not self._children:
                self._none_left.set()
            self._urls.pop(instance, None)
            self._own_urls.pop(instance, None)
            shutil.rmtree(run_dir, ignore_errors=True)
            self._feed(event)

        return Listeners(on_line=on_line, on_report=on_report, on_exit=on_exit)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, at - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._feed, TimerFired())

    async def _end_all(self) -> None:
        """Leave nothing behind, also where the supervisor itself has failed."""
        if self._timer is not None:
            self._timer.cancel()
        for child in self._children.values():
            child.kill()
        if self._children:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none_left.wait(), _REAP_S)

    # -- what it knows

    @property
    def _model(self) -> str:
        return ", ".join(names_of_models(self._factory))

    def _sorted_urls(self) -> list[str]:
        return list(dict.fromkeys(url for _, url in sorted(self._urls.values())))

    def _write_state(self) -> None:
        self._state.write_record(
            SupervisorRecord(
                name=self._state.name,
                pid=os.getpid(),
                started=self._started,
                run_dir=str(self._run_dir),
                urls=self._sorted_urls(),
            )
        )


def frontend_url(config: FrontendConfig, info: Mapping[str, object]) -> str:
    """Return where clients reach a front door: what it says itself, else what it was told."""
    if isinstance(url := info.get("url"), str):
        return url
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)  # noqa: S104  any: reach it here
    return f"http://{host}:{info.get('port', config.port)}"


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
