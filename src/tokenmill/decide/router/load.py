"""One worker's load as one frontend sees it: what the worker last said, plus what was sent to it since.

Exists because reports are old by the time of the next choice: without what was sent since, a burst would
go to one worker. It must not know policies or I/O.
"""

from __future__ import annotations

from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.metrics import StepMetrics

_GRACE_S = 0.02
"""What was sent this short before a report may not be in it yet."""


class WorkerLoad:
    """Facts in (``sent``, ``ended``, ``reported``), sums out. All times in seconds on one clock.

    ``_sent`` holds what no report covers yet; the bound is this frontend's open streams to the worker.
    """

    def __init__(self) -> None:
        self.metrics = StepMetrics()
        self.reported_at: float | None = None
        self.open_streams = 0
        """Streams of this frontend that are open to the worker."""
        self.sent_prefill_tokens = 0
        """Prompt tokens sent since the last report."""
        self._sent: dict[RequestId, tuple[float, int]] = {}

    @property
    def sent_sequences(self) -> int:
        """Sequences sent since the last report."""
        return len(self._sent)

    def sent(self, request_id: RequestId, prefill_tokens: int, now: float) -> None:
        """A sequence was sent to the worker; ``prefill_tokens`` it must compute (0 where the cache comes)."""
        self.open_streams += 1
        self._sent[request_id] = (now, prefill_tokens)
        self.sent_prefill_tokens += prefill_tokens

    def ended(self, request_id: RequestId) -> None:
        """A sequence that was sent has ended at the worker."""
        self.open_streams -= 1
        self._drop(request_id)

    def reported(self, metrics: StepMetrics, now: float) -> None:
        """The worker told its load."""
        self.metrics = metrics
        self.reported_at = now
        covered = [name for name, (at, _) in self._sent.items() if at < now - _GRACE_S]
        for request_id in covered:
            self._drop(request_id)

    def lost(self) -> None:
        """The worker is gone, and what it was doing with it."""
        self.metrics = StepMetrics(kv_blocks_total=self.metrics.kv_blocks_total)
        self.reported_at = None

    def _drop(self, request_id: RequestId) -> None:
        entry = self._sent.pop(request_id, None)
        if entry is not None:
            self.sent_prefill_tokens -= entry[1]
