"""Links that transfers share: each host has one port out and one port in.

Exists so that many caches moving at once slow each other down as they would. Each port gives its transfers
equal shares, and a transfer goes at the smaller of its two. (What the other port leaves unused is not given
to others: a slight underestimate where one end is much more crowded.) It must not know what is moved or why.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.simulate.kernel import TRANSFER, Kernel
from tokenmill.simulate.scene import LinkScene


class Port:
    """``flows``: that move now, in the order they began. ``factor``: by how much it is slowed down."""

    __slots__ = ("bytes_per_s", "factor", "flows")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.factor = 1.0
        self.flows: dict[Flow, None] = {}

    @property
    def share(self) -> float:
        """Bytes a second for each of its flows."""
        return self.bytes_per_s / self.factor / len(self.flows)


class Flow:
    """One transfer. ``latency_s``: to be added when all is through. ``moving_s``: how long it has moved.
    ``drained``: called when all bytes given so far are through."""

    __slots__ = (
        "drained",
        "latency_s",
        "moving_s",
        "number",
        "ports",
        "rate",
        "remaining_bytes",
        "since",
        "version",
    )

    def __init__(
        self, number: int, ports: tuple[Port, ...], latency_s: float, drained: Callable[[], None]
    ) -> None:
        self.number = number
        self.ports = ports
        self.latency_s = latency_s
        self.drained = drained
        self.remaining_bytes = 0.0
        self.rate = 0.0
        self.since = 0.0
        self.moving_s = 0.0
        self.version = 0

    @property
    def moves(self) -> bool:
        """It has bytes on the way."""
        return self in self.ports[0].flows


class Links:
    """All ports of a plant. ``between``: what each host's ports carry, ``within``: what a host's inside."""

    def __init__(self, between: LinkScene, within: LinkScene, kernel: Kernel) -> None:
        self._between = between
        self._within = within
        self._kernel = kernel
        self._ports: dict[tuple[str, str], Port] = {}
        self._factors: dict[str | None, float] = {}
        self._flows = 0

    def flow(self, giver: str, taker: str, drained: Callable[[], None]) -> Flow:
        """Return a transfer from one host to another, without bytes."""
        self._flows += 1
        if giver == taker:
            ports: tuple[Port, ...] = (self._port(giver, "within", self._within.bytes_per_s),)
            return Flow(self._flows, ports, self._within.latency_s, drained)
        capacity = self._between.bytes_per_s
        ports = (self._port(giver, "out", capacity), self._port(taker, "in", capacity))
        return Flow(self._flows, ports, self._between.latency_s, drained)

    def send(self, flow: Flow, more_bytes: float) -> None:
        """Give ``more_bytes`` to a transfer; without any it is drained at once."""
        if flow.moves:
            self._settle(flow)
            flow.remaining_bytes += more_bytes
            self._await(flow)
            return
        flow.remaining_bytes = more_bytes
        flow.since = self._kernel.now
        for port in flow.ports:
            port.flows[flow] = None
        self._share_anew(flow.ports)

    def stop(self, flow: Flow) -> None:
        """Nobody wants the rest."""
        if flow.moves:
            self._settle(flow)
            self._leave(flow)

    def slow_down(self, host: str | None, factor: float) -> None:
        """Ports of ``host`` (None: of all hosts) carry ``1 / factor`` of what they should."""
        self._factors[host] = factor
        for (name, side), port in self._ports.items():
            if side != "within" and host in (None, name):
                for flow in port.flows:
                    self._settle(flow)
                port.factor = self._factor(name)
                self._share_anew((port,))

    def _factor(self, host: str) -> float:
        return self._factors.get(None, 1.0) * self._factors.get(host, 1.0)

    def _port(self, host: str, side: str, bytes_per_s: float) -> Port:
        port = self._ports.get((host, side))
        if port is None:
            port = self._ports[host, side] = Port(bytes_per_s)
            if side != "within":
                port.factor = self._factor(host)
        return port

    def _share_anew(self, ports: tuple[Port, ...]) -> None:
        """The number of a port's flows, or its speed, has changed."""
        concerned: dict[Flow, None] = {}
        for port in ports:
            concerned.update(port.flows)
        for flow in concerned:
            self._settle(flow)
            rate = min([port.share for port in flow.ports])
            if rate != flow.rate:
                flow.rate = rate
                self._await(flow)

    def _settle(self, flow: Flow) -> None:
        now = self._kernel.now
        moved_s, flow.since = now - flow.since, now
        flow.moving_s += moved_s
        flow.remaining_bytes = max(0.0, flow.remaining_bytes - moved_s * flow.rate)

    def _await(self, flow: Flow) -> None:
        flow.version += 1
        end = self._kernel.now + flow.remaining_bytes / flow.rate
        version = flow.version
        self._kernel.at(end, TRANSFER, flow.number, lambda _: self._on_drained(flow, version))

    def _on_drained(self, flow: Flow, version: int) -> None:
        if version != flow.version:
            return
        self._settle(flow)
        flow.remaining_bytes = 0.0
        self._leave(flow)
        flow.drained()

    def _leave(self, flow: Flow) -> None:
        flow.version += 1
        flow.rate = 0.0
        for port in flow.ports:
            del port.flows[flow]
        self._share_anew(flow.ports)
