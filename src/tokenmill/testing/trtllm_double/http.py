"""HTTP/1.1 for the double: whole requests in, whole or streamed answers out. It must not know what they
mean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec


class Request:
    """A request. ``gone`` is true once the client has closed its connection."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, answer: Answer) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.answer = answer


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


class HttpServer:
    """``start`` it, ``stop`` it. Connections are bounded by those whom the test lets connect."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Cancelled: call ``stop``."""
        self._server = await asyncio.start_server(self._accept, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and break all connections."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection. Cancelled: it is broken."""
        try:
            while (request := await _read(reader, writer)) is not None:
                await self._handler(request)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """Return the next request; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body, Answer(reader, writer))
