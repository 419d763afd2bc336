"""The grammar of a request's head, and the refusal of whatever two servers might read in two ways.

Exists so that all syntax stands in one place, as patterns. Strict by choice: a line ends with CR LF, a name
touches its colon, nothing is folded, nothing is mended. It must not know bodies, sockets or time.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from tokenmill.serve.frontend.http.messages import HttpError, HttpLimits, Request

TOKEN_CHARACTER: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # noqa: S105  the standard's word, no secret
VALUE_CHARACTER: Final = r"[\t\x20-\x7e\x80-\xff]"
"""Visible characters, blanks and bytes above ASCII; no control characters."""

_LONGEST_METHOD: Final = 32
_REQUEST_LINE_SLACK_BYTES: Final = _LONGEST_METHOD + len(" ") + len(" HTTP/1.1\r\n")
_REQUEST_LINE: Final = rf"({TOKEN_CHARACTER}{{1,{_LONGEST_METHOD}}}) ([\x21-\x7e]++) HTTP/1\.([01])"
_HEAD: Final = re.compile(rf"{_REQUEST_LINE}((?:\r\n{TOKEN_CHARACTER}++:{VALUE_CHARACTER}*+)*+)\r\n\r\n")
_FIRST_LINE: Final = re.compile(rf"{_REQUEST_LINE}\r\n".encode())
_OTHER_VERSION: Final = re.compile(rb"[^ ]+ [^ ]+ HTTP/[0-9]\.[0-9]\r\n")
FIELD_LINE: Final = re.compile(rf"{TOKEN_CHARACTER}++:{VALUE_CHARACTER}*+\r\n".encode("latin-1"))
_BAD_BYTE: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])|(?<!\r)\n")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+;=]*)(?::[0-9]*)?")
_ABSOLUTE: Final = re.compile(r"(https?)://([^/?]+)(.*)", re.IGNORECASE)
_LENGTH: Final = re.compile(r"[0-9]{1,19}")
_ONCE_ONLY: Final = frozenset(
    {"host", "content-length", "content-type", "authorization", "transfer-encoding", "origin"}
)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


Framing = int | None
"""How the body comes: so many bytes, or None: in chunks."""


def parse_head(raw: bytes, limits: HttpLimits) -> tuple[Request, Framing]:
    """Read a head that ends with its empty line: a request without its body, and how that will come.

    Raises HttpError: that of the first byte at fault.
    """
    found = _HEAD.fullmatch(raw.decode("latin-1"))
    if found is None or len(raw) > limits.max_head_bytes:
        raise _diagnosed(raw, limits)
    method, target, minor, block = found.groups()
    if len(target) > limits.max_target_bytes or block.count("\n") > limits.max_headers:
        raise _diagnosed(raw, limits)
    headers = _headers(block)
    return _checked(method, target, minor == "1", headers)


def _headers(block: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    lines = block.split("\r\n")
    del lines[0]  # before the first line end
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in headers:
            if name in _ONCE_ONLY:
                raise HttpError(400, f"header {name} is repeated")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _diagnosed(raw: bytes, limits: HttpLimits) -> HttpError:
    scan = HeadScan(limits)
    try:
        scan.check(raw)
    except HttpError as error:
        return error
    raise AssertionError("the two ways to read a head disagree")


class HeadScan:
    """Judges a head that is not complete yet, each line once. What it refuses does not depend on how the
    bytes were split: in their order, the first one at fault decides."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._line_at = 0
        self._lines = 0
        self._scanned = 0

    def check(self, raw: bytes) -> None:
        """``raw``: the head from its first byte, more of it than last time. Raises HttpError."""
        while True:
            line_end = raw.find(b"\n", max(self._line_at, self._scanned)) + 1
            room_until, too_long = self._room()
            self._check_bytes(raw, min(line_end or len(raw), room_until))
            if (line_end or len(raw)) > room_until:
                raise too_long
            if not line_end:
                self._scanned = len(raw)
                return
            self._check_line(raw[self._line_at : line_end])
            self._line_at = self._scanned = line_end
            self._lines += 1
            if raw.startswith(b"\r\n", line_end):
                return

    def _room(self) -> tuple[int, HttpError]:
        limits = self._limits
        if self._lines == 0:
            line_bytes = limits.max_target_bytes + _REQUEST_LINE_SLACK_BYTES
            if line_bytes <= limits.max_head_bytes:
                return line_bytes, target_too_long(limits)
        return limits.max_head_bytes, head_too_large(limits)

    def _check_bytes(self, raw: bytes, end: int) -> None:
        found = _BAD_BYTE.search(raw, max(self._line_at, self._scanned - 1), end)
        if found is None:
            return
        if raw[:1] == b"\x16":
            raise HttpError(400, "this looks like TLS, but this port speaks plain HTTP: use http://")
        what = {b"\n": "a line feed without carriage return", b"\r": "a carriage return without line feed"}
        raise HttpError(400, f"the head has {what.get(found[0], 'a control character')}")

    def _check_line(self, line: bytes) -> None:
        limits = self._limits
        if self._lines == 0:
            found = _FIRST_LINE.fullmatch(line)
            if found is None:
                raise _bad_request_line(line)
            if len(found[2]) > limits.max_target_bytes:
                raise target_too_long(limits)
        elif FIELD_LINE.fullmatch(line) is None:
            raise _bad_field_line(line)
        elif self._lines > limits.max_headers:
            raise HttpError(431, f"the request has more than {limits.max_headers} headers")


