"""Bytes to requests, without I/O: ``feed`` takes any split of the input and gives the same requests.

llhttp (through httptools) reads the syntax strictly; this module holds the limits and refuses what lets two
servers read one input differently: Content-Length beside Transfer-Encoding, repeated lengths, repeated Host.
It must not know sockets, tasks or routes.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

import httptools

from tokenmill.serve.frontend.http.messages import HttpError, HttpLimits, Request


@dataclass(frozen=True, slots=True)
class ContinueWanted:
    """The client waits for "100 Continue" before it sends the body of the next request."""


ParserEvent = Request | ContinueWanted | HttpError

_HEADER_OVERHEAD_BYTES = 4
_ONCE_ONLY = frozenset({"host", "content-length", "content-type", "authorization", "transfer-encoding"})


class RequestParser:
    """One connection's reading side. After an ``HttpError`` or a closing request it reads no more."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[ParserEvent] = []
        self._closed = False
        self._raw_body_left: int | None = None
        self._partial_head_bytes = 0
        self.in_message = False
        """A request has begun and is not complete."""
        self._in_head = False
        self._reset()

    def feed(self, data: bytes) -> list[ParserEvent]:
        """Take bytes as they came and return what they completed, in order."""
        if self._closed:
            return []
        self._events = []
        try:
            if self._raw_body_left is None:
                self._parser.feed_data(data)
            else:
                self._raw_body(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            self._fail(_cause(error))
        except httptools.HttpParserError as error:
            if not self._closed:  # bytes after "Connection: close" are simply not read
                self._fail(HttpError(400, f"malformed HTTP request: {error}"))
        self._check_partial_head(len(data))
        return self._events

    def _check_partial_head(self, fed_bytes: int) -> None:
        if not self._in_head:
            self._partial_head_bytes = 0
            return
        self._partial_head_bytes += fed_bytes
        # Raw bytes may hold white space that the exact count of the headers does not see: hence twice.
        if self._partial_head_bytes > 2 * self._limits.max_head_bytes + 65536 and not self._closed:
            self._fail(self._head_too_large())

    def _fail(self, error: HttpError) -> None:
        self._closed = True
        self.in_message = self._in_head = False
        self._events.append(error)

    def _head_too_large(self) -> HttpError:
        return HttpError(431, f"the request head is larger than {self._limits.max_head_bytes} bytes")

    # httptools callbacks ---------------------------------------------------------------------------

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    def on_message_begin(self) -> None:
        """Httptools: the first byte of a request."""
        self._reset()
        self.in_message = self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Httptools: the target, or a piece of it."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools: one header, or one trailer."""
        self._count_head(len(name) + len(value) + _HEADER_OVERHEAD_BYTES)
        if not self._in_head:
            return  # trailers count against the limit and are otherwise ignored
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers = self._headers
        if key in headers:
            if key in _ONCE_ONLY:
                raise HttpError(400, f"header {key} is repeated")
            text = f"{headers[key]}, {text}"
        headers[key] = text

    def _count_head(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > self._limits.max_head_bytes:
            raise self._head_too_large()

    def on_headers_complete(self) -> None:
        """Httptools: the head is complete."""
        self._in_head = False
        headers = self._headers
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise HttpError(505, f"HTTP version {version} is not supported")
        if version == "1.1" and "host" not in headers:
            raise HttpError(400, "header Host is missing")
        coding = headers.get("transfer-encoding")
        if coding is not None:
            if version == "1.0" or "content-length" in headers:
                raise HttpError(400, "header Transfer-Encoding is not allowed here")
            if coding.lower() != "chunked":
                raise HttpError(501, "only Transfer-Encoding: chunked is supported")
        length = int(headers.get("content-length", "0"))
        if length > self._limits.max_body_bytes:
            raise self._body_too_large()
        self._check_expectation(headers.get("expect"), length > 0 or coding is not None)

    def _check_expectation(self, expectation: str | None, has_body: bool) -> None:
        if expectation is None:
            return
        if expectation.lower() != "100-continue":
            raise HttpError(417, "only Expect: 100-continue is supported")
        if has_body:
            self._events.append(ContinueWanted())

    def _body_too_large(self) -> HttpError:
        return HttpError(413, f"the request body is larger than {self._limits.max_body_bytes} bytes")

    def on_body(self, data: bytes) -> None:
        """Httptools: a piece of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.max_body_bytes:
            raise self._body_too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Httptools: the request is complete."""
        parser = self._parser
        upgrade = parser.should_upgrade()
        if upgrade and self._headers.get("content-length", "0") != "0":
            self._raw_body_left = int(self._headers["content-length"])
            return
        self._complete(bool(parser.should_keep_alive()) and not upgrade)

    def _complete(self, keep_alive: bool) -> None:
        self.in_message = False
        path, query = self._target()
        self._events.append(
            Request(
                method=self._parser.get_method().decode("latin-1"),
                path=path,
                query=query,
                headers=self._headers,
                body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
                keep_alive=keep_alive,
                chunked_ok=self._parser.get_http_version() == "1.1",
            )
        )
        if not keep_alive:
            self._closed = True

    def _target(self) -> tuple[str, str]:
        raw = self._url
        if not raw.startswith(b"/"):
            raw = self._absolute_target(raw)
        path, _, query = raw.partition(b"?")
        text = path.decode("latin-1")
        return (unquote(text) if "%" in text else text), query.decode("latin-1")

    @staticmethod
    def _absolute_target(raw: bytes) -> bytes:
        if raw == b"*":
            return raw
        try:
            url = httptools.parse_url(raw)
        except httptools.HttpParserInvalidURLError as error:
            raise HttpError(400, "malformed request target") from error
        query: bytes | None = url.query
        return bytes(url.path or b"/") + (b"?" + query if query else b"")

    # An offered protocol upgrade (h2c, say) is declined by answering in HTTP/1.1. llhttp then does not read
    # the body, so that it is read here; the connection is closed afterwards.

    def _after_upgrade(self, rest: bytes) -> None:
        if "transfer-encoding" in self._headers:
            self._fail(HttpError(400, "an upgrade cannot have a chunked body"))
        elif self._raw_body_left is not None:
            self._raw_body(rest)

    def _raw_body(self, data: bytes) -> None:
        assert self._raw_body_left is not None
        piece = data[: self._raw_body_left]
        if piece:
            self._body.append(piece)
        self._raw_body_left -= len(piece)
        if self._raw_body_left == 0:
            self._complete(keep_alive=False)


def _cause(error: BaseException) -> HttpError:
    """Return the HttpError that a callback raised; anything else is a bug of ours and goes on up."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HttpError):
            return cause
        cause = cause.__context__
    raise error
