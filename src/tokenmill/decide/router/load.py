"""One worker's load as one frontend sees it: what the worker last said, plus what was sent to it since.

Exists because reports are old by the time of the next choice: without what was sent since, a burst would
go to one worker. It must not know policies or I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenmill.decide.router.cost import LoadFacts
from tokenmill.protocol.ids import Role
from tokenmill.protocol.metrics import StepMetrics

_GRACE_S = 0.02
"""What was sent this short before a report may not be in it yet."""


class _Sent(NamedTuple):
    """A sequence that no report covers. ``prefill_tokens`` to compute, of ``tokens`` to have in the cache."""

    at: float
    prefill_tokens: int
    tokens: int


class WorkerLoad:
    """Facts in (``sent``, ``ended``, ``reported``), sums out. All times in seconds on one clock.

    A sequence's key is who sent it ("" for this frontend, or a peer) and its request id. ``_sent`` holds what
    no report covers yet; the bound is all frontends' open streams to the worker.
    """

    __slots__ = ("_sent", "metrics", "sent_prefill_tokens", "sent_tokens")

    def __init__(self) -> None:
        self.metrics = StepMetrics()
        self.sent_prefill_tokens = 0
        """Prompt tokens to compute, sent since the last report."""
        self.sent_tokens = 0
        """Tokens of sequences sent since the last report, cached ones too."""
        self._sent: dict[tuple[str, str], _Sent] = {}

    @property
    def sent_sequences(self) -> int:
        """Sequences sent since the last report."""
        return len(self._sent)

    @property
    def incoming_tokens(self) -> int:
        """Tokens whose KV the worker still has to fetch: of handoffs sent since the report, and reported."""
        fresh = sum(entry.tokens for entry in self._sent.values() if not entry.prefill_tokens)
        return fresh + self.metrics.receiving_tokens

    def sent(self, key: tuple[str, str], prefill_tokens: int, now: float, tokens: int = 0) -> None:
        """A sequence was sent to the worker; ``prefill_tokens`` it must compute (0 where the cache comes), of
        ``tokens`` in all (0: as many)."""
        self.ended(key)
        tokens = max(tokens, prefill_tokens)
        self._sent[key] = _Sent(now, prefill_tokens, tokens)
        self.sent_prefill_tokens += prefill_tokens
        self.sent_tokens += tokens

    def ended(self, key: tuple[str, str]) -> None:
        """A sequence that was sent has ended at the worker."""
        entry = self._sent.pop(key, None)
        if entry is not None:
            self.sent_prefill_tokens -= entry.prefill_tokens
            self.sent_tokens -= entry.tokens

    def sender_gone(self, sender: str) -> None:
        """All that ``sender`` had sent has ended."""
        for key in [key for key in self._sent if key[0] == sender]:
            self.ended(key)

    def reported(self, metrics: StepMetrics, now: float) -> None:
        """The worker told its load."""
        self.metrics = metrics
        covered = []
        for key, entry in self._sent.items():  # in the order they were sent
            if entry.at >= now - _GRACE_S:
                break
            covered.append(key)
        for key in covered:
            self.ended(key)

    def facts(self, role: Role, kv_blocks: int, block_tokens: int) -> LoadFacts:
        """Return the sums. ``kv_blocks``, ``block_tokens``: the worker's room as its card tells it."""
        metrics = self.metrics
        decoding = 0
        if role is not Role.PREFILL:
            decoding = metrics.running + metrics.waiting + metrics.receiving + len(self._sent)
        return LoadFacts(
            queue_tokens=metrics.waiting_prefill_tokens + self.sent_prefill_tokens,
            decoding=decoding,
            blocks_used=metrics.kv_blocks_used + self.sent_tokens // block_tokens,
            blocks_total=metrics.kv_blocks_total or kv_blocks,
        )
