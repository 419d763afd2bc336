"""What two ends of a connection can say to each other.

One class a frame. It does not know what a call or an item means: they are type parameters.
On the wire a frame is an array whose first element is the tag.
"""

from __future__ import annotations

from typing import Annotated, Generic, TypeAlias, TypeVar

import msgspec

VERSION = 1
"""Of this wire format. Both ends must have the same one; it is the first thing they say."""

CallT = TypeVar("CallT")
ItemT = TypeVar("ItemT")

StreamId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""Chosen by the client, growing by one with each stream of a connection; never used again."""

ItemCount = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The first frame of both ends. ``window``: items that may be under way on a new stream (the client's
    counts). Fields after ``version`` may change with it."""

    version: int
    name: str = ""
    window: ItemCount = 256


class Open(msgspec.Struct, Generic[CallT], frozen=True, array_like=True, tag=2):
    """Client: begin a stream."""

    stream: StreamId
    call: CallT


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Client: the stream is of no interest any more."""

    stream: StreamId


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Client: ``n`` more items may be sent on the stream."""

    stream: StreamId
    n: ItemCount


class Data(msgspec.Struct, Generic[ItemT], frozen=True, array_like=True, tag=5):
    """Server: everything that one step has to say. All items come before all ends."""

    items: list[tuple[int, ItemT]]
    ended: list[int]


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Server: the stream ended with an error. ``code`` is one of ``errors``' codes."""

    stream: StreamId
    code: str
    message: str


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Are you there?"""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Yes."""


class GoAway(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Server: open no more streams here; those that are open may still end."""

    reason: str = ""


Frame: TypeAlias = Hello | Open[CallT] | Cancel | Credit | Data[ItemT] | Abort | Ping | Pong | GoAway
