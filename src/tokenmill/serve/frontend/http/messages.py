"""What a handler sees of HTTP: a request in, a response or a stream out.

Exists so that handlers never touch sockets or bytes on the wire. Knows nothing of parsing or of routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a client may ask of the server's memory and patience."""

    max_head_bytes: int = 32 * 1024
    """Largest request line plus headers as they are sent; larger is answered with 431. Trailers and chunk
    extensions of a request together have the same limit."""

    max_headers: int = 100
    """Most headers; more are answered with 431."""

    max_target_bytes: int = 8 * 1024
    """Longest request target (path and query); a longer one is answered with 414."""

    max_body_bytes: int = 8 * 1024 * 1024
    """Largest body; larger is answered with 413."""

    max_connections: int = 4096
    """Most open connections; a further one is answered with 503 and closed."""

    max_pipelined: int = 8
    """Requests waiting behind the one being served on a connection before we stop reading from it."""

    idle_timeout_s: float = 75.0
    """How long a connection may be silent between requests."""

    header_timeout_s: float = 20.0
    """How long a request's head may take to arrive, first byte to last; then 408."""

    read_timeout_s: float = 60.0
    """How long a whole request may take to arrive, first byte to last; then 408."""

    write_timeout_s: float = 60.0
    """How long a client may leave our bytes unread before it is dropped."""

    max_buffered_bytes: int = 512 * 1024 * 1024
    """Bytes of bodies that are arriving or waiting, over all connections; above it the largest are refused
    with 503. Looked at once a second."""

    write_high_bytes: int = 64 * 1024
    """Unsent bytes above which a stream is paused; as many may wait in the kernel."""


@dataclass(slots=True, eq=False)
class Request:
    """One parsed request. Header names are lower case; repeated headers are joined with ", "."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool
    chunked_ok: bool
    """The client speaks HTTP/1.1, so that a stream can be chunked and the connection kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """A whole answer. ``headers``: beside Content-Type, Content-Length, Date and Connection."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class StreamSink(Protocol):
    """Where a stream's bytes go."""

    def write(self, data: bytes) -> None:
        """Send ``data`` (never empty) now."""
        ...

    def end(self, last: bytes = b"") -> None:
        """Send ``last``, if there is anything; the answer is complete with it. Called at most once, and
        nothing is written after it."""
        ...


class StreamSource(Protocol):
    """What makes a stream's bytes."""

    def attach(self, sink: StreamSink) -> None:
        """The head is on its way: write from now on, beginning with what has been held back."""
        ...

    def pause(self) -> None:
        """The client reads too slowly: make as little as possible until ``resume``."""
        ...

    def resume(self) -> None:
        """The client has caught up."""
        ...

    def gone(self) -> None:
        """The client is gone: stop. No ``end`` is wanted."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """An answer of unknown length, with status 200."""

    source: StreamSource
    content_type: str = "text/event-stream; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    probe: bytes = b":\n\n"
    """What may stand between two writes and means nothing (a comment of server-sent events): sent to a client
    that has closed its sending side, to learn whether it still reads. Empty: such a client counts as gone."""


Answer = Response | Stream
Handler = Callable[[Request], Awaitable[Answer]]


class HttpError(Exception):
    """The peer's bytes cannot be served. The connection is closed after the answer."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
