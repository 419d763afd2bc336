"""An engine's server as a child process: started, watched, its log passed on, ended with its whole group.

It must not know what it runs. Linux and macOS; where the kernel can, the child is told to end when this
process dies, however it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from tokenmill.errors import ConfigError, WorkerFailed

_log = structlog.get_logger(__name__)

KEPT_LINES = 200
"""Last lines of the child's log that an error message may quote."""

TERM_PATIENCE_S = 20.0
"""How long a child may take to end by itself."""

_LONGEST_LINE = 2**20

_EXCEPTION = re.compile(r"(?:^|\] )(?:\w+\.)*\w+(?:Error|Exception): ")
"""A traceback's last line, with the prefix of a logger or without one."""

_EXEC = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the worker is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Child:
    """``start`` it, wait for ``died``, ``stop`` it. ``on_line`` hears each line of its log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self._name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def pid(self) -> int:
        """The process id; 0 before ``start``."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the process. Raises ConfigError where the program cannot be run."""
        wrapped = (sys.executable, "-c", _EXEC, str(os.getpid()), *self._command)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self._environment}
        # A pipe of our own: asyncio takes a process for running as long as a grandchild holds one of its.
        read_end, write_end = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *wrapped,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            raise ConfigError(f"cannot start {self._command[0]}: {error}", param="engine_command") from error
        finally:
            os.close(write_end)
        self._reader = asyncio.create_task(self._pass_on_log(read_end), name=f"log of {self._name}")
        _log.info("engine started", engine=self._name, pid=self._process.pid)

    async def died(self) -> str:
        """Wait for the process to end and say how, with its last words. Cancelled: nothing changes."""
        assert self._process is not None
        status = await self._process.wait()
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reader), 1.0)
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"{self._name} ended with {how}{self._quote(killed=status < 0)}"

    async def stop(self) -> None:
        """End the process and all it has started. Cancelled: call it again."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), TERM_PATIENCE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._reader is not None:
            await asyncio.wait((self._reader,), timeout=1.0)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None

    async def _pass_on_log(self, read_end: int) -> None:
        """Copy lines until nobody holds the pipe any more. Cancelled: the pipe is closed."""
        reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            try:
                while line := await _line(reader):
                    text = line.decode(errors="replace").rstrip()
                    if text:
                        self._last_lines.append(text)
                        if self._on_line is not None:
                            self._on_line(text)
                        sys.stderr.write(f"[{self._name}] {text}\n")
            finally:
                transport.close()

    def _quote(self, *, killed: bool) -> str:
        """The first exception of the last lines: those that follow are of others whom it has brought down.
        Who was killed need not have said anything about it."""
        lines = list(self._last_lines)
        exceptions = [line for line in lines if _EXCEPTION.search(line)]
        others = [] if killed else [line for line in lines if "error" in line.lower()][-1:] or lines[-1:]
        telling = exceptions[:1] or others
        return f": {telling[0][-400:]}" if telling else ""


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, or a part of one that is too long; empty at the end."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await reader.readexactly(error.consumed)


def free_ports(count: int, host: str = "127.0.0.1", *, neighbours: int = 1) -> list[int]:
    """Return ports that are free now, all different; each with ``neighbours - 1`` free ones after it.

    All are held until the last is found, so that none is given twice. Raises WorkerFailed where none are.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        for _ in range(64 * count):
            first = _bound(host, 0)
            assert first is not None
            held.append(first)
            port = first.getsockname()[1]
            others = [_bound(host, port + offset) for offset in range(1, neighbours)]
            held += [other for other in others if other is not None]
            if None not in others:
                ports.append(port)
                if len(ports) == count:
                    return ports
    finally:
        for bound in held:
            bound.close()
    raise WorkerFailed(f"no {neighbours} neighbouring free ports on {host}")


def _bound(host: str, port: int) -> socket.socket | None:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError):
        bound.close()
        if port == 0:
            raise
        return None
    return bound
