"""A small HTTP/1.1 client for engines on this host or network: callbacks instead of tasks.

Exists because an engine's answer is read piece by piece on the token path: a piece goes from the socket
through the parser into the listener in one call. It must not know what the bodies mean. Plain HTTP and HTTPS;
engine is trusted to speak HTTP, not to behave: sizes of whole answers and all waits are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed, WorkerLost

CONNECT_TIMEOUT_S = 5.0
"""A connection on a host or in a data center stands in milliseconds, or not at all."""

MOST_IDLE = 256
"""Connections kept for the next request."""

MOST_BODY_BYTES = 64 * 2**20
"""Largest answer that is read as a whole; metrics of a big engine are a few hundred kilobytes."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole answer."""

    status: int
    body: bytes


class AnswerListener(Protocol):
    """Who takes an answer as it comes; exactly one ``ended`` unless cancelled."""

    def began(self, status: int) -> None:
        """The head is there."""
        ...

    def data(self, piece: bytes) -> None:
        """A piece of the body."""
        ...

    def ended(self, error: TokenmillError | None) -> None:
        """The body is complete, or it broke: ``WorkerLost``."""
        ...


class HttpClient:
    """Connections to one server, opened as they are needed and kept for the next request.

    ``base_url``: "http://host:port" or "https://...", with a path or without. Raises ConfigError for another.
    ``api_key``: sent with every request.
    """

    def __init__(self, base_url: str, *, api_key: str = "") -> None:
        parts = urlsplit(base_url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{base_url!r}: {error}", param="attach") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{base_url!r} is not an address like http://host:port", param="attach")
        self.base_url = base_url.rstrip("/")
        self.host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._common = f"host: {parts.netloc.rpartition('@')[2]}\r\n"
        if api_key:
            self._common += f"authorization: Bearer {api_key}\r\n"
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        # One a request that waits for its connection; each ends within the connect timeout.
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(
        self,
        method: str,
        path: str,
        listener: AnswerListener,
        *,
        body: bytes = b"",
        headers: Headers = (),
    ) -> HttpCall:
        """Send a request; the listener hears the answer, never before this has returned."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
        if body:
            extra += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        elif method != "GET":
            extra += "content-length: 0\r\n"
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._common}{extra}\r\n".encode()
        call = HttpCall(head + body, listener)
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.begin(call)
                return call
        self._begin_anew(call)
        return call

    async def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Headers = (), timeout_s: float
    ) -> HttpReply:
        """Return the whole answer. Raises WorkerLost. Cancelled: the connection is closed."""
        whole = _Whole()
        call = self.send(method, path, whole, body=body, headers=headers)
        try:
            async with asyncio.timeout(timeout_s):
                return await whole.reply
        except TimeoutError as error:
            raise WorkerLost(f"{self.base_url}{path} has not answered within {timeout_s:g} s") from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all connections; listeners of running requests hear ``WorkerLost``."""
        self._closed = True
        for task in tuple(self._connecting):
            task.cancel()
        if self._connecting:
            await asyncio.wait(tuple(self._connecting))
        waits = [connection.close() for connection in tuple(self._open)]
        if waits:
            await asyncio.wait([asyncio.ensure_future(wait) for wait in waits])

    def _begin_anew(self, call: HttpCall) -> None:
        """Send on a new connection."""
        task = asyncio.get_running_loop().create_task(self._connect(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, call: HttpCall) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self.host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            call.lost(WorkerLost(f"cannot connect to {self.base_url}: {error or 'no answer in time'}"))
            return
        except asyncio.CancelledError:
            call.lost(WorkerLost(f"{self.base_url}: the client is closing"))
            raise
        self._open.add(connection)
        if call.over:
            self.released(connection)
        else:
            connection.begin(call)

    def released(self, connection: _Connection) -> None:
        """A connection is free."""
        if self._closed or len(self._idle) >= MOST_IDLE:
            connection.abort()
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection, call: HttpCall | None, why: str) -> None:
        """A connection is gone, and the answer it was to bring with it.

        A server may close a kept connection just when it is used again: the request is sent once more then.
        """
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if call is None or call.over:
            return
        call.connection = None
        if connection.requests > 1 and not connection.heard and not self._closed:
            self._begin_anew(call)
        else:
            call.lost(WorkerLost(why))


