"""One port for all front doors of a factory: every one listens on it, the kernel deals connections out.

Exists because only the supervisor outlives each of them: it keeps the number while they come and go. It must
not know what is served there.

Where the system does not deal connections out among the listeners of a port (all but Linux), replica i
listens on the declared port plus i instead, and the supervisor reserves nothing.
"""

from __future__ import annotations

import socket
import sys

from tokenmill.errors import ConfigError


def can_share_ports() -> bool:
    """Whether several processes may listen on one port and each get its share of the connections."""
    return sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")


class PortReservation:
    """A socket that is bound and never listens: it gets no connection and keeps the port ours.

    ``port`` is the number, a free one for port 0. Raises ConfigError where the address cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        self.wanted = (host, port)
        self._socket: socket.socket | None = None
        try:
            family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[
                0
            ]
            self._socket = socket.socket(family, kind, proto)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(address)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port"
            ) from None
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let the port go. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
