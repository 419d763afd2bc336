"""One process of the operating system: started, listened to, and seen off.

The child gets two pipes. ``--parent-fd`` reaches its end when the supervisor has died, however it died;
``--ready-fd`` takes one line of JSON. Each child leads a session of its own: Ctrl-C does not reach it, and a
kill takes what it started along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tokenmill.operate.deploy.lines import LineSplitter
from tokenmill.operate.deploy.plant import ProcessExited, ProcessFailed, ProcessReady

MAX_REPORT_BYTES: Final = 64 * 1024
"""Readiness is one short line; a child that writes more is not heard out."""

_CHUNK_BYTES: Final = 64 * 1024
_ERROR_PREFIX: Final = "tokenmill: error: "


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """Who is told; all are called on the event loop's thread."""

    on_line: Callable[[str], None]
    on_report: Callable[[ProcessReady | ProcessFailed], None]
    on_exit: Callable[[ProcessExited], None]


class Child:
    """A running process. Raises OSError from the constructor if it cannot be started."""

    def __init__(
        self,
        instance: int,
        argv: Callable[[int], Sequence[str]],
        *,
        parent_fd: int,
        environment: Mapping[str, str],
        cpus: Sequence[int],
        listeners: Listeners,
    ) -> None:
        """``argv``: gives the command for the number of the readiness pipe."""
        self._instance = instance
        self._listeners = listeners
        self._lines = LineSplitter()
        self._report = b""
        self._last_words = ""
        self._ready_fd, ready_end = os.pipe()
        try:
            with pinned(cpus):
                self._process = subprocess.Popen(  # noqa: S603  our own command
                    list(argv(ready_end)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    pass_fds=(parent_fd, ready_end),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._ready_fd)
            raise
        finally:
            os.close(ready_end)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._listen()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for fd, callback in ((self._ready_fd, self._on_report), (self._output.fileno(), self._on_output)):
            os.set_blocking(fd, False)
            loop.add_reader(fd, callback)
        self._exit_fd: int | None = None
        self._exit_wait: asyncio.Future[object] | None = None
        if hasattr(os, "pidfd_open"):
            self._exit_fd = os.pidfd_open(self.pid)
            loop.add_reader(self._exit_fd, self._on_exit)
        else:  # no pidfd (macOS): a thread waits, leaving the exit status for us to collect
            how = os.WEXITED | os.WNOWAIT
            self._exit_wait = loop.run_in_executor(None, os.waitid, os.P_PID, self.pid, how)
            self._exit_wait.add_done_callback(lambda _: self._on_exit())

    def terminate(self) -> None:
        """Ask it to drain and exit."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all of its session's group at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Until the exit is collected in _on_exit the pid stays ours, so no stranger can be hit.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number is signal.SIGKILL:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)

    def _on_report(self) -> None:
        data = _read(self._ready_fd)
        if data is None:
            return
        self._report += data
        line, newline, _ = self._report.partition(b"\n")
        if newline:
            self._hear(line)
        if newline or not data or len(self._report) > MAX_REPORT_BYTES:
            self._close_report()

    def _hear(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line, type=dict[str, object])
        except msgspec.MsgspecError:
            said = {"ready": False, "error": "said something odd about its readiness"}
        if said.pop("ready", False):
            self._listeners.on_report(ProcessReady(instance=self._instance, info=said))
        else:
            message = str(said.get("error") or "failed to start")
            fault = bool(said.get("fatal"))
            self._listeners.on_report(
                ProcessFailed(instance=self._instance, message=message, config_fault=fault)
            )

    def _close_report(self) -> None:
        if self._ready_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._ready_fd)
            os.close(self._ready_fd)
            self._ready_fd = -1

    def _on_output(self) -> None:
        data = _read(self._output.fileno())
        if data:
            self._tell(self._lines.feed(data))
        elif data is not None:
            asyncio.get_running_loop().remove_reader(self._output.fileno())

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            if line.strip() and not (self._last_words.startswith(_ERROR_PREFIX) and line.startswith(" ")):
                self._last_words = line
            self._listeners.on_line(line)

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        if self._exit_fd is not None:
            loop.remove_reader(self._exit_fd)
            os.close(self._exit_fd)
        # What it started must not outlive it. It is not yet collected, so the group's number is still ours.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._ready_fd >= 0:
            self._on_report()
        self._close_report()
        while data := _read(self._output.fileno()):
            self._tell(self._lines.feed(data))
        self._tell(self._lines.end())
        loop.remove_reader(self._output.fileno())
        self._output.close()
        code = self._process.wait()
        words = self._last_words.strip().removeprefix(_ERROR_PREFIX)
        self._listeners.on_exit(ProcessExited(instance=self._instance, code=code, message=words))


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Let what is started inside inherit ``cpus``: it is bound before its first instruction, unlike a binding
    from outside afterwards. Raises OSError for cores that are not there."""
    if not cpus or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _read(fd: int) -> bytes | None:
    """Read what is there: empty at the end, None where nothing waits."""
    try:
        return os.read(fd, _CHUNK_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