class HttpCall:
    """A request under way."""

    def __init__(self, data: bytes, listener: AnswerListener) -> None:
        self.data = data
        self.listener = listener
        self.over = False
        self.connection: _Connection | None = None

    def cancel(self) -> None:
        """Stop it: the server sees its connection close. The listener hears nothing any more."""
        if not self.over:
            self.over = True
            if self.connection is not None:
                self.connection.abort()

    def lost(self, error: WorkerLost) -> None:
        """No answer will come."""
        if not self.over:
            self.over = True
            self.listener.ended(error)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. The parser calls ``on_*``."""

    def __init__(self, client: HttpClient) -> None:
        self.requests = 0
        self.heard = False
        """Bytes came since the last request was sent."""
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._call: HttpCall | None = None
        self._complete = False
        self._reusable = False
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, call: HttpCall) -> None:
        assert self._transport is not None
        self._call = call
        call.connection = self
        self.requests += 1
        self.heard = self._complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(call.data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        self.abort()
        await self._gone

    # asyncio ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the engine's answer is no HTTP: {error}")
        else:
            if self._complete:
                self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._gone.done():
            self._gone.set_result(None)
        self._fail(f"the connection to the engine broke: {exc or 'it was closed'}")

    # httptools ----------------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        if self._call is not None and not self._call.over:
            self._call.listener.began(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._call is not None and not self._call.over:
            self._call.listener.data(body)

    def on_message_complete(self) -> None:
        self._complete = True
        self._reusable = self._parser.should_keep_alive()  # the parser forgets it with the next message

    def _finish(self) -> None:
        call, self._call = self._call, None
        if self._reusable and self.usable:
            self._client.released(self)
        else:
            self.abort()
        if call is not None and not call.over:
            call.over = True
            call.connection = None
            call.listener.ended(None)

    def _fail(self, why: str) -> None:
        call, self._call = self._call, None
        self.abort()
        self._client.lost(self, call, why)


class _Whole:
    """Gathers an answer."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[HttpReply] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._pieces: list[bytes] = []  # bounded by MOST_BODY_BYTES
        self._size = 0

    def began(self, status: int) -> None:
        self._status = status

    def data(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= MOST_BODY_BYTES:
            self._pieces.append(piece)

    def ended(self, error: TokenmillError | None) -> None:
        if self.reply.done():
            return
        if error is not None:
            self.reply.set_exception(error)
        elif self._size > MOST_BODY_BYTES:
            self.reply.set_exception(WorkerFailed(f"the answer is larger than {MOST_BODY_BYTES} bytes"))
        else:
            self.reply.set_result(HttpReply(self._status, b"".join(self._pieces)))


DONE = b"[DONE]"
"""The payload after which OpenAI's streams say nothing more."""


class EventStream:
    """Bytes of a server-sent event stream to the payloads of its events, for any split of the input.

    Only ``data`` lines matter here; what an engine sends on several lines is joined by newlines, as the
    standard says. ``limit``: most bytes of one event.
    """

    def __init__(self, limit: int = 16 * 2**20) -> None:
        self._rest = b""
        self._limit = limit

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the payloads that ``piece`` completed. Raises WorkerFailed for an event above the limit."""
        data = self._rest + piece if self._rest else piece
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        events = data.split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > self._limit:
            raise WorkerFailed(f"the engine sent an event of more than {self._limit} bytes")
        return [payload for event in events if (payload := _payload(event.split(b"\n"))) is not None]


def _payload(lines: Iterable[bytes]) -> bytes | None:
    payloads = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return b"\n".join(payloads) if payloads else None
