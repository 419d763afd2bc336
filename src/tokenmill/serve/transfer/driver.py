"""What differs between the ways to reach a peer: the address and the socket, not what is said over it."""

from __future__ import annotations

import socket
from typing import Protocol


class Driver(Protocol):
    """One way to reach a peer. Sockets are stream sockets, non-blocking."""

    name: str

    def listen(self) -> tuple[socket.socket, str]:
        """Open a listening socket; return it with the address that peers connect to. Raises ConfigError."""
        ...

    def reachable(self, address: str) -> bool:
        """Whether it makes sense to try an address from this host."""
        ...

    async def connect(self, address: str) -> socket.socket:
        """Connect to a peer. Raises OSError. Cancelled: nothing is left open."""
        ...

    def close(self) -> None:
        """Remove what ``listen`` left in the file system."""
        ...
