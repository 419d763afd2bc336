"""The tenants of one level of priority, and the sequences of each that wait.

Exists as the part of the queue that knows a tenant's counter and place. It must not know other levels,
workers or time.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from tokenmill.protocol.ids import RequestId

_IDLE_LINES = 1024
"""Idle tenants a level remembers. Those whose counter is no higher than where they would be lifted to are
forgotten without loss; beyond them the lowest, who gain at most what they were last charged."""


class Waiting:
    """One sequence that waits. ``due_at``: when its wait ends without a worker; the earliest is first among
    one tenant's. ``begun``: it or others of its request have been served, so that it cannot be refused."""

    __slots__ = (
        "arrived_at",
        "begun",
        "deadline_at",
        "due_at",
        "group",
        "level",
        "number",
        "parked_at",
        "queued",
        "replay",
        "request_id",
        "tenant",
        "tokens",
    )

    def __init__(
        self,
        request_id: RequestId,
        *,
        tenant: str,
        level: int,
        tokens: int,
        arrived_at: float,
        due_at: float,
        deadline_at: float | None = None,
        group: str = "",
        begun: bool = False,
        replay: bool = False,
    ) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.level = level
        self.tokens = tokens
        self.arrived_at = arrived_at
        self.due_at = due_at
        self.deadline_at = deadline_at
        self.group = group
        self.begun = begun
        self.replay = replay
        self.number = 0
        self.queued = False
        self.parked_at: float | None = None


class Line:
    """One tenant's sequences on one level. ``entries`` are in order of arrival, by number; ``counter`` is the
    tenant's virtual token counter here."""

    __slots__ = ("_heap", "counter", "entries", "listed", "tenant", "tokens", "weight")

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.counter = 0.0
        self.tokens = 0
        self.entries: dict[int, Waiting] = {}
        self.listed = False
        """The level's heap has it."""
        # May hold entries that have left; at most half of it and eight, see ``remove``.
        self._heap: list[tuple[float, int, Waiting]] = []

    def push(self, entry: Waiting) -> None:
        """Add one."""
        self.entries[entry.number] = entry
        self.tokens += entry.tokens
        heappush(self._heap, (entry.due_at, entry.number, entry))

    def remove(self, entry: Waiting) -> None:
        """Take one out, wherever it stands."""
        del self.entries[entry.number]
        self.tokens -= entry.tokens
        if len(self._heap) > 2 * len(self.entries) + 8:
            self._heap = [(one.due_at, number, one) for number, one in self.entries.items()]
            heapify(self._heap)

    def first(self) -> Waiting:
        """Return the one due first; there must be one."""
        while self._heap[0][1] not in self.entries:
            heappop(self._heap)
        return self._heap[0][2]


class Level:
    """The tenants of one priority."""

    __slots__ = ("_heap", "_last", "_ties", "active", "lines", "tokens", "turn_at", "waiting")

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        """By tenant; some have nothing that waits, and are kept for their counters."""
        self.active: dict[str, Line] = {}
        """Those where something waits."""
        self.turn_at = 0.0
        """When something was admitted last, or came to wait where nothing had waited."""
        self.waiting = 0
        self.tokens = 0
        self._last: Line | None = None
        self._ties = 0
        # Waiting tenants by a counter they had; counters only grow, so that the top is corrected when met.
        self._heap: list[tuple[float, int, Line]] = []

    def first_line(self) -> Line | None:
        """Return the waiting tenant with the lowest counter."""
        heap = self._heap
        while heap:
            counter, tie, line = heap[0]
            if not line.entries:
                heappop(heap)
                line.listed = False
            elif counter != line.counter:
                heapreplace(heap, (line.counter, tie, line))
            else:
                return line
        return None

    def base(self) -> float:
        """Return what a tenant who comes to wait is lifted to."""
        first = self.first_line() or self._last
        return 0.0 if first is None else first.counter

    def push(self, entry: Waiting, weight: float) -> None:
        """Add one; ``weight`` is its tenant's share."""
        line = self.lines.get(entry.tenant)
        if line is None:
            self._forget_idle()
            line = self.lines[entry.tenant] = Line(entry.tenant, weight)
        if not line.entries:
            line.counter = max(line.counter, self.base())
            self.active[entry.tenant] = line
            if not line.listed:
                self._ties += 1
                line.listed = True
                heappush(self._heap, (line.counter, self._ties, line))
        line.push(entry)
        self.waiting += 1
        self.tokens += entry.tokens

    def remove(self, entry: Waiting) -> None:
        """Take one out, wherever it stands."""
        line = self.lines[entry.tenant]
        line.remove(entry)
        self.waiting -= 1
        self.tokens -= entry.tokens
        if not line.entries:
            del self.active[entry.tenant]
            self._last = line

    def _forget_idle(self) -> None:
        if len(self.lines) - len(self.active) < _IDLE_LINES:
            return
        base = self.base()
        idle = (line for line in self.lines.values() if not line.entries and line.counter > base)
        kept = sorted(idle, key=lambda line: -line.counter)[: _IDLE_LINES // 2]
        self.lines = self.active | {line.tenant: line for line in kept}

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        assert self.waiting == sum(len(line.entries) for line in self.lines.values())
        assert self.tokens == sum(line.tokens for line in self.lines.values())
        assert self.active == {name: line for name, line in self.lines.items() if line.entries}
        assert len(self.lines) - len(self.active) <= _IDLE_LINES
        listed = [line.tenant for _, _, line in self._heap]
        assert len(listed) == len(set(listed))
        for line in self.lines.values():
            assert line.tokens == sum(entry.tokens for entry in line.entries.values())
            assert list(line.entries) == sorted(line.entries)
            assert line.listed or not line.entries
