"""Answers to bytes, without I/O.

Exists so that the way an answer looks on the wire is in one place. It must not know sockets or routes.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

from tokenmill.serve.frontend.http.messages import HttpError, Response, Stream

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_BODILESS = frozenset({204, 304})
_UNSAFE = str.maketrans({"\r": "", "\n": "", "\0": ""})


def status_line(status: int) -> str:
    """Return "HTTP/1.1 200 OK" and so on."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return f"HTTP/1.1 {status} {phrase}"


def http_date(wall_s: float) -> str:
    """Return the Date header's value for a wall clock time in seconds."""
    return formatdate(wall_s, usegmt=True)


def unavailable(message: str) -> HttpError:
    """Return the error for what may be asked again soon."""
    return HttpError(503, message, (("retry-after", "1"),))


def response_bytes(response: Response, *, date: str, keep_alive: bool, head_only: bool) -> bytes:
    """Return a whole answer; ``head_only`` for HEAD, which gets the length but no body."""
    lines = [status_line(response.status), f"date: {date}"]
    if response.status not in _BODILESS:
        lines.append(f"content-type: {response.content_type}")
        lines.append(f"content-length: {len(response.body)}")
    _finish_head(lines, response.headers, keep_alive)
    head = "\r\n".join(lines).encode("latin-1", "replace")
    return head if head_only else head + response.body


def stream_head_bytes(stream: Stream, *, date: str, keep_alive: bool, chunked: bool) -> bytes:
    """Return the head of an answer of unknown length."""
    lines = [
        status_line(200),
        f"date: {date}",
        f"content-type: {stream.content_type}",
        "cache-control: no-cache",
        "x-accel-buffering: no",
    ]
    if chunked:
        lines.append("transfer-encoding: chunked")
    _finish_head(lines, stream.headers, keep_alive)
    return "\r\n".join(lines).encode("latin-1", "replace")


def _finish_head(lines: list[str], headers: tuple[tuple[str, str], ...], keep_alive: bool) -> None:
    lines.extend(f"{name}: {value.translate(_UNSAFE)}" for name, value in headers)
    lines.append("connection: keep-alive" if keep_alive else "connection: close")
    lines.append("\r\n")


def chunk(data: bytes) -> bytes:
    """Return ``data`` (never empty: that would end the body) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
