"""One worker's room: its newest load report, corrected by what was sent and has ended since.

Exists because a report is up to 50 ms old when the next request comes, and later than that where a machine is
short of cores: without what was sent since, a burst would slip through a stale "not busy"; without what ended
since, a fast plant would stand idle for want of the next report. It must not know other workers, policies or
I/O.

A fact about a sequence corrects the report until one comes that must have it. Its blocks are in no report for
sure before its first token, so that its room counts on top until then; queue and places are never taken for
less than what this frontend itself has there. The room a sequence takes is reckoned as its uncached tokens:
what it finds cached, others hold most often.
"""

from __future__ import annotations

import math

from tokenmill.decide.router.admission_words import BusyThresholds
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.metrics import StepMetrics

_GRACE_S = 0.02
"""What was sent this short before a report may not be in it yet."""

_SPEED_GAIN = 0.2
"""How much one step counts in the speed of a worker: the last ten or so decide."""

_SPEED_FADES = 0.999
"""What is left of a best speed at the next report of a mean: half of it after 700, half a minute of a busy
worker's."""

_HITS_OVER_TOKENS = 65_536
"""The prompt tokens that decide which share of them is found cached: twice so many at most."""


class _Sent:
    """One sequence at the worker; tokens it needs room for, and tokens to be prefilled (0: they are). Reports
    that come some time after ``sent_at`` have it, and those after ``held_at`` have its blocks."""

    __slots__ = ("held_at", "kv_tokens", "prefill_tokens", "sent_at")

    def __init__(self, kv_tokens: int, prefill_tokens: int) -> None:
        self.kv_tokens = kv_tokens
        self.prefill_tokens = prefill_tokens
        self.sent_at = self.held_at = math.inf


