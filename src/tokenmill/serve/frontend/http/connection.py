"""One client connection: parser events in, answers out, in order.

Exists to join the sans-I/O parser with an asyncio transport. It must not know routes or what answers mean.
Time is checked from outside by one sweep for all connections, so that no request costs a timer.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

import structlog

from tokenmill.serve.frontend.http import wire
from tokenmill.serve.frontend.http.messages import Answer, HttpError, Request, Response, Stream
from tokenmill.serve.frontend.http.parser import ParserEvent, RequestParser

if TYPE_CHECKING:
    from tokenmill.serve.frontend.http.server import HttpServer

_log = structlog.get_logger(__name__)

_LINGER_S = 2.0


class Connection(asyncio.Protocol):
    """Serves one request at a time; pipelined ones wait in ``_queue``, bounded by one read of the socket
    beyond ``max_pipelined``, where reading stops."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = RequestParser(server.limits)
        self._queue: deque[ParserEvent] = deque()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._request: Request | None = None
        self._closing = False
        self._reading = True
        self._chunked = False
        self._idle_since = self._read_since = server.now()
        self._stalled_since: float | None = None
        self._lingering_since: float | None = None

    # asyncio.Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or answer 503 when there are too many."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=self._server.limits.write_high_bytes)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._server.admit(self):
            self._refuse(HttpError(503, "too many open connections; try again later"))
            transport.close()

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
            if len(self._queue) > self._server.limits.max_pipelined and self._reading:
                self._set_reading(False)
            if self._request is None:
                self._advance()

    def eof_received(self) -> None:
        """The client has sent all it will: taken as its leaving."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop whatever this client was waiting for."""
        self._closing = True
        self._transport = None
        self._queue.clear()
        self._server.forget(self)
        if self._task is not None:
            self._server.adopt(self._task)
            self._task.cancel()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.source.gone()

    def pause_writing(self) -> None:
        """Transport: the client's buffer is full."""
        self._stalled_since = self._server.now()
        if self._stream is not None:
            self._stream.source.pause()

    def resume_writing(self) -> None:
        """Transport: the client has read on."""
        self._stalled_since = None
        if self._stream is not None:
            self._stream.source.resume()

    # Serving -----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        while self._queue and self._request is None and not self._closing:
            event = self._queue.popleft()
            if isinstance(event, Request):
                self._request = event
                self._task = asyncio.get_running_loop().create_task(self._serve(event))
            elif isinstance(event, HttpError):
                self._refuse(event)
            elif self._transport is not None:
                self._transport.write(wire.CONTINUE)
        if not self._reading and len(self._queue) <= self._server.limits.max_pipelined:
            self._set_reading(True)

    def _set_reading(self, reading: bool) -> None:
        self._reading = reading
        if self._transport is not None and not self._closing:
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
        return request.keep_alive and not self._server.draining

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
        self._transport.write(
            wire.stream_head_bytes(
                stream, date=self._server.date, keep_alive=keep_alive, chunked=self._chunked
            )
        )
        self._stream = stream
        if self._stalled_since is not None:
            stream.source.pause()
        stream.source.attach(self)

    def write(self, data: bytes) -> None:
        """``StreamSink``: send a piece of the current stream."""
        if self._transport is not None:
            self._transport.write(wire.chunk(data) if self._chunked else data)

    def end(self) -> None:
        """``StreamSink``: the current stream is complete."""
        request = self._request
        self._stream = None
        if self._transport is None or request is None:
            return
        if self._chunked:
            self._transport.write(wire.LAST_CHUNK)
        self._done(self._chunked and self._keep_alive(request))

    def _done(self, keep_alive: bool) -> None:
        self._request = None
        self._idle_since = self._server.now()
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
        self._transport.write(
            wire.response_bytes(response, date=self._server.date, keep_alive=False, head_only=False)
        )
        if not self._reading:
            self._transport.resume_reading()
        self._transport.write_eof()
        self._lingering_since = self._server.now()

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    # For the server ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A request is being served, or one is waiting."""
        return self._request is not None or bool(self._queue)

    def check(self, now: float) -> None:
        """Close, refuse or drop when a time limit has passed."""
        limits = self._server.limits
        if self._stalled_since is not None:
            if now - self._stalled_since > limits.write_timeout_s:
                self.abort()
        elif self._lingering_since is not None:
            if now - self._lingering_since > _LINGER_S:
                self._close()
        elif self.busy:
            return
        elif self._parser.in_message:
            if now - self._read_since > limits.read_timeout_s:
                self._refuse(HttpError(408, f"the request did not arrive within {limits.read_timeout_s:g} s"))
        elif now - self._idle_since > limits.idle_timeout_s:
            self._close()

    def close_if_idle(self) -> None:
        """Drain: a connection that serves nothing is closed now, others after their answer."""
        if not self.busy:
            self._close()

    def abort(self) -> None:
        """Drop the connection with whatever it is doing."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
