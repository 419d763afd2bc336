"""How commands talk to a running supervisor: one line of JSON there, one line back, over a Unix socket.

Knows nothing of what the requests mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy.plant import ProcessStatus
from tokenmill.operate.deploy.state import StateFolder, short_path

MAX_LINE_BYTES: Final = 2 * 1024 * 1024
"""A factory file has at most 1 MiB, and a status line some hundred bytes a process."""

MAX_CONNECTIONS: Final = 32
"""People type commands; more at once is a fault, and is refused."""

DEADLINE_S: Final = 10.0
"""An exchange is a matter of milliseconds; after this both sides give up."""

FAREWELL_S: Final = 0.5
"""How long the last answers may take after the factory has stopped."""


class ControlRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``op``: status, apply (with ``factory``, YAML), scale (with ``replicas``), down."""

    op: str
    factory: str = ""
    replicas: dict[str, int] = {}
    at_once: bool = False


class PlantStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor says of its factory. ``now``: its clock, which ``since`` of the processes is on.

    ``own_urls``: where one of several front doors can be reached for itself, by process name.
    ``failure``: the first process that was given up, and why.
    """

    name: str
    model: str
    pid: int
    ready: bool
    stopping: bool
    urls: list[str]
    own_urls: dict[str, str] = {}
    now: float
    failure: str
    processes: list[ProcessStatus]


class ControlReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``error``: why not, empty if done; ``usage``: and whether what was asked for is at fault."""

    error: str = ""
    usage: bool = False
    status: PlantStatus | None = None


Handler = Callable[[ControlRequest], ControlReply]


@contextlib.asynccontextmanager
async def control_server(path: Path, handler: Handler) -> AsyncIterator[None]:
    """Serve ``handler`` at ``path`` while inside."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            if len(tasks) <= MAX_CONNECTIONS:
                await _exchange(reader, writer, handler)
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    listener = _listen(path)
    server = await asyncio.start_unix_server(serve, sock=listener, limit=MAX_LINE_BYTES)
    try:
        yield
    finally:
        server.close()
        await _finish(tasks)
        _remove(path)


async def _finish(tasks: set[asyncio.Task[None]]) -> None:
    """Let answers that are being written go out, then end what is left."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=FAREWELL_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with short_path(path) as address:
            listener.bind(address)
        path.chmod(0o600)
    except BaseException:
        listener.close()
        raise
    return listener


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
    """Answer one request. Ends silently if the other side is gone, slow or sends too much."""
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(DEADLINE_S):
            line = await reader.readline()
            if not line:
                return
            try:
                reply = handler(msgspec.json.decode(line, type=ControlRequest))
            except msgspec.MsgspecError as error:
                reply = ControlReply(error=f"not a request: {error}", usage=True)
            except TokenmillError as error:
                reply = ControlReply(error=error.message, usage=isinstance(error, ConfigError))
            writer.write(msgspec.json.encode(reply) + b"\n")
            await writer.drain()


def ask(state: StateFolder, request: ControlRequest) -> ControlReply:
    """Send one request to the factory's supervisor and return the answer, for commands without a loop.

    Raises TokenmillError if it does not run or does not answer; ConfigError or TokenmillError if it refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(DEADLINE_S)
            with short_path(state.control) as address:
                connection.connect(address)
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE_BYTES)
            reply = msgspec.json.decode(line, type=ControlReply)
    except (FileNotFoundError, ConnectionRefusedError):
        raise TokenmillError(f'"{state.name}" is not running; see: tokenmill status') from None
    except (OSError, msgspec.MsgspecError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise TokenmillError(f'"{state.name}" does not answer ({reason}); see {state.log}') from None
    if reply.error:
        raise (ConfigError if reply.usage else TokenmillError)(reply.error)
    return reply
