"""What a run's tokens cost: each stage's money told out to the tokens that it was spent on.

The rule is that of plans (``decide.fleet.pricing``), with what the run has shown in place of what was
expected: how many prompts each stage computed itself, and how many of their tokens it found cached. It must
not know how the run came about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tokenmill.decide.fleet.pricing import StageCost, cached_share, prompts_share, token_prices
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.workload import Workload, from_requests
from tokenmill.operate.simulate.devices import Device
from tokenmill.operate.simulate.summary import Cost
from tokenmill.protocol.ids import Role
from tokenmill.simulate.record import RequestRecord, RunRecord, StageRecord
from tokenmill.simulate.scene import StageScene

_HOUR_S = 3600.0


def dollars_of(record: StageRecord, device: Device) -> float | None:
    """Return what a stage's workers cost while they were there; None: no price is known."""
    if device.dollars_per_hour is None:
        return None
    return record.worker_s / _HOUR_S * device.dollars_per_hour


def span_s(run: RunRecord) -> float:
    """Return for how long workers were there: from the trace's start to the last token."""
    return run.makespan_s + (run.requests[0].arrived_s if run.requests else 0.0)


def cost_of(
    run: RunRecord, stages: Sequence[StageScene], devices: Mapping[str, Device], income: float | None
) -> Cost | None:
    """Return what the run cost; None where no stage has a price."""
    spent = [dollars_of(record, devices[record.name]) for record in run.stages]
    served = [each for each in run.requests if each.served]
    if all(each is None for each in spent) or not served or span_s(run) <= 0:
        return None
    workload = from_requests((each.prompt_tokens, each.cached_tokens, each.output_tokens) for each in served)
    hours = span_s(run) / _HOUR_S
    costs = [
        _told_out((dollars or 0.0) / hours, stage, devices[stage.name], served, workload)
        for dollars, stage in zip(spent, stages, strict=True)
    ]
    dollars = sum(each or 0.0 for each in spent)
    return Cost(
        dollars=dollars,
        dollars_per_hour=dollars / hours,
        per_million=token_prices(costs, workload, len(served) / span_s(run)),
        income=income,
    )


def _told_out(
    dollars_per_hour: float,
    stage: StageScene,
    device: Device,
    served: Sequence[RequestRecord],
    workload: Workload,
) -> StageCost:
    if device.times.decode_ms(1, 1) <= 0:  # an engine that takes no time
        return StageCost(dollars_per_hour, 1.0 if stage.role is Role.PREFILL else 0.0, 0.0)
    batching = stage.batching
    replica = Replica(times=device.times, kv_capacity_tokens=batching.total_blocks * batching.block_tokens)
    chunk = min(batching.prefill_budget or batching.token_budget, batching.token_budget)
    cached = cached_share(replica, workload, chunk)
    if stage.role is Role.PREFILL:
        return StageCost(dollars_per_hour, 1.0, cached)
    batch = min(float(batching.max_sequences), replica.kv_capacity_tokens / max(1.0, workload.decode_context))
    prompts = prompts_share(replica, workload, local_share(stage, served), max(1.0, batch))
    return StageCost(dollars_per_hour, prompts, cached)


def local_share(stage: StageScene, served: Sequence[RequestRecord]) -> float:
    """Return, of the requests that a stage decoded, the share whose prompts it computed itself."""
    # Workers are called stage-i, one that came back stage-i.2; stages' names may have "-" in them, too.
    own_name = re.compile(rf"{re.escape(stage.name)}-[0-9.]+")
    decoded = [each for each in served if own_name.fullmatch(each.decode_worker)]
    own = sum(each.prefill_worker == each.decode_worker for each in decoded)
    return own / len(decoded) if decoded else 0.0
