"""Request bodies: of known length or in chunks, plain or compressed, never more than the limit in memory.

Exists so that the parser sees one ``take`` whatever the framing. What is inflated is bounded as it is made: a
small body cannot become a large one. It must not know heads' syntax, sockets or time.
"""

from __future__ import annotations

import re
import zlib
from typing import Final, Protocol

from tokenmill.serve.frontend.http.head import FIELD_LINE, TOKEN_CHARACTER, Framing
from tokenmill.serve.frontend.http.messages import HttpError, HttpLimits, Request

_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's names for the two formats. ``deflate`` is what HTTP calls zlib's own format."""

_LONGEST_SIZE_LINE_BYTES: Final = 512
_FEW_CHUNKS: Final = 4096
_LEAST_MEAN_CHUNK_BYTES: Final = 8
"""Beyond a few chunks they must be so large on average: taking each costs the loop's time."""

_QUOTED: Final = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_EXTENSION: Final = rf";[\t ]*+{TOKEN_CHARACTER}++(?:=(?:{TOKEN_CHARACTER}++|{_QUOTED}))?+"
_SIZE_LINE: Final = re.compile(rf"([0-9A-Fa-f]{{1,16}})((?:{_EXTENSION})*+)\r\n".encode("latin-1"))
_NOT_IN_TRAILERS: Final = re.compile(rb"(?i:content-length|transfer-encoding|host|content-encoding):")


class BodySink:
    """Gathers a body as it comes: plain."""

    def __init__(self, limits: HttpLimits) -> None:
        self._max_bytes = limits.max_body_bytes
        self._data = bytearray()

    def add(self, piece: bytes) -> None:
        """Take the next bytes off the wire. Raises HttpError 413."""
        if len(self._data) + len(piece) > self._max_bytes:
            raise body_too_large(self._max_bytes)
        self._data += piece

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""
        return len(self._data)

    def finish(self) -> bytes:
        """Return the whole body."""
        return bytes(self._data)


class InflatingSink(BodySink):
    """Gathers a compressed body, inflated. A gzip file may have several members."""

    def __init__(self, limits: HttpLimits, coding: str) -> None:
        super().__init__(limits)
        self._coding = coding
        self._raw_bytes = 0
        self._zlib = zlib.decompressobj(_WINDOW_BITS[coding])

    def add(self, piece: bytes) -> None:
        """Inflate the next bytes, at most one byte beyond the limit. Raises HttpError 400 or 413."""
        self._raw_bytes += len(piece)
        if self._raw_bytes > self._max_bytes:
            raise body_too_large(self._max_bytes)
        while piece:
            if self._zlib.eof:
                if self._coding == "deflate":
                    raise self._broken()
                self._zlib = zlib.decompressobj(_WINDOW_BITS[self._coding])
            room_bytes = self._max_bytes - len(self._data) + 1
            try:
                self._data += self._zlib.decompress(piece, room_bytes)
            except zlib.error as error:
                raise self._broken() from error
            if len(self._data) > self._max_bytes:
                raise HttpError(413, f"the request body is larger than {self._max_bytes} bytes when inflated")
            piece = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail

    def finish(self) -> bytes:
        """Return the whole body, inflated. Raises HttpError 400 where its end is missing."""
        if self._raw_bytes and not self._zlib.eof:
            raise self._broken()
        return bytes(self._data)

    def _broken(self) -> HttpError:
        return HttpError(400, f"the request body is not valid {self._coding}")


class BodyReader(Protocol):
    """Takes a body off the wire."""

    def take(self, data: bytes, at: int) -> int | None:
        """Take bytes from ``data[at:]``; return where the body ended, None if it goes on: all was taken but
        what must be given again with more behind it, which begins at ``rest_at``."""
        ...

    @property
    def rest_at(self) -> int:
        """Where the bytes begin that were not taken."""
        ...


class SizedBody:
    """A body of known length."""

    def __init__(self, sink: BodySink, length_bytes: int) -> None:
        self._sink = sink
        self._left = length_bytes
        self.rest_at = 0

    def take(self, data: bytes, at: int) -> int | None:
        """See ``BodyReader``."""
        piece = data[at : at + self._left]
        self._left -= len(piece)
        self._sink.add(piece)
        self.rest_at = at + len(piece)
        return None if self._left else self.rest_at


