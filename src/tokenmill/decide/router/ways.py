"""Which ways there are for one prompt: prefill on the worker that decodes, or on one of its own.

Exists to bring the workers' facts before ``paths``, which judges. It must not know policies or how a worker
is taken out of several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tokenmill.decide.router.choosers import Picked
from tokenmill.decide.router.cost import CostWeights, load_terms, uncached_tokens
from tokenmill.decide.router.local_share import LocalShare
from tokenmill.decide.router.paths import (
    AUTO,
    DEFAULT_CHUNK_TOKENS,
    LOCAL,
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
    """Compares ways by predicted time. ``mode``: auto, local or remote. ``local_share``: least share of
    prompts that are computed where they are decoded, with auto."""

    def __init__(self, roster: Roster, weights: CostWeights, mode: str, local_share: float) -> None:
        self._roster = roster
        self._weights = weights
        self._path_weights = PathWeights()
        self._mode = mode
        self._local_share = LocalShare(local_share if mode == AUTO else 0.0)

    def best(self, tokens: int, ways: list[Way]) -> tuple[Way, list[Path]]:
        """Return the best of ``ways`` (never empty) and what was predicted for each."""
        paths = [self._predict(tokens, way) for way in ways]
        if self._local_share.wanted:
            paths = self._credited(paths)
        taken = better(paths, self._mode)
        return ways[paths.index(taken)], paths

    def _credited(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths with the credit that local ones have, and let it learn from what is best so."""
        credit_ms = self._local_share.credit_ms
        local_ms = min((path.total_ms for path in paths if path.kind == LOCAL), default=math.inf)
        remote_ms = min((path.total_ms for path in paths if path.kind != LOCAL), default=math.inf)
        difference_ms = local_ms - remote_ms
        if math.isfinite(difference_ms):
            self._local_share.chosen(local=difference_ms <= credit_ms, difference_ms=difference_ms)
        if not credit_ms:
            return list(paths)
        return [
            path._replace(
                terms={**path.terms, "planned share": -credit_ms}, total_ms=path.total_ms - credit_ms
            )
            if path.kind == LOCAL
            else path
            for path in paths
        ]

    def _predict(self, tokens: int, way: Way) -> Path:
        path = self._alone_or_both(tokens, way)
        if not self._roster.unequal:
            return path
        # Ways over equal decode workers differ by what they do; over unequal ones also by how full those are.
        facts = self._seat(way.decode).facts
        full_ms = load_terms(facts.load, facts.speed, self._weights, facts.sequence_weight).decode_ms
        return path._replace(terms={**path.terms, "decode load": full_ms}, total_ms=path.total_ms + full_ms)

    def _alone_or_both(self, tokens: int, way: Way) -> Path:
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
