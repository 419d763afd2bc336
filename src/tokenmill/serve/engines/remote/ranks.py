"""Which data-parallel rank of a server gets a request. Plain object.

Exists because a server that deals requests out by itself does not look at what its ranks have cached. The
rule is the router's in small: least to compute, what waits there included. It must not know HTTP or events.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.serve.engines.kv_events.rank_caches import RankCaches

SEQUENCE_TOKENS = 32
"""An open sequence counts like so many prompt tokens: its steps slow a rank's prefills down."""

FETCHED_SHARE = 0.125
"""What a token costs that is fetched and not computed, as a share."""


class _Placed(NamedTuple):
    rank: int
    tokens: float
    """To be computed before its first token."""
    names: list[int]


class RankChoice:
    """``choose`` a rank for each request; tell when its prompt is computed and when it has ended.

    ``caches``: what the ranks have. Bounded by the requests that are open.
    """

    def __init__(self, caches: RankCaches, block_tokens: int) -> None:
        self._caches = caches
        self._block_tokens = block_tokens
        self._waiting = [0.0] * caches.ranks
        self._sequences = [0] * caches.ranks
        # Blocks of prompts under way: they will be there when an equal prompt's turn comes.
        self._coming: list[Counter[int]] = [Counter() for _ in range(caches.ranks)]
        self._placed: dict[RequestId, _Placed] = {}
        self._next = 0

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self._caches.ranks

    def choose(self, request: GenerateRequest) -> int:
        """Return the rank that the request costs least on; among equals they take turns."""
        tokens = [*request.prompt, *request.output]
        names = block_hashes(tokens, self._block_tokens, request.cache_salt)
        share = FETCHED_SHARE if request.role is Role.DECODE and request.handoff is not None else 1.0
        needs = [share * (len(tokens) - self._known(rank, names)) for rank in range(self.ranks)]
        costs = [
            # One's own need counts twice: one waits for it, and so do those who come later.
            2 * needs[rank] + self._waiting[rank] + SEQUENCE_TOKENS * self._sequences[rank]
            for rank in range(self.ranks)
        ]
        turns = sorted(range(self.ranks), key=lambda rank: (rank - self._next) % self.ranks)
        rank = min(turns, key=costs.__getitem__)
        self._next = (rank + 1) % self.ranks
        self._placed[request.request_id] = _Placed(rank, needs[rank], names)
        self._waiting[rank] += needs[rank]
        self._sequences[rank] += 1
        self._coming[rank].update(names)
        return rank

    def to_compute(self, request_id: RequestId) -> int:
        """Tokens of a placed request's prompt that its rank has not cached; 0 when they are computed."""
        placed = self._placed.get(request_id)
        return round(placed.tokens) if placed is not None else 0

    def progressed(self, request_id: RequestId) -> None:
        """Its prompt is computed: its blocks are cached, or never will be."""
        placed = self._placed.get(request_id)
        if placed is not None and placed.tokens:
            self._computed(placed)
            self._placed[request_id] = _Placed(placed.rank, 0.0, [])

    def closed(self, request_id: RequestId) -> None:
        """It has ended."""
        placed = self._placed.pop(request_id, None)
        if placed is not None:
            self._computed(placed)
            self._sequences[placed.rank] -= 1

    def _computed(self, placed: _Placed) -> None:
        rank, coming = placed.rank, self._coming[placed.rank]
        self._waiting[rank] -= placed.tokens
        coming.subtract(placed.names)
        for name in placed.names:
            if coming[name] <= 0:
                del coming[name]

    def _known(self, rank: int, names: list[int]) -> int:
        """Tokens of a prompt that are there, or will be when their turn comes."""
        coming = self._coming[rank]
        count = self._caches.cached_blocks(rank, names)
        while count < len(names) and names[count] in coming:
            count += 1
        return count * self._block_tokens
