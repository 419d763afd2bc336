"""Listening and connecting on parsed addresses: what an operating system wants to hear.

It hands connections to a protocol factory and doesn't know what is said on them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenmill.errors import ConfigError
from tokenmill.serve.fabric.address import Address, TcpAddress, UnixAddress

BACKLOG = 1024
"""Connections that the kernel keeps for us while the loop is busy."""

ProtocolFactory = Callable[[], asyncio.Protocol]


@dataclass(frozen=True)
class Listener:
    """A listening socket. ``address`` is where it can be reached (port 0 resolved)."""

    address: Address
    server: asyncio.Server
    inode: int | None = None

    def stop(self) -> None:
        """Accept no more connections, and remove the socket file if it is still ours."""
        self.server.close()
        if isinstance(self.address, UnixAddress):
            try:
                if Path(self.address.path).stat().st_ino == self.inode:
                    Path(self.address.path).unlink()
            except FileNotFoundError:
                pass


async def listen(factory: ProtocolFactory, address: Address) -> Listener:
    """Listen on ``address``. Raises ConfigError where that cannot be. Cancelled: nothing listens."""
    loop = asyncio.get_running_loop()
    try:
        if isinstance(address, UnixAddress):
            sock, inode = _bind_unix(address.path)
            server = await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG)
            return Listener(address, server, inode)
        sock = await _bind_tcp(loop, address)
        port = sock.getsockname()[1]
        server = await loop.create_server(factory, sock=sock, backlog=BACKLOG)
        return Listener(TcpAddress(address.host, port), server)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error}", param="address") from error


async def connect(factory: ProtocolFactory, address: Address) -> None:
    """Connect to ``address``; the protocol hears of it by ``connection_made``. Raises OSError.

    Cancelled: no connection is left.
    """
    loop = asyncio.get_running_loop()
    if isinstance(address, UnixAddress):
        await loop.create_unix_connection(factory, address.path)
    else:
        await loop.create_connection(factory, address.host, address.port)


async def _bind_tcp(loop: asyncio.AbstractEventLoop, address: TcpAddress) -> socket.socket:
    found = await loop.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # Only the first: with port 0 a second family would get another port than the one we announce.
    family, _, _, _, where = found[0]
    sock = socket.create_server((str(where[0]), int(where[1])), family=family, backlog=BACKLOG)
    sock.setblocking(False)
    return sock


def _bind_unix(path: str) -> tuple[socket.socket, int]:
    """Bind, for this user only; return the socket and its file's inode.

    A socket file that nobody listens on is removed; another is left alone.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            Path(path).unlink()
            sock.bind(path)
        Path(path).chmod(0o600)
        inode = Path(path).stat().st_ino
    except BaseException:
        sock.close()
        raise
    return sock, inode


def _is_stale(path: str) -> bool:
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