class WorkerRoom:
    """Facts in, and ``refresh`` judges whether the worker is busy. Counts are tokens and sequences."""

    def __init__(self, card: WorkerCard, thresholds: BusyThresholds) -> None:
        self.busy = False
        self._thresholds = thresholds
        self._metrics = StepMetrics()
        self._prefill_tokens_per_s: float | None = None
        self._least_limit_tokens = 0
        self._asked_tokens = self._found_tokens = 0
        # All sequences of this frontend at the worker, and those that some report may not have; the bound is
        # this frontend's open streams to it.
        self._open: dict[RequestId, _Sent] = {}
        self._fresh: dict[RequestId, _Sent] = {}
        self._own_prefill_tokens = 0
        # What to add to the report.
        self._kv_tokens = 0
        self._prefill_tokens = 0
        self._sequences = 0
        self.described(card)

    def described(self, card: WorkerCard) -> None:
        """The worker told something new of itself."""
        self.card = card
        self._measure()

    def promised(self, request_id: RequestId, kv_tokens: int, prefill_tokens: int = 0) -> None:
        """A sequence will be sent: it is counted from now on."""
        if request_id in self._open:
            return
        self._open[request_id] = self._fresh[request_id] = _Sent(kv_tokens, prefill_tokens)
        self._own_prefill_tokens += prefill_tokens
        self._kv_tokens += kv_tokens
        self._prefill_tokens += prefill_tokens
        self._sequences += 1

    def sent(self, request_id: RequestId, kv_tokens: int, prefill_tokens: int, now: float) -> None:
        """A sequence was sent."""
        self.promised(request_id, kv_tokens, prefill_tokens)
        one = self._open[request_id]
        one.sent_at = now
        if not one.prefill_tokens:
            one.held_at = now

    def prefilled(self, request_id: RequestId, now: float) -> None:
        """A sequence's first token came."""
        one = self._open.get(request_id)
        if one is not None and one.prefill_tokens:
            self._own_prefill_tokens -= one.prefill_tokens
            self._prefill_tokens -= one.prefill_tokens
            one.prefill_tokens = 0
            one.held_at = now

    def ended(self, request_id: RequestId) -> None:
        """A sequence is over at the worker."""
        one = self._open.pop(request_id, None)
        if one is None:
            return
        self._fresh.pop(request_id, None)
        self._own_prefill_tokens -= one.prefill_tokens
        self._kv_tokens -= one.kv_tokens
        self._prefill_tokens -= one.prefill_tokens
        self._sequences -= 1

    def reported(self, metrics: StepMetrics, now: float) -> None:
        """The worker told its load."""
        self._learn_hits(self._metrics, metrics)
        self._metrics = metrics
        self._learn_speed(metrics)
        self._measure()
        self._kv_tokens = self._prefill_tokens = self._sequences = 0
        covered_at = now - _GRACE_S
        for request_id, one in tuple(self._fresh.items()):
            if one.held_at < covered_at:
                del self._fresh[request_id]
                continue
            self._kv_tokens += one.kv_tokens
            if one.sent_at >= covered_at:
                self._prefill_tokens += one.prefill_tokens
                self._sequences += 1

    def refresh(self) -> bool:
        """Judge anew whether the worker is busy; return whether that has changed."""
        busy = (
            self._kv_used + self._kv_tokens > self._kv_limit
            or self.queued_prefill_tokens > self.prefill_limit_tokens
            or self.sequences >= self._places
        )
        changed, self.busy = busy != self.busy, busy
        return changed

    def likely_computed(self, prompt_tokens: int) -> int:
        """Return how many of a prompt's tokens will not be found cached, going by the prompts of late."""
        if not self._asked_tokens:
            return prompt_tokens
        return math.ceil(prompt_tokens * (1 - self._found_tokens / self._asked_tokens))

    def _learn_hits(self, before: StepMetrics, after: StepMetrics) -> None:
        asked = after.prefix_query_tokens_total - before.prefix_query_tokens_total
        found = after.prefix_hit_tokens_total - before.prefix_hit_tokens_total
        if asked <= 0 or not 0 <= found <= asked:
            return  # nothing new, or the worker has begun anew
        self._asked_tokens += asked
        self._found_tokens += found
        while self._asked_tokens > 2 * _HITS_OVER_TOKENS:
            self._asked_tokens //= 2
            self._found_tokens //= 2

    def _learn_speed(self, metrics: StepMetrics) -> None:
        # Only a step that left prefill undone shows what the worker can do.
        if not metrics.prefill_tokens or not metrics.waiting_prefill_tokens or metrics.step_ms <= 0:
            return
        speed = 1000.0 * metrics.prefill_tokens / metrics.step_ms
        known = self._prefill_tokens_per_s
        if metrics.averaged:
            # A mean over busy moments and others: the worker can do at least so much.
            self._least_limit_tokens = self._thresholds.prefill_tokens
            self._prefill_tokens_per_s = speed if known is None else max(speed, _SPEED_FADES * known)
        else:
            self._prefill_tokens_per_s = speed if known is None else known + _SPEED_GAIN * (speed - known)

    def _measure(self) -> None:
        """What the report, the card and the thresholds say, each once a report and not once a fact."""
        card, metrics, limits = self.card, self._metrics, self._thresholds
        self._kv_total = (metrics.kv_blocks_total or card.kv_blocks) * card.block_tokens
        self._kv_limit = limits.kv_share * self._kv_total if self._kv_total else math.inf
        self._kv_used = metrics.kv_blocks_used * card.block_tokens
        speed = self._prefill_tokens_per_s
        learned = limits.prefill_tokens if speed is None else limits.prefill_s * speed
        self.prefill_limit_tokens = max(learned, self._least_limit_tokens)
        """Queued prefill above which the worker is busy."""
        self._prefill_queued = metrics.waiting_prefill_tokens
        self._present = metrics.running + metrics.waiting + metrics.receiving
        places = card.max_sequences or math.inf  # 0: the worker does not say
        self._places = places + max(1.0, limits.spare_places * places)

    # Figures -------------------------------------------------------------------------------------------

    @property
    def queued_prefill_tokens(self) -> int:
        """Prompt tokens that the worker has still to compute."""
        reckoned, own = self._prefill_queued + self._prefill_tokens, self._own_prefill_tokens
        return max(own, reckoned)

    @property
    def kv_share(self) -> float:
        """Share of the KV blocks held or about to be; may be above 1."""
        return max(0, self._kv_used + self._kv_tokens) / self._kv_total if self._kv_total else 0.0

    @property
    def sequences(self) -> int:
        """Sequences that decode, prefill, wait or receive there."""
        reckoned, own = self._present + self._sequences, len(self._open)
        return max(own, reckoned)

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        assert set(self._fresh) <= set(self._open)
        assert self._own_prefill_tokens == sum(one.prefill_tokens for one in self._open.values())
        assert all(name in self._fresh for name, one in self._open.items() if one.prefill_tokens)
        assert not self.refresh(), "judged with every fact"
