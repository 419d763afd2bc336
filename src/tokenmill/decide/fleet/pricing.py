"""What a million tokens of each class cost in a plant at its load.

Exists because a plant's price an hour says little: prompts, cached prompts and outputs use its stages
differently. All money is told out, idle room included, so that tokens times prices are the plant's price.
It must not know how the plant was found.

A prefill worker's price goes to prompts, a decoding one's to outputs; one that does both is split by what
each takes of it at full load: prompts in full steps, outputs in full batches. Of what goes to prompts,
cached tokens bear the time by which attending to them lengthens the computation of the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokenmill.decide.fleet.plans import TokenPrices
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.workload import Workload

FULL_STEP = 2048
"""Prefill tokens that fill any device."""


class StageCost(NamedTuple):
    """``prompts``: the share of its money that goes to prompts; ``cached``: of that, to cached tokens."""

    dollars_per_hour: float
    prompts: float
    cached: float


def cached_share(replica: Replica, workload: Workload, chunk_tokens: float) -> float:
    """Return the share of the prompts' time that is due to attending to cached tokens."""
    whole = without = 0.0
    for shape in workload.shapes:
        chunk = min(chunk_tokens, shape.new_tokens)
        steps = shape.share * shape.new_tokens / chunk
        whole += steps * replica.step_ms(chunk, chunk * shape.mean_context, 0, 0)
        without += steps * replica.step_ms(chunk, chunk * shape.new_tokens / 2, 0, 0)
    return max(0.0, 1 - without / whole)


def prompts_share(replica: Replica, workload: Workload, local_share: float, batch: float) -> float:
    """Return the share of a decoding worker that its own prompts take. ``batch``: the most sequences of a
    lane's step."""
    if not local_share:
        return 0.0
    prompts_ms = sum(
        shape.share
        * shape.new_tokens
        / FULL_STEP
        * replica.step_ms(FULL_STEP, FULL_STEP * shape.mean_context, 0, 0)
        for shape in workload.shapes
    )
    step_ms = replica.step_ms(0, 0, batch, batch * workload.decode_context)
    outputs_ms = workload.decode_steps * step_ms / batch
    return local_share * prompts_ms / (local_share * prompts_ms + outputs_ms)


def token_prices(stages: Iterable[StageCost], workload: Workload, rate_per_s: float) -> TokenPrices:
    """Return dollars a million tokens at ``rate_per_s`` requests a second."""
    new = cached = output = 0.0
    for stage in stages:
        prompts = stage.dollars_per_hour * stage.prompts
        new += prompts * (1 - stage.cached)
        cached += prompts * stage.cached
        output += stage.dollars_per_hour - prompts
    if not workload.cached_tokens:
        new, cached = new + cached, 0.0

    def per_million(dollars_per_hour: float, tokens: float) -> float | None:
        return dollars_per_hour / (rate_per_s * 3600 * tokens) * 1e6 if tokens and rate_per_s else None

    return TokenPrices(
        input=per_million(new, workload.new_tokens),
        cached=per_million(cached, workload.cached_tokens),
        output=per_million(output, workload.output_tokens),
    )
