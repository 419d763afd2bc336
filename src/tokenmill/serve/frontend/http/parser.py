"""Bytes to requests, without I/O: ``feed`` takes any split of the input and gives the same events.

Joins the grammar of heads with the framing of bodies. It must not know sockets, tasks, time or routes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.serve.frontend.http.body import BodyReader, BodySink, body_of
from tokenmill.serve.frontend.http.head import HeadScan, expects_continue, parse_head
from tokenmill.serve.frontend.http.messages import HttpError, HttpLimits, Request


@dataclass(frozen=True, slots=True)
class ContinueWanted:
    """The client waits for "100 Continue" before it sends the body of the next request."""


ParserEvent = Request | ContinueWanted | HttpError

_HEAD_END = b"\r\n\r\n"


class RequestParser:
    """One connection's reading side. After an ``HttpError`` or a closing request it reads no more.

    Holds at most one head (``max_head_bytes`` and one read) and one body (``max_body_bytes``).
    """

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._rest = b""
        self._scan: HeadScan | None = None
        self._request: Request | None = None
        self._sink: BodySink | None = None
        self._reader: BodyReader | None = None
        self._blank_line_skipped = False
        self.closed = False
        """No more is read: an error, or a request after which the connection closes."""

    @property
    def in_message(self) -> bool:
        """A request has begun and is not complete."""
        return not self.closed and (self._request is not None or bool(self._rest))

    @property
    def in_head(self) -> bool:
        """What has begun is still the head."""
        return self._request is None and self.in_message

    @property
    def buffered_bytes(self) -> int:
        """Bytes held of the request that is arriving."""
        return len(self._rest) + (0 if self._sink is None else self._sink.held_bytes)

    def feed(self, data: bytes) -> list[ParserEvent]:
        """Take bytes as they came and return what they completed, in order."""
        if self.closed:
            return []
        events: list[ParserEvent] = []
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            self._read(data, events)
        except HttpError as error:
            self._close()
            events.append(error)
        return events

    def _close(self) -> None:
        self.closed = True
        self._rest = b""
        self._request = self._sink = self._reader = None

    def _read(self, data: bytes, events: list[ParserEvent]) -> None:
        at = 0
        while at < len(data) and not self.closed:
            if self._request is None:
                next_at = self._read_head(data, at, events)
            else:
                next_at = self._read_body(data, at, events)
            if next_at is None:
                return
            at = next_at

    def _read_head(self, data: bytes, at: int, events: list[ParserEvent]) -> int | None:
        if data[at] == 0x0D and not self._blank_line_skipped:
            # Some clients send a line end too many after a body; one is forgiven, as the standard wants.
            if data.startswith(b"\r\n", at):
                self._blank_line_skipped = True
                return at + 2
            if len(data) == at + 1:
                self._rest = data[at:]
                return None
        end = data.find(_HEAD_END, at)
        if end < 0:
            rest = data[at:] if at else data
            if self._scan is None:
                self._scan = HeadScan(self._limits)
            self._scan.check(rest)
            self._rest = rest
            return None
        end += len(_HEAD_END)
        self._scan = None
        self._blank_line_skipped = False
        request, framing = parse_head(data[at:end], self._limits)
        headers = request.headers
        wants_word = "expect" in headers and expects_continue(request)
        if framing == 0:
            self._complete(request, events)
            return end
        whole = framing is not None and len(data) - end >= framing <= self._limits.max_body_bytes
        if whole and "content-encoding" not in headers and not wants_word:
            assert framing is not None
            request.body = data[end : end + framing]
            self._complete(request, events)
            return end + framing
        self._sink, self._reader = body_of(request, framing, self._limits)
        self._request = request
        if wants_word:
            events.append(ContinueWanted())
        return end

    def _read_body(self, data: bytes, at: int, events: list[ParserEvent]) -> int | None:
        assert self._request is not None
        assert self._reader is not None
        assert self._sink is not None
        end = self._reader.take(data, at)
        if end is None:
            self._rest = data[self._reader.rest_at :]
            return None
        request = self._request
        request.body = self._sink.finish()
        self._request = self._sink = self._reader = None
        self._complete(request, events)
        return end

    def _complete(self, request: Request, events: list[ParserEvent]) -> None:
        events.append(request)
        if not request.keep_alive:
            self._close()
