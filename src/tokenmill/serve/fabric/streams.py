"""Streams between processes: the names that other rooms use.

A server answers each call with a stream of items; a client hears them by callbacks. One frame carries all
items of one engine step for one client, which decides what a token costs on its way.
"""

from __future__ import annotations

from tokenmill.serve.fabric.client import ClientStream, ConnectionStatistics, StreamConnection
from tokenmill.serve.fabric.limits import StreamLimits
from tokenmill.serve.fabric.server import ServerStatistics, StreamServer
from tokenmill.serve.fabric.server_stream import ServerStream

__all__ = [
    "ClientStream",
    "ConnectionStatistics",
    "ServerStatistics",
    "ServerStream",
    "StreamConnection",
    "StreamLimits",
    "StreamServer",
]
