"""Ports for servers that take seconds to bind them: nobody else of ours is given the same ones meanwhile.

A reservation is a bound UDP socket of the same number, which the kernel frees however its holder ends. Ports
are taken from below those that the kernel gives to outgoing connections. It must not know who listens there.
"""

from __future__ import annotations

import secrets
import socket

from tokenmill.errors import WorkerFailed

FIRST_PORT = 20_000
PAST_PORT = 32_000
"""Linux gives outgoing connections ports from 32768 on."""

_TRIES = 1000


class ReservedPorts:
    """``count`` ports, each with ``neighbours - 1`` more behind it, until ``release``. Raises WorkerFailed
    where there are none."""

    def __init__(self, count: int, host: str = "127.0.0.1", *, neighbours: int = 1) -> None:
        self.ports: list[int] = []
        self._host = host
        self._held: list[socket.socket] = []
        for _ in range(_TRIES):
            if len(self.ports) == count:
                return
            first = FIRST_PORT + secrets.randbelow(PAST_PORT - FIRST_PORT - neighbours)
            if self._reserve(range(first, first + neighbours)):
                self.ports.append(first)
        self.release()
        raise WorkerFailed(f"no {neighbours} neighbouring free ports on {host}")

    def release(self) -> None:
        """Let others have them."""
        while self._held:
            self._held.pop().close()

    def _reserve(self, ports: range) -> bool:
        mine: list[socket.socket] = []
        for port in ports:
            held = self._bound(port, socket.SOCK_DGRAM)
            probe = self._bound(port, socket.SOCK_STREAM) if held is not None else None
            if held is not None:
                mine.append(held)
            if probe is None:
                for taken in mine:
                    taken.close()
                return False
            probe.close()
        self._held += mine
        return True

    def _bound(self, port: int, kind: socket.SocketKind) -> socket.socket | None:
        bound = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, kind)
        try:
            bound.bind((self._host, port))
        except OSError:
            bound.close()
            return None
        return bound
