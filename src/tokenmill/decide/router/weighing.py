"""The cheapest workers for one prompt, found without asking each worker what it would cost.

Exists because a request meets a worker only through its uncached tokens: what else a worker costs is kept up
to date by ``roster``. So of all workers with the same hit the one with the least of the rest is the cheapest,
and only where a worker may win is its hit's exact depth looked up. The answer is that of ``cost.cost_terms``
for every worker. It must not know policies or paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from tokenmill.decide.router.cost import CachedTokens, CostWeights, prefill_ms, uncached_tokens
from tokenmill.decide.router.lookup import Finder, Interval, Lookup
from tokenmill.decide.router.masks import mask_of, slots_of
from tokenmill.decide.router.roster import Group, Roster
from tokenmill.decide.router.types import RouteRequest
from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import CacheTier

_SLACK_MS = 1e-6
"""Bounds are compared with so much to spare, since rounding may put them on the wrong side of a cost."""

_FEW = 12
"""So few workers are asked one by one, more in one go over their group."""

NOTHING: Final = CachedTokens()


class Cheapest(NamedTuple):
    """Who costs least: ``slots`` (more than one where they tie), and what is cached at each (a bare number is
    of tokens in device memory)."""

    cost_ms: float
    slots: list[int]
    cached: list[CachedTokens | int]


class Known(NamedTuple):
    """What was found out about some workers' caches: ``mask`` have ``cached``, or more if not ``exact``."""

    mask: int
    cached: CachedTokens
    exact: bool


Seen = tuple[int, list[Interval]]
"""What a fast look-up found, as it came: block size, and intervals in blocks of that size."""

_UNSEEN: Final = Known(0, NOTHING, True)


class Weighing:
    """One request before all workers."""

    def __init__(
        self,
        request: RouteRequest,
        roster: Roster,
        weights: CostWeights,
        finders: Callable[[int], Finder],
    ) -> None:
        self.request = request
        self.tokens = request.tokens
        self._seen: list[Seen | Known] = []
        self._roster = roster
        self._weights = weights
        self._finders = finders
        self._lookups: dict[int, Lookup] = {}

    def lookup(self, block_tokens: int) -> Lookup:
        """Return the prompt's look-up for workers of that block size."""
        found = self._lookups.get(block_tokens)
        if found is None:
            finder, request = self._finders(block_tokens), self.request
            if request.named is not None:
                found = finder.look_up_named(request.named)
            else:
                found = finder.look_up(request.packed, request.cache_salt)
            self._lookups[block_tokens] = found
        return found

    def names(self) -> dict[int, list[BlockHash]]:
        """Return the names of the prompt's blocks that were looked up, by block size."""
        return {block_tokens: lookup.names for block_tokens, lookup in self._lookups.items()}

    @property
    def seen(self) -> Sequence[Seen | Known]:
        """What was looked up, in the order it was: a worker's first exact entry is the one that holds."""
        return self._seen

    def cached_at(self, slot: int) -> CachedTokens:
        """Return what a worker has cached, as far as it was looked up."""
        return best_known(self._seen, 1 << slot).get(slot, _UNSEEN).cached

    def cheapest(self, groups: tuple[Group, ...], allowed: int) -> Cheapest | None:
        """Return who of ``allowed`` costs least, or None when nobody is."""
        race = _Race()
        for group in groups:
            members = group.mask & allowed
            if not members:
                continue
            lookup = self.lookup(group.block_tokens)
            if lookup.lowest:
                for known in self.exactly(lookup, members):
                    slots = slots_of(known.mask)
                    bases = [self._roster.base[slot] for slot in slots]
                    race.enter(slots, bases, self.own_ms(known.cached, group), known.cached)
            else:
                self._run(race, group, lookup, members)
        return Cheapest(race.least_ms, race.slots, race.cached) if race.slots else None

    def own_ms(self, cached: CachedTokens, group: Group) -> float:
        """Return what the prompt itself costs at a worker of ``group``."""
        uncached = uncached_tokens(self.tokens, cached, self._weights)
        return prefill_ms(uncached, self.tokens, group.speed, self._weights)

    def exactly(self, lookup: Lookup, members: int) -> list[Known]:
        """Return what each of ``members`` has cached, in every tier."""
        found = [Known(members, NOTHING, True)]
        for tier in CacheTier:
            if tier > lookup.lowest:
                break
            found = _deepened(found, lookup, tier, members)
        self._seen += found
        return found

    def _run(self, race: _Race, group: Group, lookup: Lookup, members: int) -> None:
        """Enter those of a group who may win, where only device memory caches.

        Deepest first: a shallower hit costs more, so that once the least loaded of all could not win with
        one, nobody can. First every interval bounds the costs by its least depth; then whoever could win by
        its most is looked up exactly."""
        base, size = self._roster.base, lookup.block_tokens
        bases = group.pick(base)
        floor_ms = min(bases)
        floor_bit = 1 << group.slots[bases.index(floor_ms)]
        intervals = lookup.intervals(members)
        runners: list[tuple[float, Interval]] = []
        missing = members
        deeper, deeper_ms = 0, 0.0
        for interval in reversed(intervals):
            low, high, mask = interval
            least_ms = self._device_ms(low * size, group)
            best_ms = least_ms
            if high - low > 1:  # the next one's least is near enough to this one's best, and known
                best_ms = deeper_ms if deeper == high else self._device_ms((high - 1) * size, group)
            deeper, deeper_ms = low, least_ms
            if floor_ms + best_ms > race.limit_ms:
                missing = 0
                break
            missing ^= mask
            runners.append((best_ms, interval))
            if mask & floor_bit:
                race.bound(floor_ms + least_ms)
            elif mask.bit_count() <= _FEW:
                race.bound(min([base[slot] for slot in slots_of(mask)]) + least_ms)
        if missing:
            self._enter(race, group, bases, missing, 0)
        exact: list[Interval] = []
        for best_ms, interval in runners:
            if floor_ms + best_ms > race.limit_ms:
                break
            rivals = self._among(group, bases, interval[2], race.limit_ms - best_ms)
            for deep, _, having in lookup.refine(interval, rivals):
                exact.append((deep, deep + 1, having))
                self._enter(race, group, bases, having, deep * size)
        self._seen += ((size, intervals), (size, exact))

    def _enter(
        self, race: _Race, group: Group, bases: Sequence[float], mask: int, cached_tokens: int
    ) -> None:
        """Enter those in ``mask``, a part of the group whose workers' bases are ``bases``."""
        slots: Sequence[int] = group.slots
        if mask != group.mask:
            base = self._roster.base
            slots = slots_of(mask)
            bases = [base[slot] for slot in slots]
        race.enter(slots, bases, self._device_ms(cached_tokens, group), cached_tokens)

    def _among(self, group: Group, bases: Sequence[float], mask: int, limit_ms: float) -> int:
        """Return those in ``mask`` whose base is at most ``limit_ms``."""
        if mask.bit_count() <= _FEW:
            base = self._roster.base
            return mask_of([slot for slot in slots_of(mask) if base[slot] <= limit_ms])
        near = [slot for slot, own in zip(group.slots, bases, strict=True) if own <= limit_ms]
        return mask_of(near) & mask

    def _device_ms(self, cached_tokens: int, group: Group) -> float:
        """``own_ms`` where all that is cached is in device memory, which saves a token's whole prefill."""
        tokens = self.tokens
        uncached = max(1.0, tokens - cached_tokens)
        return prefill_ms(uncached, tokens, group.speed, self._weights)


