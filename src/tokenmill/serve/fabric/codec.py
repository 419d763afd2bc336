"""Bytes to frames and back, without I/O.

A frame is a 4-byte little-endian length and that many bytes of msgpack. The codec doesn't know who sends
what when: that is the connection's business.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Generic, TypeAlias

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.serve.fabric.frames import CallT, Frame, ItemT

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 64 * 1024 * 1024

TypeForm: TypeAlias = type | UnionType
"""A class, or a union of tagged classes."""

# What msgspec raises for bytes that are not a frame: its own errors, bad UTF-8 (a ValueError), nesting
# beyond the interpreter's limit, and integers out of range.
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


class FrameCodec(Generic[CallT, ItemT]):
    """Encodes frames, and decodes a stream of bytes however it was split.

    Memory: at most one incomplete frame of ``max_frame_bytes`` is kept; a claimed length or count never
    reserves memory before its bytes are there. The codec is broken after the first ``ProtocolError``.
    """

    def __init__(
        self, call_type: TypeForm, item_type: TypeForm, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        frame: Any = Frame
        self.max_frame_bytes = max_frame_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Frame[CallT, ItemT]] = msgspec.msgpack.Decoder(
            frame[call_type, item_type]
        )
        self._pending = bytearray()
        self._needed = LENGTH_BYTES
        self._fault: ProtocolError | None = None

    @property
    def fault(self) -> ProtocolError | None:
        """Why no more frames can be read; ``feed`` raises it from now on."""
        return self._fault

    def encode(self, frame: Frame[CallT, ItemT]) -> bytes:
        """Return the frame's bytes.

        Raises ProtocolError if they are more than the peer would take, or a value has no msgpack form.
        """
        try:
            body = self._encoder.encode(frame)
        except (*_MALFORMED, TypeError) as error:
            raise ProtocolError(f"a {type(frame).__name__} frame cannot be encoded: {error}") from error
        if len(body) > self.max_frame_bytes:
            raise ProtocolError(
                f"a {type(frame).__name__} frame of {len(body)} bytes is above max_frame_bytes "
                f"({self.max_frame_bytes}): send less at once or raise the limit on both sides"
            )
        return len(body).to_bytes(LENGTH_BYTES, "little") + body

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame[CallT, ItemT]]:
        """Take bytes, return the frames that are complete now.

        Raises ProtocolError for oversize or malformed input. Good frames before the bad one are returned
        first: the error is raised by the next call, and can be seen at once in ``fault``.
        """
        if self._fault is not None:
            raise self._fault
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return []
            data, self._pending = self._pending, bytearray()
        frames: list[Frame[CallT, ItemT]] = []
        with memoryview(data) as view:
            try:
                rest = self._read(view, frames)
                self._pending += view[rest:]
            except ProtocolError as fault:
                self._fault = fault
        if self._fault is not None and not frames:
            raise self._fault
        return frames

    def _read(self, view: memoryview, frames: list[Frame[CallT, ItemT]]) -> int:
        """Append the complete frames of ``view``; return where the incomplete rest begins."""
        begin = 0
        total = len(view)
        while total - begin >= LENGTH_BYTES:
            size = int.from_bytes(view[begin : begin + LENGTH_BYTES], "little")
            if size > self.max_frame_bytes:
                raise ProtocolError(
                    f"the peer announced a frame of {size} bytes, above max_frame_bytes "
                    f"({self.max_frame_bytes}): it is no tokenmill fabric, or its limit is larger"
                )
            end = begin + LENGTH_BYTES + size
            if end > total:
                self._needed = end - begin
                return begin
            try:
                frames.append(self._decoder.decode(view[begin + LENGTH_BYTES : end]))
            except _MALFORMED as error:
                raise ProtocolError(f"the peer sent a malformed frame: {error}") from error
            begin = end
        self._needed = LENGTH_BYTES
        return begin
