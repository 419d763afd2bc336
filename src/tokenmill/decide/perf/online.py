"""Step times learned from what a worker reports.

Exists so that predictions fit the device, model and engine that are really there: each report says what the
last step did and how long it took. It must not know who asks, nor how reports travel.

A step takes ``T(tokens) + s * sequences + p * prefill_context + d * decode_context``. ``tokens`` counts new
prompt tokens and decoding sequences alike, as the matrix products do; ``T`` is a line through knots at powers
of two, so that any floor and knee can be learned. The guess before the first report is a ``LinearStepTime``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Final

from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.regression import Prior, Regression
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.protocol.metrics import StepMetrics

KNOTS: Final = (0, *(1 << power for power in range(4, 15)))
"""Tokens in a step at which ``T`` may bend; beyond the last it goes on straight."""

_INNER_KNOTS: Final = KNOTS[1:-1]
_SEQUENCE, _PREFILL_CONTEXT, _DECODE_CONTEXT = len(KNOTS), len(KNOTS) + 1, len(KNOTS) + 2

KNOT_SD: Final = 0.5
"""How far ``T`` at one knot may be off against its guess, the common scale left out."""

KNOTS_AKIN: Final = 3.0
"""Knots so many steps apart share a third (1/e) of that doubt: devices' curves are smooth."""

CONTEXT_SD: Final = 2.0
"""The same for the attention's weights: grouped heads and windows change them by large factors."""

CLOCK_NOISE_MS: Final = 0.05
"""A step's time wavers at least by so much."""


class Steps:
    """Tells reports of a step not seen before from repeated ones and from those before the first step."""

    def __init__(self) -> None:
        self._last = 0

    def is_new(self, metrics: StepMetrics) -> bool:
        """Whether ``metrics`` states the work and time of a step that no earlier call has seen."""
        if metrics.step == self._last or metrics.step_ms <= 0:
            return False
        self._last = metrics.step
        return metrics.prefill_tokens + metrics.decode_tokens > 0


class OnlineStepTime:
    """Step times in milliseconds; a ``StepTimeModel`` from the first moment on.

    Memory is constant (some 230 numbers); a sample costs 20 us while it teaches something and 4 us when it
    does not, a prediction 1 us.
    """

    def __init__(self, prior: LinearStepTime | None = None) -> None:
        self._guess = prior or LinearStepTime()
        self._regression = Regression(_prior(self._guess), absolute_noise=CLOCK_NOISE_MS)
        self._weights = self._regression.weights
        self._seen = Steps()

    @property
    def samples(self) -> int:
        """Steps learned from."""
        return self._regression.samples

    def observe(self, metrics: StepMetrics) -> bool:
        """Learn from a report of the one worker whose times these are; False when it says nothing new."""
        if not self._seen.is_new(metrics):
            return False
        self.learn(metrics, metrics.step_ms)
        return True

    def learn(self, work: StepMetrics, step_ms: float) -> None:
        """Learn that a step with the work that ``work`` states takes ``step_ms``."""
        features = _features(
            work.prefill_tokens,
            work.prefill_context_tokens,
            work.decode_tokens,
            work.decode_context_tokens,
        )
        self._regression.learn(features, step_ms)

    def prefill_ms(self, new_tokens: int, context_tokens: int) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(new_tokens, context_tokens, 0, 0)

    def decode_ms(self, sequences: int, context_tokens: int) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(0, 0, sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """See ``StepTimeModel``; also for averages, hence floats."""
        # What ``predict(_features(...))`` gives, spelled out: a router asks a dozen times for each request.
        weights, tokens = self._weights, new_tokens + sequences
        left = bisect_right(_INNER_KNOTS, tokens)
        low, low_ms = KNOTS[left], weights[left]
        return (
            low_ms
            + (weights[left + 1] - low_ms) * (tokens - low) / (KNOTS[left + 1] - low)
            + weights[_SEQUENCE] * sequences
            + weights[_PREFILL_CONTEXT] * prefill_context
            + weights[_DECODE_CONTEXT] * decode_context
        )

    @property
    def kv_bytes_per_token(self) -> float:
        """See ``StepTimeModel``; the guess's, since steps don't show it."""
        return self._guess.kv_bytes_per_token

    @property
    def kv_capacity_tokens(self) -> int:
        """See ``StepTimeModel``; the guess's."""
        return self._guess.kv_capacity_tokens

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """See ``StepTimeModel``; the guess's."""
        return self._guess.transfer_ms(tokens, link)

    def confidence(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """Return from 0 (a guess) to 1 (known) how well the time of such a step is known."""
        features = _features(new_tokens, prefill_context, sequences, decode_context)
        predicted = self._regression.predict(features)
        if not self.samples or predicted <= 0:
            return 0.0
        return 1.0 / (1.0 + self._regression.sd(features) / predicted)


def _features(
    new_tokens: float, prefill_context: float, sequences: float, decode_context: float
) -> list[tuple[int, float]]:
    tokens = new_tokens + sequences
    left = bisect_right(_INNER_KNOTS, tokens)
    share = (tokens - KNOTS[left]) / (KNOTS[left + 1] - KNOTS[left])
    features = [(left, 1.0 - share), (left + 1, share)]
    if sequences:
        features += [(_SEQUENCE, sequences), (_DECODE_CONTEXT, decode_context)]
    if prefill_context:
        features.append((_PREFILL_CONTEXT, prefill_context))
    return features


def _prior(guess: LinearStepTime) -> Prior:
    times = tuple(guess.mixed_ms(knot, 0, 0, 0) for knot in KNOTS)
    size = len(KNOTS) + 3
    kinship = [[float(i == j) for j in range(size)] for i in range(size)]
    for i, _ in enumerate(KNOTS):
        for j, _ in enumerate(KNOTS):
            kinship[i][j] = math.exp(-abs(i - j) / KNOTS_AKIN)
    return Prior(
        weights=(*times, 0.0, guess.prefill_context_ms, guess.decode_context_ms),
        own_sd=(*(KNOT_SD for _ in KNOTS), 0.0, CONTEXT_SD, CONTEXT_SD),
        floor_sd=(*(0.0 for _ in KNOTS), guess.prefill_token_ms, 0.0, 0.0),
        kinship=tuple(map(tuple, kinship)),
    )