class _Race:
    """The cheapest so far. ``limit_ms``: who costs more than this for sure cannot win."""

    __slots__ = ("cached", "least_ms", "limit_ms", "slots")

    def __init__(self) -> None:
        self.least_ms = self.limit_ms = math.inf
        self.slots: list[int] = []
        self.cached: list[CachedTokens | int] = []

    def bound(self, cost_ms: float) -> None:
        """Somebody costs at most so much."""
        self.limit_ms = min(self.limit_ms, cost_ms + _SLACK_MS)

    def enter(
        self, slots: Sequence[int], bases: Sequence[float], own_ms: float, cached: CachedTokens | int
    ) -> None:
        """Workers that the prompt itself costs the same, and what each costs any (``bases``)."""
        base_ms = min(bases)
        cost_ms = base_ms + own_ms
        if cost_ms > self.least_ms:
            return
        if cost_ms < self.least_ms:
            self.least_ms = cost_ms
            self.bound(cost_ms)
            self.slots, self.cached = [], []
        if bases.count(base_ms) == 1:
            self.slots.append(slots[bases.index(base_ms)])
            self.cached.append(cached)
        else:
            tied = [slot for slot, own in zip(slots, bases, strict=True) if own == base_ms]
            self.slots += tied
            self.cached += [cached] * len(tied)


def best_known(seen: Sequence[Seen | Known], members: int) -> dict[int, Known]:
    """Return by slot what is known of each member's cache: the first exact entry, else the last."""
    best: dict[int, Known] = {}
    for entry in seen:
        for known in (entry,) if isinstance(entry, Known) else _spelled_out(*entry):
            for slot in slots_of(known.mask & members):
                if slot not in best or not best[slot].exact:
                    best[slot] = known
    return best


def _spelled_out(block_tokens: int, intervals: list[Interval]) -> Iterator[Known]:
    for low, high, mask in intervals:
        yield Known(mask, CachedTokens(low * block_tokens), high - low == 1)


def _deepened(found: list[Known], lookup: Lookup, tier: CacheTier, members: int) -> list[Known]:
    """Split what is known by how much deeper a prefix is with the blocks of ``tier``, and credit it there."""
    size = lookup.block_tokens
    exact = [
        exactly
        for interval in lookup.intervals(members, tier)
        for exactly in lookup.refine(interval, members, tier)
    ]
    result: list[Known] = []
    for mask, cached, _ in found:
        rest = mask
        for low, _, having in exact:
            both = mask & having
            more = low * size - sum(cached)
            if both and more > 0:
                parts = list(cached)
                parts[tier] = more
                result.append(Known(both, CachedTokens(*parts), True))
                rest ^= both
        if rest:
            result.append(Known(rest, cached, True))
    return result
