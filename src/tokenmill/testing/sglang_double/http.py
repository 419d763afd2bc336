"""A small HTTP server for the double: requests in, whole or streamed answers out, disconnects noticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

_HEAD_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What goes back: ``body``, or ``events``, the payloads of a server-sent stream."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    events: AsyncIterator[bytes] | None = None


def json_reply(content: object, status: int = 200) -> Reply:
    """Return an answer that is JSON."""
    return Reply(status, msgspec.json.encode(content))


class HangUp(Exception):
    """Raised by a handler or its events: close the connection as a dying server would."""


Handler = Callable[[Request], Awaitable[Reply]]


@dataclass
class HttpServer:
    """``start`` it, ``close`` it. A client that goes away cancels its handler."""

    handler: Handler
    host: str
    port: int
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._server = await asyncio.start_server(self._connected, self.host, self.port, limit=_HEAD_LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Drop everybody. Cancelled: call it again."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, HangUp):
            pass
        except asyncio.CancelledError:
            if self._server is None or self._server.is_serving():
                raise
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_request(reader)
        answering = asyncio.ensure_future(self._answer(request, writer))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return False
            answering.result()
            return not gone.done()
        finally:
            for waited in (answering, gone):
                waited.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        reply = await self.handler(request)
        head = f"HTTP/1.1 {reply.status} x\r\ncontent-type: {reply.kind}\r\n"
        if reply.events is None:
            writer.write(f"{head}content-length: {len(reply.body)}\r\n\r\n".encode() + reply.body)
            await writer.drain()
            return
        writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        async with contextlib.aclosing(reply.events) as events:  # type: ignore[type-var]
            async for payload in events:
                event = b"data: " + payload + b"\n\n"
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)
