"""Bytes of a child's output to lines of bounded length. No I/O."""

from __future__ import annotations

from typing import Final

MAX_LINE_BYTES: Final = 8192
"""A longer line is cut into pieces of this size, so that a child without newlines costs no more memory."""


class LineSplitter:
    """Collects bytes and gives whole lines; keeps at most one line of ``MAX_LINE_BYTES``."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Take bytes; return the lines they complete, without line ends."""
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self._rest = rest
        return [piece for line in lines for piece in _pieces(line)]

    def end(self) -> list[str]:
        """Return what came after the last line end."""
        rest, self._rest = self._rest, b""
        return _pieces(rest) if rest else []


def _pieces(line: bytes) -> list[str]:
    cuts = range(0, max(len(line), 1), MAX_LINE_BYTES)
    return [line[cut : cut + MAX_LINE_BYTES].decode(errors="replace").rstrip("\r") for cut in cuts]
