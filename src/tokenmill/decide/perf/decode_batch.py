"""How many sequences a worker can decode at a time within a time between tokens, and what one of them
weighs there against one on the worker that can decode most.

Exists so that router and planner hold unequal decode workers against each other by the same rule. It must not
know loads, requests or how workers are found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from tokenmill.decide.perf.step_time import StepTimeModel

STEP_SHARE: Final = 0.9
"""Steps are to take this share of the time between tokens that is asked for: numbers of sequences waver, and
a request's time between tokens holds more than steps."""

ROOM_SHARE: Final = 0.9
"""The same for KV memory."""

HEAVIEST: Final = 100.0
"""No sequence weighs more: who cannot keep the time with a single one is the last resort, not impossible."""


def most_sequences(
    times: StepTimeModel,
    *,
    itl_ms: float,
    context_tokens: float,
    room_tokens: float = math.inf,
    limit: float = 1024,
) -> float:
    """Return how many sequences of ``context_tokens`` each a worker decodes within ``itl_ms`` milliseconds
    between tokens. ``room_tokens``: KV memory; ``limit``: of its batch. Below 1 where even one takes
    longer."""
    step_ms = STEP_SHARE * itl_ms
    alone_ms = times.decode_ms(1, context_tokens)
    if alone_ms > step_ms:
        return step_ms / alone_ms
    most = max(1.0, min(limit, ROOM_SHARE * room_tokens / max(1.0, context_tokens)))
    low, high = 1, max(1, math.floor(most))
    while low < high:
        middle = (low + high + 1) // 2
        if times.decode_ms(middle, middle * context_tokens) <= step_ms:
            low = middle
        else:
            high = middle - 1
    return float(low)


def weights_of(most: Iterable[float]) -> list[float]:
    """Return what one sequence weighs on workers that can decode ``most`` at a time: 1 on the one that can
    decode most. With the same weight on all, all reach their most together."""
    each = list(most)
    best = max(each, default=1.0)
    return [min(HEAVIEST, best / own) for own in each]
