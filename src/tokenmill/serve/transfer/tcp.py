"""Driver "tcp": peers on any host. It must not know what is sent."""

from __future__ import annotations

import asyncio
import socket

from tokenmill.errors import ConfigError

_WILDCARDS = {"", "0.0.0.0", "::"}  # noqa: S104
_BACKLOG = 256
_LOOPBACK_BUFFER_BYTES = 256 << 10
"""Within one host bytes in flight should stay in the cores' caches."""


class TcpDriver:
    """Listens on a free port of ``host``, which is also what peers are told: it must be reachable for them.

    For a wildcard address peers are told this machine's host name.
    """

    name = "tcp"

    def __init__(self, host: str) -> None:
        self._host = host

    def listen(self) -> tuple[socket.socket, str]:
        """Open the listening socket. Raises ConfigError when ``host`` is no address of this machine."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, 0), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on host {self._host!r} for KV transfers: {error}") from error
        listener.setblocking(False)
        host = socket.gethostname() if self._host in _WILDCARDS else self._host
        return listener, f"{host}|{listener.getsockname()[1]}"

    def reachable(self, address: str) -> bool:
        """Any address may be: only connecting tells."""
        return "|" in address

    async def connect(self, address: str) -> socket.socket:
        """Connect to a peer. Raises OSError."""
        host, _, port = address.rpartition("|")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, where)
            tune(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Nothing is left behind."""


def tune(sock: socket.socket) -> None:
    """Set a connection's options, on both ends; others than TCP are left alone."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.getsockname()[0] == sock.getpeername()[0]:  # over a network the system's own sizing is better
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOOPBACK_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOOPBACK_BUFFER_BYTES)