class ChunkedBody:
    """A body in chunks. Extensions and trailers are checked, counted against the head's limits, dropped."""

    def __init__(self, sink: BodySink, limits: HttpLimits) -> None:
        self._sink = sink
        self._limits = limits
        self._left: int | None = None
        """Bytes that are missing of the chunk and its line end; None: a size line comes next."""
        self._in_trailers = False
        self._chunks = self._body_bytes = 0
        self._extra_bytes = self._trailers = 0
        self.rest_at = 0

    def take(self, data: bytes, at: int) -> int | None:
        """See ``BodyReader``."""
        while True:
            self.rest_at = at
            if self._in_trailers:
                end = self._line(data, at, self._limits.max_head_bytes)
                if end is None or self._is_last(data[at:end]):
                    return end
            elif self._left is None:
                end = self._line(data, at, _LONGEST_SIZE_LINE_BYTES)
                if end is not None:
                    self._read_size(data[at:end])
            else:
                end = self._take_chunk(data, at)
            if end is None:
                return None
            at = end

    @staticmethod
    def _line(data: bytes, at: int, longest_bytes: int) -> int | None:
        end = data.find(b"\n", at, at + longest_bytes) + 1
        if end:
            return end
        if len(data) - at >= longest_bytes:
            raise HttpError(400, f"a chunk's size line or a trailer is longer than {longest_bytes} bytes")
        return None

    def _read_size(self, line: bytes) -> None:
        found = _SIZE_LINE.fullmatch(line)
        if found is None:
            raise HttpError(400, "a chunk does not begin with its size in hexadecimal digits")
        size_bytes = int(found[1], 16)
        self._count_extra(len(found[2]))
        if size_bytes == 0:
            self._in_trailers = True
            return
        self._chunks += 1
        self._body_bytes += size_bytes
        if self._body_bytes > self._limits.max_body_bytes:
            raise body_too_large(self._limits.max_body_bytes)
        if self._chunks > _FEW_CHUNKS and self._body_bytes < self._chunks * _LEAST_MEAN_CHUNK_BYTES:
            raise HttpError(400, f"more than {_FEW_CHUNKS} chunks of a few bytes: send larger ones")
        self._left = size_bytes + len(b"\r\n")

    def _take_chunk(self, data: bytes, at: int) -> int | None:
        assert self._left is not None
        missing = self._left - 2
        if missing > 0:
            piece = data[at : at + missing]
            self._sink.add(piece)
            self._left -= len(piece)
            at = self.rest_at = at + len(piece)
            if self._left > 2:
                return None
        end = data[at : at + 2]
        if not b"\r\n".startswith(end):
            raise HttpError(400, "a chunk does not end where its size says")
        if len(end) < 2:
            return None
        self._left = None
        return at + 2

    def _is_last(self, line: bytes) -> bool:
        if line == b"\r\n":
            return True
        if FIELD_LINE.fullmatch(line) is None or _NOT_IN_TRAILERS.match(line):
            raise HttpError(400, "a trailer is not NAME: VALUE, or may not be one")
        self._count_extra(len(line))
        self._trailers += 1
        if self._trailers > self._limits.max_headers:
            raise HttpError(431, f"the request has more than {self._limits.max_headers} trailers")
        return False

    def _count_extra(self, size_bytes: int) -> None:
        self._extra_bytes += size_bytes
        if self._extra_bytes > self._limits.max_head_bytes:
            raise HttpError(
                431, f"chunk extensions and trailers are larger than {self._limits.max_head_bytes} bytes"
            )


def body_of(request: Request, framing: Framing, limits: HttpLimits) -> tuple[BodySink, BodyReader]:
    """Return what takes the body that a head announces. Raises HttpError 413 or 415."""
    if framing is not None and framing > limits.max_body_bytes:
        raise body_too_large(limits.max_body_bytes)
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding in ("identity", ""):
        sink = BodySink(limits)
    elif coding in _WINDOW_BITS:
        sink = InflatingSink(limits, coding)
    else:
        raise HttpError(
            415, "Content-Encoding must be gzip, deflate or absent", (("accept-encoding", "gzip, deflate"),)
        )
    return sink, ChunkedBody(sink, limits) if framing is None else SizedBody(sink, framing)


def body_too_large(max_bytes: int) -> HttpError:
    """Return the error for a body above its limit."""
    return HttpError(413, f"the request body is larger than {max_bytes} bytes")
