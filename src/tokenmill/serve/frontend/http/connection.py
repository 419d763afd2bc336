"""One client connection: parser events in, answers out, in order.

Exists to join the sans-I/O parser with an asyncio transport. It must not know routes or what answers mean.
Time is checked from outside by one sweep for all connections, so that no request costs a timer.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import structlog

from tokenmill.serve.frontend.http import wire
from tokenmill.serve.frontend.http.messages import Answer, HttpError, Request, Response, Stream
from tokenmill.serve.frontend.http.parser import ParserEvent, RequestParser

if TYPE_CHECKING:
    from tokenmill.serve.frontend.http.server import HttpServer

_log = structlog.get_logger(__name__)

_LINGER_S = 2.0
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_PROBE_S = 0.02
"""How long after a probe its answer is looked for first; a client farther away is seen by the next sweep."""

_QUEUE_HIGH_BYTES = 256 * 1024
"""Bodies waiting behind the request being served above which we stop reading."""


class Connection(asyncio.Protocol):
    """Serves one request at a time; pipelined ones wait in ``_queue``, bounded by one read of the socket
    beyond ``max_pipelined`` requests or ``_QUEUE_HIGH_BYTES``, where reading stops."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = RequestParser(server.limits)
        self._queue: deque[ParserEvent] = deque()
        self._queued_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._request: Request | None = None
        self._closing = False
        self._reading = True
        self._chunked = False
        self._head = b""  # of a stream that has not written yet
        self._half_closed = False
        self._probe: asyncio.TimerHandle | None = None
        self._idle_since = self._read_since = server.now()
        self._stalled_since: float | None = None
        self._lingering_since: float | None = None
        self._closing_since: float | None = None

    # asyncio.Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or answer 503 when there are too many."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=self._server.limits.write_high_bytes)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _NOTSENT_LOWAT is not None:
                # Else the kernel takes megabytes for a client that does not read, and we feel it too late.
                raw.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, self._server.limits.write_high_bytes)
        if self._server.admit(self):
            return
        if self._server.turn_away(self):
            self._refuse(wire.unavailable("too many open connections; try again later"))
        else:
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, queue what is complete, and serve if nothing is being served."""
        if self._closing:
            return
        was_reading = self._parser.in_message
        events = self._parser.feed(data)
        if self._parser.in_message and (not was_reading or events):
            self._read_since = self._server.now()
        if events:
            self._queue.extend(events)
            if self._request is None:
                self._advance()
            if self._queue:
                self._queued_bytes = sum(len(each.body) for each in self._queue if isinstance(each, Request))
                if self._reading and self._queue_full():
                    self._set_reading(False)

    def eof_received(self) -> bool:
        """The client has sent all it will. It may have closed one way only and wait for its answer, or be
        gone: what is written next shows it. Returns True to keep the connection."""
        self._half_closed = True
        if self._closing or not self.busy or self._transport is None or not self._transport.can_write_eof():
            return False  # TLS knows no half-closed connections
        if self._stream is not None:
            if not self._stream.probe:
                return False
            self.write(self._stream.probe)
        elif self._request is not None and self._request.chunked_ok:
            # A client that waits skips an interim answer; the system of one that is gone sends a reset.
            self._transport.write(wire.CONTINUE)
        self._probe = asyncio.get_running_loop().call_later(_PROBE_S, self._drop_if_reset)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop whatever this client was waiting for."""
        self._closing = True
        self._transport = None
        self._queue.clear()
        self._server.forget(self)
        if self._probe is not None:
            self._probe.cancel()
        if self._task is not None:
            self._server.adopt(self._task)
            self._task.cancel()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.source.gone()

    def pause_writing(self) -> None:
        """Transport: the client's buffer is full. Pipelined requests wait until it reads on."""
        self._stalled_since = self._server.now()
        if self._stream is not None:
            self._stream.source.pause()

    def resume_writing(self) -> None:
        """Transport: the client has read on."""
        self._stalled_since = None
        if self._stream is not None:
            self._stream.source.resume()
        elif self._queue and self._request is None:
            self._advance()

    # Serving -----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        while self._queue and self._request is None and self._stalled_since is None and not self._closing:
            event = self._queue.popleft()
            if isinstance(event, Request):
                self._request = event
                self._queued_bytes = max(0, self._queued_bytes - len(event.body))
                self._task = asyncio.get_running_loop().create_task(self._serve(event))
            elif isinstance(event, HttpError):
                self._refuse(event)
            elif self._transport is not None:
                self._transport.write(wire.CONTINUE)
        if not self._reading and not self._queue_full():
            self._set_reading(True)

    def _queue_full(self) -> bool:
        return len(self._queue) > self._server.limits.max_pipelined or self._queued_bytes > _QUEUE_HIGH_BYTES

    def _set_reading(self, reading: bool) -> None:
        self._reading = reading
        if self._transport is not None and not self._closing and not self._half_closed:
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    async def _serve(self, request: Request) -> None:
        """Ask the handler and send its answer. Cancelled when the client leaves."""
        answer: Answer
        try:
            answer = await self._server.handler(request)
        except Exception:  # noqa: BLE001 - one request's boundary: a bug in it must not take others down
            _log.exception("handler failed", method=request.method, path=request.path)
            answer = self._server.error_response(500, "internal error")
        self._task = None
        if isinstance(answer, Stream):
            self._start_stream(request, answer)
        else:
            self._send(request, answer)

    def _keep_alive(self, request: Request) -> bool:
        return (
            request.keep_alive and not self._server.draining and not (self._half_closed and not self._queue)
        )

    def _send(self, request: Request, response: Response) -> None:
        if self._transport is None:
            return
        keep_alive = self._keep_alive(request)
        head_only = request.method == "HEAD"
        self._transport.write(
            wire.response_bytes(response, date=self._server.date, keep_alive=keep_alive, head_only=head_only)
        )
        self._done(keep_alive)

    def _start_stream(self, request: Request, stream: Stream) -> None:
        if self._transport is None:
            stream.source.gone()
            return
        self._chunked = request.chunked_ok
        keep_alive = self._chunked and self._keep_alive(request)
        head = wire.stream_head_bytes(
            stream, date=self._server.date, keep_alive=keep_alive, chunked=self._chunked
        )
        if request.method == "HEAD":
            self._transport.write(head)
            stream.source.gone()
            self._done(keep_alive)
            return
        self._stream = stream
        if self._stalled_since is not None:
            stream.source.pause()
        self._head = head
        request.body = b""  # has been read; a stream may last for long
        stream.source.attach(self)
        if self._head and self._transport is not None:
            self._head = b""
            self._transport.write(head)

    def write(self, data: bytes) -> None:
        """``StreamSink``: send a piece of the current stream."""
        if self._transport is not None:
            framed = wire.chunk(data) if self._chunked else data
            if self._head:  # goes with the first piece: a write costs as much as several tokens
                framed, self._head = self._head + framed, b""
            self._transport.write(framed)

    def end(self, last: bytes = b"") -> None:
        """``StreamSink``: the current stream is complete with ``last``."""
        request = self._request
        self._stream = None
        if self._transport is None or request is None:
            return
        if self._chunked:
            last = (wire.chunk(last) if last else b"") + wire.LAST_CHUNK
        if self._head or last:
            last, self._head = self._head + last, b""
            self._transport.write(last)
        self._done(self._chunked and self._keep_alive(request))

    def _done(self, keep_alive: bool) -> None:
        self._request = None
        self._idle_since = self._read_since = self._server.now()
        if not keep_alive:
            self._close()
        elif self._queue or not self._reading:
            self._advance()

    def _refuse(self, error: HttpError) -> None:
        """Answer, and go on reading for a while what the client is still sending: closing at once would reset
        the connection, and the client might never see the answer."""
        self._closing = True
        if self._transport is None:
            return
        response = self._server.error_response(error.status, error.message)
        if error.headers:
            response = replace(response, headers=(*response.headers, *error.headers))
        self._transport.write(
            wire.response_bytes(response, date=self._server.date, keep_alive=False, head_only=False)
        )
        if self._half_closed:
            self._close()
            return
        if not self._reading:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._lingering_since = self._server.now()

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None and self._closing_since is None:
            self._closing_since = self._server.now()
            self._transport.close()

    def _drop_if_reset(self) -> None:
        """A client that closed both ways has answered the probe with a reset: stop working for it."""
        raw = None if self._transport is None else self._transport.get_extra_info("socket")
        if raw is not None and raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()

    # For the server ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A request is being served, or one is waiting."""
        return self._request is not None or bool(self._queue)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of bodies that this connection holds and nobody works on yet."""
        return self._queued_bytes + self._parser.buffered_bytes

    def check(self, now: float) -> None:
        """Close, refuse or drop when a time limit has passed."""
        limits = self._server.limits
        if self._stalled_since is not None and now - self._stalled_since > limits.write_timeout_s:
            self.abort()
        elif self._closing_since is not None:
            if now - self._closing_since > limits.write_timeout_s:
                self.abort()
        elif self._lingering_since is not None:
            if now - self._lingering_since > _LINGER_S:
                self._close()
        elif self._half_closed:
            self._drop_if_reset()
        elif self.busy:
            return
        elif self._parser.in_message:
            limit_s = limits.header_timeout_s if self._parser.in_head else limits.read_timeout_s
            if now - self._read_since > limit_s:
                self._refuse(HttpError(408, f"the request did not arrive within {limit_s:g} s"))
        elif now - self._idle_since > limits.idle_timeout_s:
            self._close()

    def refuse_body(self) -> None:
        """Give up a request that is arriving: the server holds too many of them."""
        if not self._closing and not self.busy:
            self._refuse(wire.unavailable("too many large requests are arriving at once; try again later"))

    def close_if_idle(self) -> None:
        """Drain: a connection that serves nothing is closed now, others after their answer."""
        if self.busy or self._closing:
            return
        if self._parser.in_message:
            self._refuse(wire.unavailable("the server is shutting down"))
        else:
            self._close()

    def abort(self) -> None:
        """Drop the connection with whatever it is doing."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
