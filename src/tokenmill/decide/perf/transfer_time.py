"""How long fetching a KV cache takes, learned from what receiving workers report.

Exists because the better path for a prompt depends on it, and it differs by orders of magnitude between
shared memory and a slow network. It must not know how bytes move.
"""

from __future__ import annotations

from tokenmill.decide.perf.regression import Prior, Regression
from tokenmill.protocol.metrics import StepMetrics

FIXED_MS = 1.0
"""Until measured: connecting, asking, releasing; a few round trips on one host or in one rack."""

TOKEN_MS = 0.013
"""Until measured: 128 KiB a token (8-billion-parameter model, bfloat16) over 10 GB/s."""

NOISE_MS = 0.2


class OnlineTransferTime:
    """Milliseconds to fetch the KV of some tokens: a fixed part for each handoff and a part for each
    token."""

    def __init__(self) -> None:
        prior = Prior(
            weights=(FIXED_MS, TOKEN_MS),
            own_sd=(3.0, 3.0),
            floor_sd=(0.0, 0.0),
            kinship=((1.0, 0.0), (0.0, 1.0)),
            # Round trips are slow for other reasons than bytes: short caches must not tell of long ones.
            scale_sd=0.0,
        )
        self._regression = Regression(prior, absolute_noise=NOISE_MS)
        self._totals = (0, 0, 0.0)
        self._last = (0.0, 0.0, 0.0)

    @property
    def samples(self) -> int:
        """Reports learned from."""
        return self._regression.samples

    def observe(self, metrics: StepMetrics) -> bool:
        """Learn from a report of the one worker whose times these are; False when nothing was fetched since
        the last one. A worker that counts from 0 again was restarted."""
        before = self._totals
        totals = (metrics.handoffs_in_total, metrics.transfer_tokens_total, metrics.transfer_ms_total)
        self._totals = totals
        handoffs, tokens, spent_ms = (new - old for new, old in zip(totals, before, strict=True))
        if handoffs <= 0 or tokens < 0 or spent_ms <= 0:
            return False
        self._last = (1.0, tokens / handoffs, spent_ms / handoffs)
        self._learn(self._last)
        return True

    def learn_last_of(self, other: OnlineTransferTime) -> None:
        """Learn what ``other`` has just learned."""
        self._learn(other._last)

    def transfer_ms(self, tokens: float) -> float:
        """Return how long fetching ``tokens`` tokens takes, milliseconds; the fixed part for none, since the
        first token travels the same way."""
        return self._regression.predict(((0, 1.0), (1, tokens)))

    def _learn(self, sample: tuple[float, float, float]) -> None:
        handoffs, tokens, spent_ms = sample
        self._regression.learn(((0, handoffs), (1, tokens)), spent_ms)
