"""Which ways there are for one prompt: prefill on the worker that decodes, or on one of its own.

Exists to bring the workers' facts before ``paths``, which judges. It must not know policies or how a worker
is taken out of several.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenmill.decide.router.choosers import Picked
from tokenmill.decide.router.cost import CostWeights, uncached_tokens
from tokenmill.decide.router.paths import (
    DEFAULT_CHUNK_TOKENS,
    Path,
    PathWeights,
    Side,
    better,
    local_path,
    remote_path,
)
from tokenmill.decide.router.roster import Roster, Seat


class Way(NamedTuple):
    """Who does what: without ``prefill``, ``decode`` does it all."""

    decode: Picked
    prefill: Picked | None = None


class Judge:
    """Compares ways by predicted time. ``mode``: auto, local or remote."""

    def __init__(self, roster: Roster, weights: CostWeights, mode: str) -> None:
        self._roster = roster
        self._weights = weights
        self._path_weights = PathWeights()
        self._mode = mode

    def best(self, tokens: int, ways: list[Way]) -> tuple[Way, list[Path]]:
        """Return the best of ``ways`` (never empty) and what was predicted for each."""
        paths = [self._predict(tokens, way) for way in ways]
        taken = better(paths, self._mode)
        return ways[paths.index(taken)], paths

    def _predict(self, tokens: int, way: Way) -> Path:
        decoder = self._seat(way.decode)
        decode = self._side(tokens, way.decode, decoder)
        if way.prefill is None:
            return local_path(tokens, decode, self._path_weights, way)
        filler = self._seat(way.prefill)
        return remote_path(
            tokens,
            self._side(tokens, way.prefill, filler),
            decode,
            decoder.times.transfer_ms,
            self._path_weights,
            early_handoff=filler.card.early_handoff,
            key=way,
        )

    def _seat(self, picked: Picked) -> Seat:
        seat = self._roster.seat_at[picked.slot]
        assert seat is not None, "a slot without a worker"
        return seat

    def _side(self, tokens: int, picked: Picked, seat: Seat) -> Side:
        card, load, metrics = seat.card, seat.facts.load, seat.load.metrics
        read = metrics.decode_context_tokens or metrics.kv_blocks_used * card.block_tokens
        free = (load.blocks_total - load.blocks_used) * card.block_tokens if load.blocks_total else math.inf
        return Side(
            seat.times,
            queue_tokens=load.queue_tokens,
            cached_tokens=tokens - uncached_tokens(tokens, picked.cached, self._weights),
            decoding=load.decoding,
            decode_context=read if load.decoding else 0,
            chunk_tokens=card.prefill_budget or DEFAULT_CHUNK_TOKENS,
            free_tokens=max(0, free),
            incoming_tokens=seat.load.incoming_tokens,
        )
