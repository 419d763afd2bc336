"""How one worker is taken out of several: by cost, or by a policy that is asked.

Exists so that the router treats both alike. It must not know stages or paths.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tokenmill.decide.router.cost import CachedTokens
from tokenmill.decide.router.masks import slots_of
from tokenmill.decide.router.roster import Group, Roster
from tokenmill.decide.router.types import Candidate, RouterPolicy
from tokenmill.decide.router.weighing import NOTHING, Weighing
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import WorkerId


class Picked(NamedTuple):
    """One worker, what is cached there, and why it: ``reasons`` are for people."""

    slot: int
    cached: CachedTokens
    reasons: tuple[str, ...]


class Chooser(Protocol):
    """Takes one of the workers in ``allowed``; ``groups`` are those of all on that side."""

    def choose(
        self, weighing: Weighing, groups: tuple[Group, ...], allowed: int, now: float
    ) -> Picked | None:
        """Return the one taken, or None when ``allowed`` is empty."""
        ...


class ByCost:
    """The cheapest; equal ones in turn, from a place that ``seed`` decides, so that frontends do not move in
    step. With a temperature each is taken with probability in proportion to ``exp(-cost_ms /
    temperature_ms)``: in milliseconds, not relative to the candidates' range, so that a difference too small
    to matter does not matter more because all others are still smaller."""

    def __init__(self, roster: Roster, *, temperature_ms: float, seed: int) -> None:
        self._roster = roster
        self._temperature_ms = temperature_ms
        self._random = random.Random(seed)
        self._turn = self._random.randrange(1 << 16)

    def choose(
        self,
        weighing: Weighing,
        groups: tuple[Group, ...],
        allowed: int,
        now: float,  # noqa: ARG002 - costs are of the latest facts
    ) -> Picked | None:
        """See ``Chooser``."""
        if self._temperature_ms > 0:
            return self._draw(weighing, groups, allowed)
        best = weighing.cheapest(groups, allowed)
        if best is None:
            return None
        at = 0
        if len(best.slots) > 1:
            self._turn += 1
            at = self._turn % len(best.slots)
        cached = best.cached[at]
        if isinstance(cached, int):
            cached = CachedTokens(cached)
        return self._picked(best.slots[at], cached, best.cost_ms, weighing, "cheapest")

    def lightest(self, weighing: Weighing, takers: int, other: Picked) -> list[Picked]:
        """Return one of ``takers`` that has least to do, if it has less than ``other`` does."""
        base = self._roster.base
        slots = slots_of(takers)
        least_ms = min([base[slot] for slot in slots], default=math.inf)
        if least_ms >= base[other.slot]:
            return []
        tied = sorted(slot for slot in slots if base[slot] == least_ms)
        self._turn += 1
        slot = tied[self._turn % len(tied)]
        return [self._picked(slot, weighing.cached_at(slot), least_ms, weighing, "least loaded")]

    def _draw(self, weighing: Weighing, groups: tuple[Group, ...], allowed: int) -> Picked | None:
        base = self._roster.base
        found = [
            (slot, known.cached, base[slot] + own_ms)
            for group in groups
            if group.mask & allowed
            for known in weighing.exactly(weighing.lookup(group.block_tokens), group.mask & allowed)
            for own_ms in (weighing.own_ms(known.cached, group),)
            for slot in slots_of(known.mask)
        ]
        if not found:
            return None
        found.sort()  # by slot: the draw does not depend on how hits are grouped
        least_ms = min(cost_ms for _, _, cost_ms in found)
        weights = [math.exp((least_ms - cost_ms) / self._temperature_ms) for _, _, cost_ms in found]
        (slot, cached, cost_ms), *_ = self._random.choices(found, weights)
        return self._picked(slot, cached, cost_ms, weighing, "drawn by cost")

    def _picked(
        self, slot: int, cached: CachedTokens, cost_ms: float, weighing: Weighing, how: str
    ) -> Picked:
        facts = self._roster.facts[slot]
        assert facts is not None, "a slot without a worker"
        name = facts.card.worker_id
        reason = f"{name}: {how}, {cost_ms:.1f} ms, {sum(cached)} of {weighing.tokens} tokens cached"
        return Picked(slot, cached, (reason,))


class ByPolicy:
    """Asks a policy, for one side (workers for decode, or for prefill), so that its turns are its own."""

    def __init__(self, roster: Roster, policy: RouterPolicy) -> None:
        self._roster = roster
        self._policy = policy
        self.needs_cache = bool(getattr(policy, "needs_cache", False))

    def choose(
        self, weighing: Weighing, groups: tuple[Group, ...], allowed: int, now: float
    ) -> Picked | None:
        """See ``Chooser``. Raises ConfigError when the policy takes one that was not offered."""
        slots: list[int] = []
        cached: list[CachedTokens] = []
        for group in groups:
            members = group.mask & allowed
            if not members:
                continue
            if not self.needs_cache:
                own = group.slots if members == group.mask else slots_of(members)
                slots += own
                cached += [NOTHING] * len(own)
                continue
            for known in weighing.exactly(weighing.lookup(group.block_tokens), members):
                own = slots_of(known.mask)
                slots += own
                cached += [known.cached] * len(own)
        return self._ask(weighing, slots, cached, now) if slots else None

    def _ask(
        self, weighing: Weighing, slots: Sequence[int], cached: Sequence[CachedTokens], now: float
    ) -> Picked:
        offered: dict[WorkerId, tuple[int, CachedTokens]] = {}
        candidates = []
        for slot, tokens in sorted(zip(slots, cached, strict=True)):
            facts = self._roster.facts[slot]
            assert facts is not None, "a slot without a worker"
            candidates.append(Candidate(facts.card, facts.load, sum(tokens)))
            offered[facts.card.worker_id] = slot, tokens
        choice = self._policy.choose(candidates, weighing.request, now)
        if choice.worker not in offered:
            name = type(self._policy).__name__
            raise ConfigError(f"router policy {name} chose {choice.worker!r}, which is not a candidate")
        return Picked(*offered[choice.worker], choice.reasons)
