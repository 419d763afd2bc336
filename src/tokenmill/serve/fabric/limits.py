"""How much a connection may hold and how long it may stay silent. Each field says its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.errors import ConfigError
from tokenmill.serve.fabric.codec import MAX_FRAME_BYTES


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """Limits of one side. The two sides need not have the same, but for ``max_frame_bytes``."""

    window: int = 256
    """Items under way on one stream before the client must have taken some (the client's value counts).
    It covers a network's round trip at any token rate, and bounds what a stalled client is owed."""

    max_queued_items: int = 1024
    """Items that wait at the server for one stream without credit, merged. Beyond it the stream ends."""

    max_streams: int = 16384
    """Open streams on one connection; one more is refused with ``Overloaded``."""

    max_connections: int = 1024
    """Connections to one server; one more is closed at once."""

    max_frame_bytes: int = MAX_FRAME_BYTES
    """The largest frame read or written. The longest prompt must fit (5 bytes a token)."""

    max_backlog_bytes: int = MAX_FRAME_BYTES
    """Bytes written that the peer has not taken, beyond which nothing is added but what is under way:
    a client refuses new streams, and either side gives up a peer that makes it owe more answers."""

    silence_s: float = 10.0
    """A peer that says nothing for so long, although it was asked, is lost. A frozen process keeps its
    connections open, so that nothing else would tell."""

    handshake_s: float = 5.0
    """A peer must have said ``Hello`` by then."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: must be above 0", param=name)
