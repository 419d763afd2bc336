"""What one more decoding sequence weighs on each worker, where workers are unequal.

Exists because as many sequences as a fast device decodes with ease break the time between tokens of a slow
one. Only workers that tell their step times (a step table on the card, corrected by what they report) are
told apart; any other counts each sequence as one. It must not know requests, policies or costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from tokenmill.decide.perf.class_times import WorkerTimes
from tokenmill.decide.perf.decode_batch import most_sequences, weights_of
from tokenmill.decide.router.speed import PACE_STEP
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import Role, WorkerId
from tokenmill.protocol.metrics import StepMetrics

USUAL_CONTEXT_TOKENS: Final = 2000.0
"""A sequence's length where nobody has reported one."""

FIRST_REPORTS: Final = 16
LEAST_REPORTS: Final = 256
REPORTS_A_WORKER: Final = 8
"""Weights are reckoned anew after so many reports: first, and then the more the more workers there are, so
that a report's part of it stays small."""


class DecodeWeights:
    """``itl_ms``: the time between tokens that workers are held against. Weights are 1 until somebody
    tells step times. ``weights``: of those that weigh more."""

    def __init__(self, itl_ms: float) -> None:
        self.weights: dict[WorkerId, float] = {}
        self._itl_ms = itl_ms
        self._telling = False
        self._due = FIRST_REPORTS

    def of(self, worker: WorkerId) -> float:
        """Return what a sequence weighs on a worker: 1 on the one that can decode most."""
        return self.weights.get(worker, 1.0)

    def is_due(self, reports: int) -> bool:
        """So many more reports have come: whether to look at the workers again."""
        if not self._telling:
            return False
        self._due -= reports
        return self._due <= 0

    def look(self, workers: Iterable[tuple[WorkerCard, WorkerTimes, StepMetrics]]) -> bool:
        """Reckon all weights from what is known of the workers now; whether any has changed."""
        telling = [
            each for each in workers if each[0].step_table is not None and each[0].role is not Role.PREFILL
        ]
        if not telling and not self.weights:
            self._telling = False
            return False
        self._telling = bool(telling)
        context = _context(metrics for _, _, metrics in telling)
        if any(metrics.decode_tokens for _, _, metrics in telling):
            self._due = max(LEAST_REPORTS, REPORTS_A_WORKER * len(telling))
        else:
            self._due = FIRST_REPORTS
        known: dict[object, float] = {}
        most = [self._most(card, times, context, known) for card, times, _ in telling]
        weights = weights_of(most)
        before = self.weights
        self.weights = {
            card.worker_id: weight for (card, *_), weight in zip(telling, weights, strict=True) if weight != 1
        }
        return self.weights != before

    def _most(
        self, card: WorkerCard, times: WorkerTimes, context: float, known: dict[object, float]
    ) -> float:
        """Equal workers are asked once: those of one class whose paces differ by less than a tenth."""
        steps = round(math.log(times.decode_pace) / PACE_STEP)
        room = card.kv_blocks * card.block_tokens or math.inf
        key = times.of_class, steps, room, card.max_sequences
        most = known.get(key)
        if most is None:
            rounded = math.exp(steps * PACE_STEP) / times.decode_pace
            most = known[key] = most_sequences(
                times,
                itl_ms=self._itl_ms / rounded,
                context_tokens=context,
                room_tokens=room,
                limit=card.max_sequences or math.inf,
            )
        return most


def _context(reports: Iterable[StepMetrics]) -> float:
    """Return how long decoding sequences are on average."""
    tokens = sequences = 0
    for metrics in reports:
        if metrics.decode_tokens:
            tokens += metrics.decode_context_tokens
            sequences += metrics.decode_tokens
    return tokens / sequences if tokens else USUAL_CONTEXT_TOKENS
