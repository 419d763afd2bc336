"""Which worker will have which prefix cached soon, since a prompt was just sent there.

Exists for the time between a decision and the worker's events (a burst of prompts with one prefix), and for
workers that give no events at all. It must not know prompts or costs.

A prompt is remembered by its names at the look-up's grid of depths alone: some 20 to 40 of them whatever its
length, all hashed already. So a predicted depth is too small by a fifth at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenmill.decide.router.index import Owner
from tokenmill.protocol.ids import BlockHash

_EXPIRE_AT_ONCE = 8
"""Predictions that one call lets expire at most: twice what a busy router adds between two calls, and
bounded."""


class Predictions:
    """``masks``: name -> workers that are taken to have it. ``limit``: most names that wait for expiry."""

    def __init__(self, limit: int) -> None:
        self.masks: dict[int, int] = {}
        self._limit = limit
        # What a second and further prediction adds, by (name, slot): so many must expire before the bit goes.
        self._again: dict[tuple[int, int], int] = {}
        # By time to live, since only equal ones expire in the order they came. Bounded by ``limit``.
        self._waiting: dict[float, deque[tuple[float, Owner, Sequence[BlockHash]]]] = {}
        self._names = 0

    @property
    def names(self) -> int:
        """Names that wait for their expiry, each as often as it was predicted."""
        return self._names

    def add(self, owner: Owner, names: Sequence[BlockHash], now: float, ttl_s: float) -> None:
        """``owner`` will have blocks of these names; believe it for ``ttl_s`` seconds."""
        if not names or ttl_s <= 0:
            return
        masks, bit = self.masks, owner.bit
        for name in names:
            mask = masks.get(name, 0)
            if mask & bit:
                key = (name, owner.slot)
                self._again[key] = self._again.get(key, 0) + 1
            else:
                masks[name] = mask | bit
        owner.claims += 1
        self._names += len(names)
        self._waiting.setdefault(ttl_s, deque()).append((now + ttl_s, owner, names))
        while self._names > self._limit:
            self._expire_first(max(self._waiting.values(), key=len))

    def expire(self, now: float) -> None:
        """Forget what is past its time, in bounded steps."""
        for waiting in self._waiting.values():
            for _ in range(_EXPIRE_AT_ONCE):
                if not waiting or waiting[0][0] > now:
                    break
                self._expire_first(waiting)

    def _expire_first(self, waiting: deque[tuple[float, Owner, Sequence[BlockHash]]]) -> None:
        _, owner, names = waiting.popleft()
        owner.claims -= 1
        self._names -= len(names)
        masks, again, bit, slot = self.masks, self._again, owner.bit, owner.slot
        for name in names:
            if again:
                more = again.pop((name, slot), 0)
                if more:
                    if more > 1:
                        again[name, slot] = more - 1
                    continue
            left = masks[name] & ~bit
            if left:
                masks[name] = left
            else:
                del masks[name]
