"""What an average step of a server did and took, from two readings of its counters.

Exists because routers and planners learn step times from steps, while a server counts them only. An average
of steps is as good: time and work are sums over the steps alike. It must not know where counters come from.
"""

from __future__ import annotations

import msgspec

from tokenmill.serve.engines.remote.gauges import EngineGauges

LONGEST_S = 5.0
"""Between two readings; over a longer time the load will have changed too much for one average."""


class AverageStep(msgspec.Struct, frozen=True, kw_only=True):
    """Fields as in ``StepMetrics``. All 0: nothing is known of the last steps."""

    step_ms: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_context_tokens: int = 0
    decode_context_tokens: int = 0


NOTHING = AverageStep()


def average_step(
    before: EngineGauges, after: EngineGauges, interval_s: float, *, mean_length: float
) -> AverageStep:
    """Return the average of the steps between two readings of a server that was busy all the time.

    ``interval_s``: between the readings. ``mean_length``: of the open requests' prompts, tokens, for what the
    server does not tell: how far tokens attended.
    """
    steps = after.steps - before.steps
    if steps <= 0 or not 0 < interval_s <= LONGEST_S or not (before.running and after.running):
        return NOTHING
    per_rank = steps / max(1, after.ranks)  # ranks step at the same time
    computed = max(0, _computed(after) - _computed(before)) / per_rank
    made = max(0, after.output_tokens - before.output_tokens) / per_rank
    return AverageStep(
        step_ms=interval_s * 1000 / per_rank,
        prefill_tokens=round(computed),
        decode_tokens=round(made),
        prefill_context_tokens=round(computed * mean_length / 2),
        decode_context_tokens=round(made * mean_length),
    )


def _computed(gauges: EngineGauges) -> int:
    return gauges.prompt_tokens - gauges.prefix_hit_tokens - gauges.fetched_tokens
