"""The commands about a factory on this machine. Each returns an exit status or raises TokenmillError."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Final

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy.control import ControlRequest, PlantStatus, ask
from tokenmill.operate.deploy.display import Display, make_display
from tokenmill.operate.deploy.flags import parse_pairs
from tokenmill.operate.deploy.preflight import check_place, grounded
from tokenmill.operate.deploy.quick import ServeOptions, quick_factory
from tokenmill.operate.deploy.state import StateFolder, state_folders, state_root
from tokenmill.operate.deploy.supervision import READY_TIMEOUT_S
from tokenmill.operate.deploy.supervisor import Supervisor
from tokenmill.spec.factory import Factory
from tokenmill.spec.load import dump_factory, load_factory

_POLL_S: Final = 0.1
_FILE_SUFFIXES: Final = (".yaml", ".yml", ".json")


def serve(options: ServeOptions) -> int:
    """Run a factory made from flags in the foreground until it is told to stop."""
    factory = grounded(quick_factory(options), Path.cwd())
    state = folder_of(factory.metadata.name)
    if not state.running:  # if it is, the lock says so better than the port
        check_place(factory)
    return _run(factory, state, make_display())


def up(path: Path, *, foreground: bool = False, log_file: Path | None = None) -> int:
    """Bring a factory file up; where its name is up already, apply the difference."""
    factory = grounded(load_factory(path), path.absolute().parent)
    state = folder_of(factory.metadata.name)
    if state.running and not foreground:
        check_place(factory, ports=False)
        ask(state, ControlRequest(op="apply", factory=dump_factory(factory)))
        return _announce(_wait_ready(state))
    check_place(factory)
    if foreground:
        return _run(factory, state, make_display(log_file))
    pid, log_start = _start_detached(path, state)
    return _announce(_wait_ready(state, pid=pid, log_start=log_start))


def down(target: str | None, *, at_once: bool = False) -> int:
    """Drain a factory and wait until it is gone."""
    state = _running(target)
    deadline = SystemClock().now() + _drain_time_s(state)
    ask(state, ControlRequest(op="down", at_once=at_once))
    display = make_display()
    try:
        while state.running:
            if SystemClock().now() > deadline:
                raise TokenmillError(f'"{state.name}" is still draining; end it with: tokenmill down --now')
            with contextlib.suppress(TokenmillError):  # it may end between the two lines
                display.progress(_status(state).processes)
            time.sleep(_POLL_S)
    finally:
        display.close()
    sys.stdout.write(f"{state.name} is down\n")
    return 0


def scale(target: str, stages: tuple[str, ...]) -> int:
    """Change numbers of replicas, and wait until all are there."""
    replicas: dict[str, int] = {}
    for name, number in parse_pairs(stages, "STAGE=N").items():
        if not number.isdecimal():
            raise ConfigError(f'STAGE=N: "{name}={number}": N must be a whole number, 0 or more')
        replicas[name] = int(number)
    if not replicas:
        raise ConfigError("STAGE=N: name at least one stage, for example decode=2")
    state = _running(target)
    ask(state, ControlRequest(op="scale", replicas=replicas))
    return _announce(_wait_ready(state))


def folder_of(name: str) -> StateFolder:
    """The state folder of a factory name."""
    return StateFolder(state_root(os.environ), name)


def running_folders() -> list[StateFolder]:
    """All factories that run here."""
    return [state for state in state_folders(state_root(os.environ)) if state.running]


def named(target: str) -> StateFolder:
    """The state folder of a factory's name, or of the name in a factory file."""
    if target.endswith(_FILE_SUFFIXES):
        return folder_of(load_factory(Path(target)).metadata.name)
    if "/" in target or target.startswith("."):
        raise ConfigError(f'"{target}" is neither a factory\'s name nor a factory file (.yaml)')
    return folder_of(target)


def _running(target: str | None) -> StateFolder:
    if target is not None:
        state = named(target)
        if not state.running:
            raise TokenmillError(f'"{state.name}" is not running; see what is with: tokenmill status')
        return state
    states = running_folders()
    if not states:
        raise TokenmillError("nothing is running here")
    if len(states) > 1:
        raise ConfigError(f"name one of: {', '.join(state.name for state in states)}")
    return states[0]


def _run(factory: Factory, state: StateFolder, display: Display) -> int:
    async def run() -> int:
        supervisor = Supervisor(
            factory, state, clock=SystemClock(), display=display, environment=dict(os.environ)
        )
        return await supervisor.run()

    return asyncio.run(run())


def _start_detached(path: Path, state: StateFolder) -> tuple[int, int]:
    """Start the supervisor in a session of its own; returns its pid and where its part of the log begins."""
    try:
        state.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        log_start = state.log.stat().st_size if state.log.exists() else 0
    except OSError as error:
        raise TokenmillError(
            f"state folder {state.path}: {error.strerror}; set TOKENMILL_STATE_DIR to one you can write"
        ) from None
    flags = ["--foreground", "--log-file", str(state.log)]
    argv = [sys.executable, "-m", "tokenmill", "up", str(path.absolute()), *flags]
    how = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(state.log), how, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(sys.executable, argv, dict(os.environ), file_actions=actions, setsid=True)
    return pid, log_start


def _wait_ready(state: StateFolder, *, pid: int | None = None, log_start: int = 0) -> PlantStatus:
    """Wait until all is ready, showing progress. ``pid``: the supervisor, if it was started just now."""
    clock = SystemClock()
    deadline = clock.now() + READY_TIMEOUT_S
    display = make_display()
    try:
        while clock.now() < deadline:
            if pid is not None and os.waitpid(pid, os.WNOHANG)[0] == pid:
                raise _died(state, log_start)
            if state.control.exists():
                status = _status_soon(state)
                if status is not None:
                    display.progress(status.processes)
                    if status.failure:
                        raise TokenmillError(f"{status.failure}; see {state.log}")
                    if status.ready:
                        return status
            elif pid is None and not state.running:
                raise _died(state, log_start)
            time.sleep(_POLL_S)
    finally:
        display.close()
    raise TokenmillError(f"{state.name} is not ready after {READY_TIMEOUT_S:.0f} s; see {state.log}")


def _status(state: StateFolder) -> PlantStatus:
    status = ask(state, ControlRequest(op="status")).status
    assert status is not None
    return status


def _status_soon(state: StateFolder) -> PlantStatus | None:
    """Ask for the status; None while the supervisor is coming or going."""
    with contextlib.suppress(TokenmillError):
        return _status(state)
    return None


def _died(state: StateFolder, log_start: int) -> TokenmillError:
    """Say why the detached supervisor ended, in its own words from the log."""
    prefix = "tokenmill: error: "
    words: list[str] = []
    with contextlib.suppress(OSError), state.log.open(encoding="utf-8", errors="replace") as file:
        file.seek(log_start)
        words = [line.removeprefix(prefix).rstrip() for line in file if line.startswith(prefix)]
    return TokenmillError("\n".join(words[-10:]) or f"the supervisor ended; see {state.log}")


def _announce(status: PlantStatus) -> int:
    make_display().announce(status.urls, status.model)
    return 0


def _drain_time_s(state: StateFolder) -> float:
    """How long a drain of this factory may take: front doors, then workers, then some seconds for kills."""
    slack_s = 30.0
    with contextlib.suppress(ConfigError):
        factory = load_factory(state.factory)
        workers_s = max((stage.drain_timeout_s for stage in factory.stages), default=0.0)
        return factory.frontend.drain_timeout_s + workers_s + slack_s
    return 2 * 60.0 + slack_s
