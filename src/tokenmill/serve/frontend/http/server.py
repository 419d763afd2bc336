"""The listening socket and all its connections: limits, time, drain.

Exists so that one object answers for every connection's end. It must not know routes or what answers mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.connection import Connection
from tokenmill.serve.frontend.http.messages import Handler, HttpLimits, Response
from tokenmill.serve.frontend.http.wire import http_date

_BACKLOG = 1024
_LONGEST_SWEEP_S = 1.0
_MOST_TURNED_AWAY = 256
"""Refused connections that are still open so that their clients can read why."""

_TLS_TIMES_S = {"ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": 2.0}

ErrorResponse = Callable[[int, str], Response]


class HttpServer:
    """Serves ``handler``. ``error_response`` says how an error of HTTP itself looks (status, message)."""

    def __init__(
        self, handler: Handler, error_response: ErrorResponse, *, limits: HttpLimits, clock: Clock
    ) -> None:
        self.handler = handler
        self.error_response = error_response
        self.limits = limits
        self.draining = False
        self._clock = clock
        self.now = clock.now
        self.date = http_date(clock.wall())
        self._connections: set[Connection] = set()
        self._turned_away: set[Connection] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: asyncio.Server | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        shortest_s = min(
            limits.idle_timeout_s, limits.header_timeout_s, limits.read_timeout_s, limits.write_timeout_s
        )
        self._sweep_s = min(_LONGEST_SWEEP_S, shortest_s / 4)

    async def start(
        self, host: str, port: int, *, reuse_port: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        """Listen. Raises ConfigError where the address cannot be had. Cancelled: not listening.

        ``reuse_port``: other processes may listen on the same port with it set; the kernel deals the
        connections out among them.
        """
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {} if tls is None else {"ssl": tls, **_TLS_TIMES_S}
        try:
            self._server = await loop.create_server(
                lambda: Connection(self),
                host,
                port,
                backlog=_BACKLOG,
                reuse_port=reuse_port or None,
                **options,
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._sweep_timer = loop.call_later(self._sweep_s, self._sweep)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def connection_count(self) -> int:
        """Open connections."""
        return len(self._connections)

    def admit(self, connection: Connection) -> bool:
        """Take a new connection into account; False when it is one too many or we are leaving."""
        if self.draining or len(self._connections) >= self.limits.max_connections:
            return False
        self._connections.add(connection)
        self._empty.clear()
        return True

    def turn_away(self, connection: Connection) -> bool:
        """Keep a connection that was not admitted until it has read so; False: these are too many, too."""
        if self.draining or len(self._turned_away) >= _MOST_TURNED_AWAY:
            return False
        self._turned_away.add(connection)
        self._empty.clear()
        return True

    def forget(self, connection: Connection) -> None:
        """Strike a connection that has ended."""
        self._connections.discard(connection)
        self._turned_away.discard(connection)
        if not self._connections and not self._turned_away:
            self._empty.set()

    def adopt(self, task: asyncio.Task[None]) -> None:
        """Keep a cancelled handler in hand until it has ended."""
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _sweep(self) -> None:
        now = self._clock.now()
        self.date = http_date(self._clock.wall())
        for connection in (*self._connections, *self._turned_away):
            connection.check(now)
        self._bound_buffers()
        self._sweep_timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _bound_buffers(self) -> None:
        """Refuse the largest requests among those arriving until the rest fits."""
        sizes = {each: each.buffered_bytes for each in self._connections}
        over_bytes = sum(sizes.values()) - self.limits.max_buffered_bytes
        if over_bytes <= 0:
            return
        for connection in sorted(sizes, key=sizes.__getitem__, reverse=True):
            connection.refuse_body()
            over_bytes -= sizes[connection]
            if over_bytes <= 0:
                return

    async def close(self, drain_timeout_s: float = 0.0) -> None:
        """Stop listening, let running requests end for ``drain_timeout_s``, then drop what is left.

        Cancelled: what is left is dropped by the garbage of the loop; call again to be sure.
        """
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in (*self._connections, *self._turned_away):
            connection.close_if_idle()
        try:
            async with asyncio.timeout(drain_timeout_s):
                await self._empty.wait()
        except TimeoutError:
            for connection in (*self._connections, *self._turned_away):
                connection.abort()
            await self._empty.wait()
        if self._leaving:
            await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
