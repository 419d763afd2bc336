"""Tools for talking to the fabric from outside, and a check that no socket or task is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import tokenmill
from tokenmill.serve.fabric.codec import FrameCodec
from tokenmill.serve.fabric.frames import VERSION, Hello
from tokenmill.serve.fabric.streams import ServerStream, StreamConnection, StreamLimits, StreamServer

WAIT_S = 5.0


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """Compare this process's open sockets before and after (an event loop's own pair has no name)."""

    def sockets() -> set[str]:
        found = psutil.Process().net_connections("all")
        return {f"{entry.fd} {entry.laddr} {entry.raddr}" for entry in found if entry.laddr or entry.raddr}

    before = sockets()
    yield
    if not sockets() <= before:
        gc.collect()
        assert sockets() <= before, "sockets left open"


@dataclass
class Reader:
    """What a client heard on one stream."""

    items: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def on_end(self, error: BaseException | None) -> None:
        self.ends.append(error)
        self.ended.set()

    async def wait(self) -> BaseException | None:
        """Return what the stream ended with."""
        async with asyncio.timeout(WAIT_S):
            await self.ended.wait()
        assert len(self.ends) == 1
        return self.ends[0]


@pytest.fixture
def reader() -> type[Reader]:
    return Reader


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Any]:
    """Wait until a condition holds, with a deadline."""
    return _until


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a server can listen, of both kinds."""
    if request.param == "tcp":
        return "tcp://127.0.0.1:0"
    return f"unix:{tmp_path_factory.mktemp('s')}/s"


@dataclass
class Pair:
    """A server and a client connected to it. Calls are texts, items are lists of ints."""

    server: StreamServer[str, list[int]]
    client: StreamConnection[str, list[int]]
    streams: list[ServerStream[str, list[int]]]
    lost: list[BaseException]

    def open(self, call: str = "call") -> tuple[Any, Reader]:
        reader = Reader()
        return self.client.open(call, reader.items.append, reader.on_end), reader

    async def open_served(self, call: str = "call") -> tuple[Any, Reader, ServerStream[str, list[int]]]:
        before = len(self.streams)
        stream, reader = self.open(call)
        await _until(lambda: len(self.streams) > before)
        return stream, reader, self.streams[before]


@pytest.fixture
def pair(address: str) -> Any:
    """``async with pair(limits=…, merge=…) as p``."""

    @asynccontextmanager
    async def make(
        limits: StreamLimits | None = None, client_limits: StreamLimits | None = None, **options: Any
    ) -> AsyncIterator[Pair]:
        streams: list[ServerStream[str, list[int]]] = []
        lost: list[BaseException] = []
        on_open = options.pop("on_open", streams.append)
        server = StreamServer[str, list[int]](str, list[int], on_open, limits=limits, **options)
        bound = await server.start(address)
        client = await StreamConnection[str, list[int]].connect(
            bound, str, list[int], on_lost=lost.append, limits=client_limits or limits
        )
        try:
            yield Pair(server, client, streams, lost)
        finally:
            await client.close()
            await server.close(0)
            assert len(asyncio.all_tasks()) == 1, "tasks left behind"

    return make


class RawPeer:
    """One end of a connection that says what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.codec = FrameCodec[str, list[int]](str, list[int])

    def say(self, *frames: Any) -> None:
        self.writer.write(b"".join(self.codec.encode(frame) for frame in frames))

    def hello(self, version: int = VERSION, window: int = 256) -> None:
        self.say(Hello(version, "raw", window))

    async def hear(self) -> list[Any]:
        """Return the frames of the next read; an empty list at the end of the connection."""
        async with asyncio.timeout(WAIT_S):
            try:
                data = await self.reader.read(65536)
            except ConnectionError:
                return []
        return self.codec.feed(data) if data else []

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@pytest.fixture
def raw_client() -> Any:
    """``async with raw_client(address) as peer``."""

    @asynccontextmanager
    async def make(address: str) -> AsyncIterator[RawPeer]:
        if address.startswith("unix:"):
            streams = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        else:
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            streams = await asyncio.open_connection(host, int(port))
        peer = RawPeer(*streams)
        try:
            yield peer
        finally:
            await peer.close()

    return make


@pytest.fixture
def raw_server(tmp_path: Path) -> Any:
    """``async with raw_server(act) as address``; ``act(peer)`` runs for one connection, which then closes."""

    @asynccontextmanager
    async def make(act: Callable[[RawPeer], Any]) -> AsyncIterator[str]:
        tasks: list[asyncio.Task[Any]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(asyncio.current_task())
            peer = RawPeer(reader, writer)
            try:
                await act(peer)
            finally:
                await peer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return make


@dataclass
class PeerProcess:
    """A process of ``peer_process.py``."""

    process: asyncio.subprocess.Process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()

    def signal(self, number: int) -> None:
        psutil.Process(self.process.pid).send_signal(number)


@pytest.fixture
def peer_process() -> Any:
    """``async with peer_process("role", "argument"…) as peer``; killed at the end."""

    @asynccontextmanager
    async def make(*arguments: str) -> AsyncIterator[PeerProcess]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).parent / "peer_process.py"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(tokenmill.__file__).parent.parent)},
        )
        try:
            yield PeerProcess(process)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            async with asyncio.timeout(WAIT_S):
                await process.communicate()

    return make
