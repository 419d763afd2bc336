"""The prefill budget as saturation point: what it does to the time to first token.

The device takes ``max(floor, tokens * per token)`` for a step, so that it is saturated at ``SATURATION``
tokens. The same scheduler runs with its budget there and with a batch of four times as much.
"""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Emit,
    ExportReleased,
    RequestArrived,
    SequenceRequest,
    StepExecuted,
)
from tokenmill.protocol.ids import RequestId, Role

SATURATION = 500
FLOOR_S = 0.05


def step_s(tokens: int) -> float:
    return max(FLOOR_S, FLOOR_S * tokens / SATURATION)


def arrivals(prompt_tokens: list[int], load: float, seed: int = 3) -> list[tuple[float, int]]:
    """Poisson arrivals that ask for ``load`` of what a saturated device can do."""
    rng = random.Random(seed)
    rate = load * SATURATION / FLOOR_S / fmean(prompt_tokens)
    at, out = 0.0, []
    for tokens in prompt_tokens:
        at += rng.expovariate(rate)
        out.append((at, tokens))
    return out


def mean_ttft_s(
    prefill_budget: int, requests: list[tuple[float, int]], join_tokens: int | None = None
) -> float:
    scheduler = Scheduler(
        BatchingConfig(
            total_blocks=100_000,
            max_model_len=10_000,
            role=Role.PREFILL,
            token_budget=4 * SATURATION,
            prefill_budget=prefill_budget,
            join_tokens=join_tokens,
            prefix_cache=False,
        )
    )
    now, waiting, ttft_s = 0.0, list(reversed(requests)), []
    while len(ttft_s) < len(requests):
        while waiting and waiting[-1][0] <= now:
            at, tokens = waiting.pop()
            request = SequenceRequest(
                request_id=RequestId(repr(at)), prompt=[1] * tokens, max_tokens=5, role=Role.PREFILL
            )
            scheduler.handle(RequestArrived(request), now)
        plan = scheduler.next_step(now).plan
        if not plan.chunks:
            now = waiting[-1][0]
            continue
        now += step_s(plan.prefill_tokens)
        for said in scheduler.handle(StepExecuted(plan, [2] * sum(c.samples for c in plan.chunks)), now):
            if isinstance(said, Emit):
                ttft_s.append(now - float(said.request_id))
                scheduler.handle(ExportReleased(said.request_id), now)
    return fmean(ttft_s)


def mixed_lengths(mean_tokens: int) -> list[int]:
    rng = random.Random(5)
    return [rng.randint(mean_tokens // 4, mean_tokens * 7 // 4) for _ in range(250)]


@pytest.mark.parametrize("mean_tokens", [120, 300, 1400])
@pytest.mark.parametrize("load", [0.8, 0.9, 0.95])
def test_the_smallest_batch_that_saturates_gives_the_first_token_sooner(
    mean_tokens: int, load: float
) -> None:
    requests = arrivals(mixed_lengths(mean_tokens), load)
    assert mean_ttft_s(SATURATION, requests) < mean_ttft_s(4 * SATURATION, requests)


@pytest.mark.parametrize("mean_tokens", [120, 300, 1400])
def test_at_low_load_the_batch_hardly_matters(mean_tokens: int) -> None:
    """The larger batch may even win a little: it never leaves a small rest of a prompt to the next step."""
    requests = arrivals(mixed_lengths(mean_tokens), 0.5)
    assert mean_ttft_s(SATURATION, requests) < 1.05 * mean_ttft_s(4 * SATURATION, requests)


def test_a_burst_is_served_in_order_not_all_at_the_end() -> None:
    burst = [(float(i) * 1e-6, 250) for i in range(8)]
    # Two prompts saturate: they leave after 1, 2, 3 and 4 floors; a batch of all eight leaves at 4.
    assert mean_ttft_s(SATURATION, burst) < 0.8 * mean_ttft_s(4 * SATURATION, burst)


def test_prompts_that_do_not_fit_evenly_waste_no_step() -> None:
    """Unsplit, prompts of 0.6 budgets take a step each, and at 90% load the queue would never empty."""
    requests = arrivals([SATURATION * 6 // 10] * 300, 0.9)
    assert mean_ttft_s(SATURATION, requests) < 10 * FLOOR_S


@pytest.mark.parametrize("mean_tokens", [300, 1400])
@pytest.mark.parametrize("load", [0.8, 0.9])
def test_above_saturation_a_step_is_better_not_shared(mean_tokens: int, load: float) -> None:
    requests = arrivals(mixed_lengths(mean_tokens), load)
    alone = mean_ttft_s(4 * SATURATION, requests, join_tokens=SATURATION)
    assert alone < mean_ttft_s(4 * SATURATION, requests)
