"""HTTP/1.1 for the double: whole requests in, whole or streamed answers out. It must not know what they
mean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from tokenmill.testing.connections import Connections, read_request
from tokenmill.testing.connections import Request as Came


@dataclass(frozen=True)
class Request(Came):
    """A request, and where its answer goes."""

    answer: Answer


class Answer:
    """Where the answer goes. Send a whole one, or ``begin``, any number of ``piece`` and ``end``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.streaming = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._reader.at_eof() or self._writer.transport.is_closing()

    def whole(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """Send everything at once."""
        head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)

    def json(self, content: object, status: int = 200) -> None:
        """Send a value as JSON."""
        self.whole(status, msgspec.json.encode(content))

    def begin(self) -> None:
        """Begin a stream of events."""
        self.streaming = True
        self._writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    async def piece(self, *payloads: bytes) -> None:
        """Send events, in one go."""
        data = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    def end(self) -> None:
        """End a stream."""
        self._writer.write(b"0\r\n\r\n")

    def hang_up(self) -> None:
        """Break the connection in the middle."""
        self._writer.transport.abort()


Handler = Callable[[Request], Awaitable[None]]


class HttpServer(Connections):
    """Gives each request to ``handler``."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(self._serve_requests)
        self._handler = handler

    async def _serve_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection. Cancelled: it is dropped."""
        while True:
            came = await read_request(reader)
            answer = Answer(reader, writer)
            await self._handler(Request(came.method, came.path, came.headers, came.body, answer))
            await writer.drain()