def _bad_request_line(line: bytes) -> HttpError:
    if _OTHER_VERSION.fullmatch(line) and b" HTTP/1.1\r\n" not in line and b" HTTP/1.0\r\n" not in line:
        version = line[-5:-2].decode()
        return HttpError(505, f"HTTP/{version} is not supported; use HTTP/1.1")
    return HttpError(400, "the request line is not METHOD TARGET HTTP/1.1")


def _bad_field_line(line: bytes) -> HttpError:
    if line[:1] in (b" ", b"\t"):
        return HttpError(400, "a header is folded over two lines")
    name, colon, _ = line.partition(b":")
    if colon and name.strip(b" \t") != name:
        return HttpError(400, "a header has a blank before its colon")
    return HttpError(400, "a header line is not NAME: VALUE")


def head_too_large(limits: HttpLimits) -> HttpError:
    """Return the error for a head above its limit."""
    return HttpError(431, f"the request head is larger than {limits.max_head_bytes} bytes")


def target_too_long(limits: HttpLimits) -> HttpError:
    """Return the error for a target above its limit."""
    return HttpError(414, f"the request target is longer than {limits.max_target_bytes} bytes")


def _checked(method: str, target: str, is_1_1: bool, headers: dict[str, str]) -> tuple[Request, Framing]:
    host = headers.get("host")
    if host is None:
        if is_1_1:
            raise HttpError(400, "header Host is missing")
    elif _HOST.fullmatch(host) is None:
        raise HttpError(400, "header Host is not HOST or HOST:PORT")
    if not target.startswith("/"):
        target = _other_target(method, target, host)
    if "#" in target:
        raise HttpError(400, "the request target has a fragment (#)")
    path, _, query = target.partition("?")
    if "%" in path:
        path = unquote(path)
    framing = _framing(headers, is_1_1)
    connection = headers.get("connection")
    keep_alive = is_1_1 if connection is None else _keeps_alive(connection, is_1_1)
    return Request(method, path, query, headers, b"", keep_alive, is_1_1), framing


def expects_continue(request: Request) -> bool:
    """Whether the client waits for a word before it sends the body. Raises HttpError 417."""
    expectation = request.headers.get("expect")
    if expectation is None:
        return False
    if expectation.lower() != "100-continue":
        raise HttpError(417, "only Expect: 100-continue is supported")
    return request.chunked_ok  # HTTP/1.0 knows no interim answers


def _other_target(method: str, target: str, host: str | None) -> str:
    """Return the path of a target that is no path. One that names a host must name the Host header's."""
    if target == "*" and method == "OPTIONS":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found is None or method == "CONNECT":
        raise HttpError(400, "the request target is not a path")
    scheme, authority, rest = found.groups()
    port = _DEFAULT_PORTS[scheme.lower()]
    if host is not None and authority.lower().removesuffix(port) != host.lower().removesuffix(port):
        raise HttpError(400, "the request target names another host than header Host")
    if _HOST.fullmatch(authority) is None:
        raise HttpError(400, "the request target's host is not HOST or HOST:PORT")
    return rest if rest.startswith("/") else "/" + rest


def _framing(headers: dict[str, str], is_1_1: bool) -> Framing:
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is None:
        if length is None:
            return 0
        if _LENGTH.fullmatch(length) is None:
            raise HttpError(400, "header Content-Length is not a number")
        return int(length)
    if not is_1_1:
        raise HttpError(400, "header Transfer-Encoding is not allowed in HTTP/1.0")
    if length is not None:
        raise HttpError(400, "headers Transfer-Encoding and Content-Length exclude each other")
    codings = [each.strip(" \t") for each in coding.lower().split(",")]
    if codings[-1] != "chunked" or "" in codings or codings.count("chunked") > 1:
        raise HttpError(400, "header Transfer-Encoding is not chunked")
    if len(codings) > 1:
        raise HttpError(501, "only Transfer-Encoding: chunked is supported; compress with Content-Encoding")
    return None


def _keeps_alive(connection: str, is_1_1: bool) -> bool:
    options = {each.strip(" \t") for each in connection.lower().split(",")}
    return "close" not in options and (is_1_1 or "keep-alive" in options)
