"""Who waits, and whose turn it is: levels of priority, and within a level a fair share for every tenant.

Fairness is a virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024):
each tenant has a counter of the service it got, in charged tokens over its weight, and the tenant with the
lowest one is next. Whoever comes to wait anew is lifted to the lowest counter among those who wait, so that
nobody saves up while idle. Between two tenants who both wait all the time the counters never differ by more
than what one of them can have charged at once.

It must not know workers, time limits or I/O. All methods but ``victims_for`` and
``tokens_ahead`` (linear in waiting tenants) take a time logarithmic in what waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace

from tokenmill.decide.router.fair_level import Level, Line, Waiting


class FairQueue:
    """All that waits. Replays go before everything else, in order of arrival."""

    def __init__(self, weights: Mapping[str, float], *, level_turn_s: float) -> None:
        self._weights = weights
        self._level_turn_s = level_turn_s
        self._levels: dict[int, Level] = {}
        self._order: list[int] = []  # levels where something waits, ascending
        self._replays: dict[int, Waiting] = {}
        self._arrivals = 0
        self._replay_tokens = 0
        self.tokens = 0
        """Prompt tokens that wait."""

    def __len__(self) -> int:
        return len(self._replays) + sum(self._levels[level].waiting for level in self._order)

    def __iter__(self) -> Iterator[Waiting]:
        yield from self._replays.values()
        for level in self._order:
            for line in self._levels[level].active.values():
                yield from line.entries.values()

    def push(self, entry: Waiting, now: float) -> None:
        """Put a sequence at its place: among its tenant's by ``due_at``, then by arrival here."""
        self._arrivals += 1
        entry.number = self._arrivals
        entry.queued = True
        self.tokens += entry.tokens
        if entry.replay:
            self._replays[entry.number] = entry
            self._replay_tokens += entry.tokens
            return
        level = self._levels.setdefault(entry.level, Level())
        if not level.waiting:
            level.turn_at = now
            self._order.append(entry.level)
            self._order.sort()
        level.push(entry, self._weights.get(entry.tenant, 1.0))

    def remove(self, entry: Waiting) -> None:
        """Take a sequence out, wherever it stands."""
        entry.queued = False
        self.tokens -= entry.tokens
        if entry.replay:
            del self._replays[entry.number]
            self._replay_tokens -= entry.tokens
            return
        level = self._levels[entry.level]
        level.remove(entry)
        if not level.waiting:
            self._order.remove(entry.level)

    def first(self, now: float, *, pass_replays: bool = False) -> Waiting | None:
        """Return whose turn it is, or None if nothing waits. It stays in the queue."""
        if self._replays and not pass_replays:
            return next(iter(self._replays.values()))
        if not self._order:
            return None
        level = self._levels[self._order[-1]]
        if len(self._order) > 1:
            longest = min((self._levels[each] for each in self._order), key=lambda each: each.turn_at)
            if now - longest.turn_at >= self._level_turn_s:
                level = longest
        line = level.first_line()
        assert line is not None
        return line.first()

    def take(self, entry: Waiting, charge: float, now: float) -> None:
        """Take a sequence out since it is served now, and charge its tenant ``charge`` tokens."""
        if not entry.replay:  # what a replay repeats has been charged
            self._levels[entry.level].turn_at = now
            self.charge(entry.level, entry.tenant, charge)
        self.remove(entry)

    def charge(self, level: int, tenant: str, tokens: float) -> None:
        """Charge a tenant for further service."""
        lines = self._levels[level].lines if level in self._levels else {}
        line = lines.get(tenant)
        if line is not None:
            line.counter += tokens / line.weight

    def victims_for(self, arrival: Waiting, count_over: int, tokens_over: int) -> list[Waiting] | None:
        """Return who must go so that ``arrival`` can stay in a queue that it would overfill by so much; None:
        it has the least right to a place itself.

        Least right: on the lowest level, of the tenant furthest over its share of the queue (tokens over
        weight, the arrival's counted in), the newest. Nothing is changed.
        """
        victims: list[Waiting] = []
        for number in self._order:
            if number > arrival.level:
                break
            own = arrival if number == arrival.level else None
            for victim in _least_right_first(self._levels[number].active.values(), own, self._weights):
                if victim is arrival:
                    return None
                victims.append(victim)
                count_over -= 1
                tokens_over -= victim.tokens
                if count_over <= 0 and tokens_over <= 0:
                    return victims
        return None

    def tokens_ahead(self, level: int, tenant: str) -> float:
        """Estimate the tokens that go before what a tenant's next sequence on a level would bring."""
        ahead = float(self._replay_tokens)
        ahead += sum(self._levels[number].tokens for number in self._order if number > level)
        own_level = self._levels.get(level)
        if own_level is None or not own_level.waiting:
            return ahead
        line = own_level.lines.get(tenant)
        own, weight = (line.tokens, line.weight) if line else (0, self._weights.get(tenant, 1.0))
        others = (each for each in own_level.active.values() if each is not line)
        # While the tenant's own go, each other one gets its share beside them.
        return ahead + own + sum(min(each.tokens, own * each.weight / weight) for each in others)

    def counter(self, level: int, tenant: str) -> float:
        """Return a tenant's service counter on a level, in charged tokens over its weight."""
        found = self._levels.get(level)
        line = found.lines.get(tenant) if found else None
        return 0.0 if line is None else line.counter

    def tenants(self) -> int:
        """Return how many tenants wait."""
        return len({entry.tenant for entry in self})

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        assert self.tokens == sum(entry.tokens for entry in self)
        assert self._order == sorted(number for number, level in self._levels.items() if level.waiting)
        assert self._replay_tokens == sum(entry.tokens for entry in self._replays.values())
        assert all(entry.queued for entry in self)
        for level in self._levels.values():
            level.validate()


def _least_right_first(
    lines: Iterable[Line], arrival: Waiting | None, weights: Mapping[str, float]
) -> Iterator[Waiting]:
    """Yield those who can be refused: each time the newest of whoever then has most tokens for its weight."""
    shares: list[tuple[float, int, float, Line | None]] = []
    found: Line | None = None
    for at, line in enumerate(lines):
        if arrival is not None and line.tenant == arrival.tenant:
            found = line
        else:
            shares.append((-line.tokens / line.weight, at, line.weight, line))
    if arrival is not None:  # of those who have equally much, the arrival is first to go
        weight = weights.get(arrival.tenant, 1.0)
        tokens = arrival.tokens + (found.tokens if found else 0)
        shares.append((-tokens / weight, -1, weight, found))
    heapify(shares)
    newest: dict[int, Iterator[Waiting]] = {}
    while shares:
        share, at, weight, tenant = shares[0]
        if at not in newest:
            newest[at] = _newest_first(tenant, arrival if at < 0 else None)
        victim = next(newest[at], None)
        if victim is None:
            heappop(shares)
            continue
        heapreplace(shares, (share + victim.tokens / weight, at, weight, tenant))
        yield victim


def _newest_first(line: Line | None, arrival: Waiting | None) -> Iterator[Waiting]:
    if arrival is not None:
        yield arrival
    if line is not None:
        yield from (one for one in reversed(line.entries.values()) if not one.begun)
