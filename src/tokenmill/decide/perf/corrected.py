"""Step times that are trusted, corrected within bounds by what a worker reports.

Exists so that a profile or a table stays right on the device that is really there, and keeps its shape where
nothing was seen. The same object serves the router, the planner and the simulator. It must not know where the
trusted times are from, nor how reports travel.

Two paces are learned, times over the trusted ones: of decodes, and of what prompts add to them; devices
differ in memory and in arithmetic. Neither leaves the bounds: a worker that reports nonsense for an hour
makes no plan absurd. Where no times are trusted, ``online`` learns all from a guess.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.online import Steps
from tokenmill.decide.perf.regression import Features, Prior, Regression
from tokenmill.decide.perf.step_time import StepTimeModel
from tokenmill.protocol.metrics import StepMetrics

BOUND: Final = 3.0
"""Trusted times are off by no more than this factor: beyond it they are of another device or model."""

DOUBT: Final = 0.3
"""By which share trusted times may be off before the first report, where nobody says."""

CLOCK_NOISE_MS: Final = 0.05

_DECODE, _PREFILL = 0, 1


class Correction(NamedTuple):
    """What was learned: times over the trusted ones. ``confidence``: from 0 (nothing known) to 1, the
    lesser of both paces'. ``at_bound``: a pace would go further; the trusted times are not of this worker."""

    prefill: float
    decode: float
    confidence: float
    at_bound: bool
    samples: int


class CorrectedStepTime:
    """A ``StepTimeModel`` over a trusted one. ``doubt``: the share by which that may be off (a source's
    expected error); ``bound``: the factor that no pace leaves. Memory is constant."""

    def __init__(self, trusted: StepTimeModel, *, doubt: float = DOUBT, bound: float = BOUND) -> None:
        if bound <= 1 or doubt <= 0:
            raise ValueError(f"bound must be more than 1 and doubt more than 0, not {bound} and {doubt}")
        self._trusted = trusted
        self._bound = bound
        self._seen = Steps()
        prior = Prior(
            (1.0, 1.0),
            own_sd=(doubt, doubt),
            floor_sd=(0.0, 0.0),
            kinship=((1.0, 0.5), (0.5, 1.0)),
            least=1 / bound,
            most=bound,
            scale_sd=0.0,
        )
        self._paces = Regression(prior, absolute_noise=CLOCK_NOISE_MS)
        self._weights = self._paces.weights

    @property
    def samples(self) -> int:
        """Steps learned from."""
        return self._paces.samples

    def observe(self, metrics: StepMetrics) -> bool:
        """Learn from a report of the one worker whose times these are; False when it says nothing new."""
        if not self._seen.is_new(metrics):
            return False
        self.learn(metrics, metrics.step_ms)
        return True

    def learn(self, work: StepMetrics, step_ms: float) -> None:
        """Learn that a step with the work that ``work`` states takes ``step_ms``."""
        parts = self._parts(
            work.prefill_tokens, work.prefill_context_tokens, work.decode_tokens, work.decode_context_tokens
        )
        if sum(parts) > 0:
            self._paces.learn(_features(*parts), step_ms)

    def correction(self) -> Correction:
        """Return what was learned so far."""
        decode, prefill = self._weights
        sds = [self._paces.sd(((pace, 1.0),)) for pace in (_DECODE, _PREFILL)]
        edge = 1.001
        return Correction(
            prefill=prefill,
            decode=decode,
            confidence=min(1 / (1 + sd / weight) for sd, weight in zip(sds, self._weights, strict=True)),
            at_bound=any(pace * edge >= self._bound or pace * self._bound <= edge for pace in self._weights),
            samples=self.samples,
        )

    def confidence(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """Return from 0 (a guess) to 1 (known) how well the time of such a step is known."""
        features = _features(*self._parts(new_tokens, prefill_context, sequences, decode_context))
        predicted = self._paces.predict(features)
        return 1 / (1 + self._paces.sd(features) / predicted) if predicted > 0 else 0.0

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self._weights[_PREFILL] * self._trusted.prefill_ms(new_tokens, context_tokens)

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self._weights[_DECODE] * self._trusted.decode_ms(sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """See ``StepTimeModel``."""
        decode_ms, prefill_ms = self._parts(new_tokens, prefill_context, sequences, decode_context)
        decode_pace, prefill_pace = self._weights
        return decode_pace * decode_ms + prefill_pace * prefill_ms

    @property
    def kv_bytes_per_token(self) -> float:
        """See ``StepTimeModel``."""
        return self._trusted.kv_bytes_per_token

    @property
    def kv_capacity_tokens(self) -> int:
        """See ``StepTimeModel``."""
        return self._trusted.kv_capacity_tokens

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """See ``StepTimeModel``; steps don't tell of it."""
        return self._trusted.transfer_ms(tokens, link)

    def _parts(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> tuple[float, float]:
        """The trusted time of a step's decodes alone, and what its prompts add to that."""
        if not sequences:
            return 0.0, self._trusted.prefill_ms(new_tokens, prefill_context) if new_tokens else 0.0
        decode_ms = self._trusted.decode_ms(sequences, decode_context)
        if not new_tokens:
            return decode_ms, 0.0
        both_ms = self._trusted.mixed_ms(new_tokens, prefill_context, sequences, decode_context)
        return min(decode_ms, both_ms), max(0.0, both_ms - decode_ms)


def _features(decode_ms: float, prefill_ms: float) -> Features:
    return (_DECODE, decode_ms), (_PREFILL, prefill_ms)
