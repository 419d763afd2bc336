"""What one server is doing for us: open requests, counts, the load that follows from both sides' view.

Plain object. Exists because the server's own metrics are read a few times a second, while a router wants to
know at once what was sent. It must not know HTTP or time.
"""

from __future__ import annotations

from collections import Counter

from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.steps import NOTHING, average_step


class LoadBooks:
    """``opened``, ``progressed``, ``closed`` for each request; ``read`` for each reading of ``/metrics``."""

    def __init__(self) -> None:
        self.gauges = EngineGauges()
        self.handoffs_in = 0
        self.handoffs_out = 0
        self.handoffs_failed: Counter[str] = Counter()
        """By reason; reasons are cut short, so that there are few."""
        self._prefilling: dict[RequestId, int] = {}
        self._decoding: set[RequestId] = set()
        self._lengths: dict[RequestId, int] = {}
        self._most_open = 0
        """At once, since the last reading: a reading tells of some that have ended meanwhile."""
        self._others_running = 0
        self._others_waiting = 0
        self._tokens = 0
        self._step = 0
        self._average = NOTHING
        self._read_at: float | None = None
        self._was_idle = True

    def opened(self, request: GenerateRequest, to_compute: int | None = None) -> None:
        """A request was sent. ``to_compute``: how many of its prompt's tokens are not cached there; None: not
        known, all of them."""
        tokens = 0 if request.role is Role.DECODE else len(request.prompt) + len(request.output)
        if to_compute is not None:
            tokens = min(tokens, to_compute)
        self._prefilling[request.request_id] = tokens
        self._lengths[request.request_id] = len(request.prompt) + len(request.output)
        self._most_open = max(self._most_open, len(self._lengths))

    def progressed(self, request_id: RequestId) -> None:
        """Its prompt is computed."""
        if self._prefilling.pop(request_id, None) is not None:
            self._decoding.add(request_id)

    def closed(self, request_id: RequestId) -> None:
        """It has ended."""
        self._prefilling.pop(request_id, None)
        self._decoding.discard(request_id)
        self._lengths.pop(request_id, None)
        self._was_idle = self._was_idle or not self._lengths

    def made(self, tokens: int) -> None:
        """Tokens came."""
        self._tokens += tokens

    def read(self, gauges: EngineGauges, now: float | None = None) -> None:
        """The server told its load. ``now``: seconds; None: nothing is learned of its steps."""
        before, self.gauges = self.gauges, gauges
        self._others_running = max(0, gauges.running - self._most_open)
        self._others_waiting = max(0, gauges.waiting - max(0, self._most_open - gauges.running))
        self._most_open = len(self._lengths)
        self._step = max(self._step + 1, gauges.steps)
        self._average = NOTHING
        if now is not None and self._read_at is not None and self._lengths and not self._was_idle:
            length = sum(self._lengths.values()) / len(self._lengths)
            self._average = average_step(before, gauges, now - self._read_at, mean_length=length)
        self._read_at, self._was_idle = now, not self._lengths

    def metrics(self, kv_blocks: int) -> StepMetrics:
        """Return the load: of our requests as it is now, of others' at the same server as last read."""
        gauges, average = self.gauges, self._average
        return StepMetrics(
            step=self._step,
            step_ms=average.step_ms,
            prefill_tokens=average.prefill_tokens,
            decode_tokens=average.decode_tokens,
            prefill_context_tokens=average.prefill_context_tokens,
            decode_context_tokens=average.decode_context_tokens,
            running=len(self._decoding) + self._others_running,
            waiting=len(self._prefilling) + self._others_waiting,
            waiting_prefill_tokens=sum(self._prefilling.values()),
            kv_blocks_used=round(gauges.kv_used * kv_blocks),
            kv_blocks_total=kv_blocks,
            prefix_hit_tokens_total=gauges.prefix_hit_tokens,
            prefix_query_tokens_total=gauges.prefix_query_tokens,
            prefill_tokens_total=max(
                0, gauges.prompt_tokens - gauges.prefix_hit_tokens - gauges.fetched_tokens
            ),
            decode_tokens_total=max(gauges.output_tokens, self._tokens),
            preemptions_total=gauges.preemptions,
            handoffs_in_total=self.handoffs_in,
            handoffs_out_total=self.handoffs_out,
            handoffs_failed_total=self.handoffs_failed.total(),
            averaged=average.step_ms > 0,
        )
