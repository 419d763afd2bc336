"""From a run's record to its summary.

Exists as the one place where record, scene and prices meet. It must not know how figures are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from tokenmill.operate.simulate.costs import cost_of, dollars_of, span_s
from tokenmill.operate.simulate.counting import (
    latency_of,
    level_of,
    over_time,
    shares_of,
    shares_of_gaps,
)
from tokenmill.operate.simulate.devices import Device
from tokenmill.operate.simulate.scenes import Staged
from tokenmill.operate.simulate.summary import (
    Charts,
    ClassSummary,
    Curve,
    Moment,
    Series,
    StageSummary,
    Summary,
    Throughput,
)
from tokenmill.simulate.record import RequestRecord, RunRecord, StageRecord
from tokenmill.simulate.scene import StageScene
from tokenmill.simulate.traces import Trace
from tokenmill.spec.scenario import RequestClass, Scenario
from tokenmill.spec.stage import Price

MOST_CLASSES: Final = 40
"""A trace may have thousands of tenants; a report that names them all is none."""

OTHERS: Final = "(others)"


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation that has ended. ``wall_s``: how long it took; ``load``: the trace in words."""

    staged: Staged
    scenario: Scenario
    trace: Trace
    load: str
    run: RunRecord
    wall_s: float = 0.0


def summary_of(ran: Ran) -> Summary:
    """Return what is reported of a run."""
    run, staged, scenario = ran.run, ran.staged, ran.scenario
    served = [each for each in run.requests if each.served]
    classes = _classes(run, staged, scenario.classes)
    incomes = [each.income for each in classes if each.income is not None]
    length_s = ran.trace.length_s
    return Summary(
        factory=staged.name,
        scenario=scenario.metadata.name,
        load=ran.load,
        seed=run.seed,
        requests=len(run.requests),
        served=len(served),
        refused=dict(Counter(each.reason or each.outcome for each in run.requests if not each.served)),
        offered_per_s=len(run.requests) / length_s if length_s > 0 else 0.0,
        prompt_tokens=sum(each.prompt_tokens for each in served),
        output_tokens=sum(each.output_tokens for each in served),
        makespan_s=run.makespan_s,
        prefix_hit=_prefix_hit(served),
        latency=latency_of(run.requests, run.gaps),
        level=level_of(run.requests, staged.slo, run.makespan_s),
        throughput=_throughput(run, staged, served),
        stages=[
            _stage(record, stage, staged.devices[stage.name])
            for record, stage in zip(run.stages, staged.scene.stages, strict=True)
        ],
        cost=cost_of(run, staged.scene.stages, staged.devices, sum(incomes) if incomes else None),
        classes=classes,
        handoffs=run.handoffs,
        handoffs_failed=run.handoffs_failed,
        local_prefills=sum(each.prefill_worker == each.decode_worker for each in served),
        migrations=run.migrations,
        steps=run.steps,
        wall_s=ran.wall_s,
        events=[Moment(at_s=each.at_s, what=each.what) for each in run.events_log],
        charts=_charts(run, served, length_s),
        notes=staged.notes,
    )


def _prefix_hit(served: Sequence[RequestRecord]) -> float:
    prompt_tokens = sum(each.prompt_tokens for each in served)
    return sum(each.cached_tokens for each in served) / prompt_tokens if prompt_tokens else 0.0


def _throughput(run: RunRecord, staged: Staged, served: Sequence[RequestRecord]) -> Throughput:
    seconds = run.makespan_s or 1.0
    output = sum(each.output_tokens for each in served) / seconds
    gpu_s = sum(record.worker_s * staged.devices[record.name].gpus for record in run.stages)
    gpus = gpu_s / (span_s(run) or 1.0)
    return Throughput(
        requests_per_s=len(served) / seconds,
        input_tokens_per_s=sum(each.prompt_tokens for each in served) / seconds,
        output_tokens_per_s=output,
        output_tokens_per_s_per_gpu=output / gpus if gpus else None,
        gpus=gpus,
    )


def _stage(record: StageRecord, stage: StageScene, device: Device) -> StageSummary:
    samples = record.samples
    count = max(1, len(samples))
    return StageSummary(
        name=record.name,
        role=str(record.role.value),
        device=record.device,
        workers=stage.workers,
        gpus_per_worker=device.gpus,
        busy=record.busy_s / record.worker_s if record.worker_s else 0.0,
        queued=sum(each.queued for each in samples) / count,
        queued_most=max((each.queued for each in samples), default=0),
        running=sum(each.running for each in samples) / count,
        kv=sum(each.kv_share for each in samples) / count,
        kv_most=max((each.kv_share for each in samples), default=0.0),
        steps=record.steps,
        prefill_tokens=record.prefill_tokens,
        decode_tokens=record.decode_tokens,
        preemptions=record.preemptions,
        dollars=dollars_of(record, device),
        dollars_per_hour=device.dollars_per_hour,
        times_from=device.origin,
        expected_error=device.expected_error,
        series=Series(
            at_s=[each.at_s for each in samples],
            workers=[each.workers for each in samples],
            busy=[each.busy_share for each in samples],
            queued=[each.queued for each in samples],
            running=[each.running for each in samples],
            kv=[each.kv_share for each in samples],
        ),
    )


def _classes(run: RunRecord, staged: Staged, declared: Sequence[RequestClass]) -> list[ClassSummary]:
    """One for each class of the scenario and for ``MOST_CLASSES`` of those that only the trace names, the
    rest together; none where nothing is told apart."""
    known = {each.name: each for each in declared}
    numbers = Counter(each.klass for each in run.requests if each.klass not in known)
    own = {*known, *(name for name, _ in numbers.most_common(MOST_CLASSES))}
    groups: dict[str, list[RequestRecord]] = {name: [] for name in known}
    for each in run.requests:
        groups.setdefault(each.klass if each.klass in own else OTHERS, []).append(each)
    if set(groups) <= {""}:
        return []
    return [_class(name, group, known.get(name), run, staged) for name, group in sorted(groups.items())]


def _class(
    name: str, group: Sequence[RequestRecord], known: RequestClass | None, run: RunRecord, staged: Staged
) -> ClassSummary:
    served = [each for each in group if each.served]
    slo = known.slo if known is not None and known.slo is not None else staged.slo
    price = known.price if known is not None else None
    prompt_tokens = sum(each.prompt_tokens for each in served)
    cached_tokens = sum(each.cached_tokens for each in served)
    output_tokens = sum(each.output_tokens for each in served)
    return ClassSummary(
        name=name,
        requests=len(group),
        served=len(served),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        latency=latency_of(group, None),
        level=level_of(group, slo, run.makespan_s),
        income=None if price is None else _income(price, prompt_tokens, cached_tokens, output_tokens),
    )


def _income(price: Price, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
    cached = price.input if price.cached < 0 else price.cached
    new = prompt_tokens - cached_tokens
    return (new * price.input + cached_tokens * cached + output_tokens * price.output) / 1e6


def _charts(run: RunRecord, served: Sequence[RequestRecord], length_s: float) -> Charts:
    arrivals, middle, high = over_time(run.requests, length_s)
    return Charts(
        ttft_ms=shares_of(each.ttft_ms for each in served),
        itl_ms=shares_of_gaps(run.gaps),
        e2e_ms=shares_of(each.whole_ms for each in served),
        arrivals=arrivals,
        ttft_p50_ms=middle,
        ttft_p95_ms=high,
        waiting=Curve(x=[at_s for at_s, _ in run.queued], y=[float(number) for _, number in run.queued]),
    )
