"""What sender and receiver of a KV cache say to each other, and how it is framed. No sockets here.

A receiver opens one export at a time on a connection, is told what is ready, takes it (through shared
memory, or by ``Fetch``, answered with ``Data`` and that many raw bytes, on several connections at once if it
likes), and ends with ``Release``. A frame is a 4-byte big-endian length and msgpack. It must not know who
serves a connection, nor what a lease is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenmill.errors import HandoffFailed, ProtocolError
from tokenmill.serve.transfer.base import KvLayout

VERSION = 1
MAX_FRAME_BYTES = 16 << 20
"""Larger frames are refused unread; the largest honest one carries a sender's meta."""
_HEAD_BYTES = 4


class ExportUnknown(HandoffFailed):
    """The sender does not know the export: not yet (somebody else wrote its descriptor), or not at all."""


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """A descriptor: all that a receiver needs to take one export.

    ``endpoints``: (driver, address), best first. ``token``: 16 random bytes, the right to open ``export``.
    ``memory``: names the sender's memory for as long as its process lives. ``memory_blocks``: how many blocks
    it has in all; ``blocks``: those that hold the ``tokens`` offered. ``lease_s``: beat more often than this.
    """

    version: int
    endpoints: list[tuple[str, str]]
    memory: bytes
    memory_blocks: int
    layout: KvLayout
    export: int
    token: bytes
    blocks: list[int]
    tokens: int
    lease_s: float

    def filled(
        self, *, export: int, token: bytes, blocks: Sequence[int], tokens: int, lease_s: float
    ) -> Ticket:
        """Return this one for an export of the same memory."""
        return msgspec.structs.replace(
            self, export=export, token=token, blocks=list(blocks), tokens=tokens, lease_s=lease_s
        )


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Receiver: I want this export; ``need_fd``: and the descriptor of the memory it lies in."""

    export: int
    token: bytes
    need_fd: bool


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """Receiver: this connection helps one that has the export open: it only fetches."""

    export: int
    token: bytes


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """Receiver: I am alive; renew the lease."""


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag="fetch"):
    """Receiver: send tokens ``first`` .. ``last`` (exclusive), plane by plane.

    Of the planes only the ``part``-th of ``parts`` nearly equal shares.
    """

    first: int
    last: int
    part: int = 0
    parts: int = 1


class Check(msgspec.Struct, frozen=True, array_like=True, tag="check"):
    """Receiver: what is the checksum of these tokens, in the order of ``Fetch``?"""

    first: int
    last: int


class Release(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """Receiver: I have all of it."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """Sender: the export is yours. ``fd``: the memory's descriptor came along."""

    fd: bool


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Sender: no such export, a wrong token, or somebody else's. ``unknown``: one of the first two."""

    reason: str
    unknown: bool = False

    def error(self) -> HandoffFailed:
        """Return what it means to the receiver."""
        kind = ExportUnknown if self.unknown else HandoffFailed
        return kind(f"the sender refused the handoff: {self.reason}")


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """Sender: the first ``tokens`` tokens are in place."""

    tokens: int


class Sealed(msgspec.Struct, frozen=True, array_like=True, tag="sealed"):
    """Sender: all tokens are in place."""

    meta: bytes


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag="withdrawn"):
    """Sender: there will be no cache, or there is none any more."""

    reason: str


class Data(msgspec.Struct, frozen=True, array_like=True, tag="data"):
    """Sender: the answer to ``Fetch``; ``size_bytes`` raw bytes follow this frame."""

    size_bytes: int


class Digest(msgspec.Struct, frozen=True, array_like=True, tag="digest"):
    """Sender: the answer to ``Check``, an xxh3 of 64 bits."""

    xxh3: int


class Released(msgspec.Struct, frozen=True, array_like=True, tag="released"):
    """Sender: the answer to ``Release``; ``valid``: the blocks were yours to the end."""

    valid: bool


Message = (
    Open
    | Join
    | Beat
    | Fetch
    | Check
    | Release
    | Opened
    | Refused
    | Ready
    | Sealed
    | Withdrawn
    | Data
    | Digest
    | Released
)


def encode_frame(message: Message) -> bytes:
    """Return the message as it goes over the wire. Raises ProtocolError when it is too long."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a control message of {len(body)} bytes: the limit is {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_HEAD_BYTES) + body


class FrameReader:
    """Turns a connection's bytes into messages, one at a time and never reading past one.

    The caller reads at most ``wanted`` bytes and hands them over; so raw data that follows a frame stays in
    the socket, for a thread to receive straight into its place.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._body_bytes: int | None = None

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at most."""
        whole = _HEAD_BYTES if self._body_bytes is None else self._body_bytes
        return whole - len(self._buffer)

    def receive_data(self, data: bytes) -> Message | None:
        """Take up to ``wanted`` bytes; return the message they complete. Raises ProtocolError for garbage."""
        self._buffer += data
        if self.wanted > 0:
            return None
        body = bytes(self._buffer)
        self._buffer.clear()
        if self._body_bytes is None:
            self._body_bytes = int.from_bytes(body)
            if not 0 < self._body_bytes <= MAX_FRAME_BYTES:
                raise ProtocolError(f"a control frame of {self._body_bytes} bytes: not a KV transfer peer")
            return None
        self._body_bytes = None
        try:
            message: Message = msgspec.msgpack.decode(body, type=Message)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"a control frame that is no message: {error}") from error
        return message


def encode_ticket(ticket: Ticket) -> bytes:
    """Return the descriptor."""
    return msgspec.msgpack.encode(ticket)


def decode_ticket(descriptor: bytes) -> Ticket:
    """Return what a descriptor says. Raises HandoffFailed when it is none of ours or contradicts itself."""
    try:
        ticket = msgspec.msgpack.decode(descriptor, type=Ticket)
    except msgspec.DecodeError as error:
        raise HandoffFailed(f"this is no descriptor of a KV export: {error}") from error
    if ticket.version != VERSION:
        raise HandoffFailed(
            f"descriptor version {ticket.version}, we speak {VERSION}: run the same release on both"
        )
    fits = ticket.tokens <= len(ticket.blocks) * ticket.layout.block_tokens
    if not fits or not all(0 <= block < ticket.memory_blocks for block in ticket.blocks):
        raise HandoffFailed("the descriptor's blocks do not hold its tokens: the sender is broken")
    return ticket
