"""The server's end of streams: listens, and sends each client one frame an engine step.

It does not know what a call or an item means, nor who answers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import structlog

from tokenmill.errors import ProtocolError, TokenmillError
from tokenmill.serve.fabric.address import parse_address
from tokenmill.serve.fabric.codec import FrameCodec, TypeForm
from tokenmill.serve.fabric.frames import VERSION, CallT, Hello, ItemT
from tokenmill.serve.fabric.limits import StreamLimits
from tokenmill.serve.fabric.link import FrameLink, Traffic
from tokenmill.serve.fabric.server_stream import ServerConnection, ServerStream, StreamCounts
from tokenmill.serve.fabric.sockets import Listener, listen

CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class ServerStatistics:
    """A server at one instant. Names ending in ``_total``, items, frames and bytes only grow."""

    connections: int
    open_streams: int
    open_streams_peak: int
    streams_total: int
    queued_items: int
    queued_items_peak: int
    items_out: int
    overflows: int
    protocol_errors: int
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int


class StreamServer(Generic[CallT, ItemT]):
    """Answers calls with streams of items. All methods belong to the loop's thread.

    ``on_open`` gets each new stream; what it raises ends that stream with an error (a TokenmillError's
    message goes to the client; anything else is also reported through the loop's exception handler).
    ``merge(older, newer)`` returns one item that says the same as both, or None if there is none; merged
    items are as large as it makes them. ``on_fault`` hears of peers that broke the protocol (default: a
    warning in the log).
    """

    def __init__(
        self,
        call_type: TypeForm,
        item_type: TypeForm,
        on_open: Callable[[ServerStream[CallT, ItemT]], None],
        *,
        merge: Callable[[ItemT, ItemT], ItemT | None] | None = None,
        limits: StreamLimits | None = None,
        name: str = "",
        on_fault: Callable[[ProtocolError], None] | None = None,
    ) -> None:
        self.limits = limits or StreamLimits()
        self.counts = StreamCounts()
        self.closing = False
        self.merge = merge
        self.on_open = on_open
        self._call_type = call_type
        self._item_type = item_type
        self._name = name
        self._on_fault = on_fault or _log_fault
        self._traffic = Traffic()
        self._listener: Listener | None = None
        self._connections: dict[ServerConnection[CallT, ItemT], None] = {}
        self._touched: list[ServerConnection[CallT, ItemT]] = []
        self._flush_scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, address: str) -> str:
        """Listen on ``address`` and return the address that was bound (TCP port 0 resolved).

        Raises ConfigError for a bad address or one that is taken. Cancelled: nothing listens.
        """
        if self._listener is not None:
            raise RuntimeError("the server is started already")
        self._listener = await listen(self._make_link, parse_address(address))
        return str(self._listener.address)

    def flush(self) -> None:
        """Send everything queued since the last flush: one frame a connection."""
        touched, self._touched = self._touched, []
        for connection in touched:
            connection.flush()

    async def close(self, grace_s: float = 1.0) -> None:
        """Stop listening, let open streams end for ``grace_s``, cancel the rest, close. Idempotent.

        Clients are told at once to open no more streams. Cancelled: closed without grace.
        """
        self.closing = True
        if self._listener is not None:
            self._listener.stop()
        for connection in list(self._connections):
            connection.go_away("the server is closing")
        links = [connection.link for connection in self._connections]
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            self.flush()
            for connection in list(self._connections):
                connection.link.close()
        async with asyncio.TaskGroup() as group:
            for link in links:
                group.create_task(link.wait_gone(CLOSE_TIMEOUT_S))

    def statistics(self) -> ServerStatistics:
        """Return the counts now."""
        counts, traffic = self.counts, self._traffic
        return ServerStatistics(
            connections=len(self._connections),
            open_streams=counts.open_streams,
            open_streams_peak=counts.open_streams_peak,
            streams_total=counts.streams_total,
            queued_items=counts.queued_items,
            queued_items_peak=counts.queued_items_peak,
            items_out=counts.items_out,
            overflows=counts.overflows,
            protocol_errors=counts.protocol_errors,
            frames_in=traffic.frames_in,
            frames_out=traffic.frames_out,
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
        )

    # What connections say

    def refusal(self, connection: ServerConnection[CallT, ItemT]) -> str | None:
        """Take a connection in (None), or say why not."""
        if self.closing:
            return "the server is closing"
        if len(self._connections) >= self.limits.max_connections:
            return f"{len(self._connections)} connections are open (max_connections)"
        self._connections[connection] = None
        return None

    def touched(self, connection: ServerConnection[CallT, ItemT]) -> None:
        """Flush this connection at the end of the loop's iteration, if nobody does before."""
        self._touched.append(connection)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_forgotten)

    def stream_closed(self) -> None:
        """Wake ``close`` when the last stream is gone."""
        if not self.counts.open_streams:
            self._idle.set()

    def stream_opened(self) -> None:
        """There is something to wait for."""
        self._idle.clear()

    def lost(self, connection: ServerConnection[CallT, ItemT], error: TokenmillError) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)
        if isinstance(error, ProtocolError):
            self.counts.protocol_errors += 1
            self._on_fault(error)

    # Inside

    def _make_link(self) -> FrameLink[CallT, ItemT]:
        connection = ServerConnection(self)
        codec = FrameCodec[CallT, ItemT](self._call_type, self._item_type, self.limits.max_frame_bytes)
        hello = Hello(VERSION, self._name, self.limits.window)
        connection.link = FrameLink(connection, codec, self.limits, hello, self._traffic)
        return connection.link

    def _flush_forgotten(self) -> None:
        self._flush_scheduled = False
        self.flush()


def _log_fault(error: ProtocolError) -> None:
    structlog.get_logger(__name__).warning("peer broke the protocol", error=error.message)
