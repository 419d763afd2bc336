"""Planned plants on the virtual clock: does what the formulas promise come about with real routers and
step schedulers?

Each plant gets Poisson arrivals at its planned load, a router as a frontend has it, and workers with the step
times that it was planned with. What is compared: mean and percentile of the time to first token and of each
request's mean time between tokens, and the share of requests within both limits.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.planned_plants import Fleet, by_kind, fleet_of, planned
from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.fleet.candidates import Candidate
from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.plans import PlantPlan, StagePlan, parallel_words
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.protocol.step_table import StepTable
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.record import RequestRecord, RunRecord
from tokenmill.simulate.scene import LinkScene, Scene, StageScene
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace, TracedRequest

REQUESTS = 3000
WARM = 0.15
"""The share of requests, from the start, that are left out: the plant is empty before."""

_BLOCK_TOKENS = 128
_OVERLOAD = 1.4


class Workers(NamedTuple):
    """Equal workers of a plant. ``chunk_tokens``: prefill tokens of a step; ``max_sequences``: of a batch."""

    engine: Candidate
    role: Role
    count: int
    chunk_tokens: int
    max_sequences: int

    @property
    def words(self) -> str:
        """The workers in a few words."""
        role = {Role.BOTH: "aggregated"}.get(self.role, self.role.value)
        return f"{self.count}x {parallel_words(self.engine.parallel)} {role} ({self.max_sequences})"


def scene_of(
    stages: Sequence[Workers],
    isl: int,
    osl: int,
    router: RouterSettings,
    seed: int = 1,
) -> Scene:
    """Return the plant. Each worker has a port of its own, as fast as the slowest of them all; unequal ones
    that decode tell their step times, as those of a written plan do."""
    unequal = sum(each.role is not Role.PREFILL for each in stages) > 1
    inside = len({each.engine.group.name for each in stages}) == 1 and stages[0].engine.group.nodes == 1
    ports = [
        (each.engine.group.within if inside else each.engine.group.network, each.engine.gpus)
        for each in stages
    ]
    link = LinkScene(
        bytes_per_s=min(port.gb_per_s * gpus for port, gpus in ports) * 1e9,
        latency_s=max(port.latency_ms for port, _ in ports) / 1000,
    )
    return Scene(
        stages=[_stage(f"stage{number}", each, isl, osl, unequal) for number, each in enumerate(stages)],
        links=link,
        same_host=link,
        router=router,
        message_delay_s=0.0005,
        seed=seed,
    )


def _stage(name: str, workers: Workers, isl: int, osl: int, unequal: bool) -> StageScene:
    engine, ranks = workers.engine, workers.engine.replica.side_by_side
    chunk = workers.chunk_tokens * ranks
    batching = BatchingConfig(
        total_blocks=int(engine.replica.kv_capacity_tokens / _BLOCK_TOKENS),
        block_tokens=_BLOCK_TOKENS,
        max_model_len=isl + osl,
        role=workers.role,
        token_budget=chunk + workers.max_sequences,
        prefill_budget=chunk,
        max_sequences=workers.max_sequences,
    )
    return StageScene(
        name=name,
        role=workers.role,
        workers=workers.count,
        batching=batching,
        times=ModelTimes(engine.replica.times),
        device=engine.group.gpu.name,
        kv_bytes_per_token=engine.kv_bytes_per_token,
        step_table=_table(engine) if unequal and workers.role is not Role.PREFILL else None,
    )


def _table(engine: Candidate) -> StepTable | None:
    times = engine.replica.times
    return times.table if isinstance(times, TableStepTime) else None


def poisson(rate_per_s: float, requests: int, isl: int, osl: int, seed: int = 3) -> Trace:
    """Return requests that are all alike and share nothing."""
    chance, at_s, traced = random.Random(seed), 0.0, []
    for _ in range(requests):
        at_s += chance.expovariate(rate_per_s)
        traced.append(TracedRequest(at_s, isl, osl))
    return Trace(traced)


def saturated_rate(stages: Sequence[Workers], isl: int, osl: int, about: float) -> tuple[float, float]:
    """Return requests a second that end while more come than can be served, and the mean time between
    tokens, ms. ``about``: what is expected."""
    mode = "remote" if any(each.role is Role.PREFILL for each in stages) else "local"
    router = RouterSettings(prefill=mode)
    held = sum(each.max_sequences * each.count for each in stages)
    requests = max(600, 5 * held)
    run = simulate(scene_of(stages, isl, osl, router), poisson(about * _OVERLOAD, requests, isl, osl))
    start, end = 0.35 * run.requests[-1].arrived_s, run.requests[-1].arrived_s
    ended = [each for each in run.requests if each.served and start < each.last_s <= end]
    return len(ended) / (end - start), statistics.fmean(_tpots(ended))


def _tpots(seen: Sequence[RequestRecord]) -> list[float]:
    return [each.tpot_ms for each in seen if each.tpot_ms is not None]


class Case(NamedTuple):
    """A plant to confirm: the best of ``kind`` on a fleet, for a rate or for as much as it can serve."""

    name: str
    model: str
    gpus: dict[str, int]
    isl: int
    osl: int
    promise: Promise
    kind: str
    rate_per_s: float | None = None


def _cases() -> Iterator[Case]:
    llama, gpt_oss = "nvidia/Llama-3.1-70B-Instruct-FP8", "openai/gpt-oss-120b"
    for gpus, ttft_ms, itl_ms in ((8, 1000, 25), (8, 2000, 60), (16, 1000, 15), (16, 1000, 25)):
        promise = Promise(ttft_ms=ttft_ms, itl_ms=itl_ms, percentile=90)
        for kind in ("aggregated", "disaggregated", "mixed"):
            yield Case(f"Llama 70B, {gpus} H100", llama, {"H100": gpus}, 3000, 150, promise, kind)
    promise = Promise(ttft_ms=1000, itl_ms=15, percentile=90)
    for kind in ("aggregated", "disaggregated", "mixed"):
        yield Case("gpt-oss-120b, 8 H100", gpt_oss, {"H100": 8}, 3000, 150, promise, kind)
        yield Case("gpt-oss-120b, 8 H100", gpt_oss, {"H100": 8}, 1000, 1000, promise, kind)
    three = {"H100": 32, "A100": 32, "L40S": 32}
    small = "meta-llama/Llama-3.1-8B-Instruct"
    for model, isl, osl, rate, ttft_ms, itl_ms in (
        (llama, 3000, 150, 20.0, 2000, 50),
        ("Qwen/Qwen3-32B-FP8", 3000, 150, 20.0, 1000, 30),
        ("Qwen/Qwen3-32B-FP8", 3000, 150, 10.0, 2000, 50),
        ("Qwen/Qwen3-32B-FP8", 1000, 500, 20.0, 2000, 50),
        ("Qwen/Qwen3-32B", 1000, 500, 20.0, 1000, 30),
        ("Qwen/Qwen3-32B", 1000, 500, 20.0, 2000, 50),
        (small, 3000, 150, 40.0, 2000, 50),
        (small, 1000, 500, 40.0, 1000, 30),
    ):
        promise = Promise(ttft_ms=ttft_ms, itl_ms=itl_ms, percentile=90)
        yield Case(f"{model.rpartition('/')[2]}, three types", model, three, isl, osl, promise, "best", rate)


def confirm(requests: int = REQUESTS) -> dict[str, object]:
    """Run all cases; return plan and run side by side."""
    rows = []
    for case in _cases():
        fleet = fleet_of(case.model, case.gpus, longest=case.isl + case.osl)
        plan = planned(fleet, steady(case.isl, case.osl), case.promise, case.rate_per_s)
        plant = plan.best if case.kind == "best" else by_kind(plan).get(case.kind)
        if plant is None:
            print(f"{case.name}, {case.kind}: there is no such plant")
            continue
        rows += [_confirmed(case, fleet, plant, mode, requests) for mode in _modes(plant)]
    return {"requests": requests, "plants": rows}


def _modes(plant: PlantPlan) -> tuple[str, ...]:
    """Where prompts go: as planned, and as a factory has it unless told otherwise."""
    return {"aggregated": ("local",), "disaggregated": ("remote", "auto")}.get(plant.kind, ("auto",))


def _confirmed(case: Case, fleet: Fleet, plant: PlantPlan, mode: str, requests: int) -> dict[str, object]:
    stages = [_workers(fleet, stage) for stage in plant.stages]
    router = RouterSettings(
        prefill=mode, itl_ms=case.promise.itl_ms, local_share=plant.local_share if mode == "auto" else 0.0
    )
    run = simulate(
        scene_of(stages, case.isl, case.osl, router), poisson(plant.rate_per_s, requests, case.isl, case.osl)
    )
    seen = _seen(run, case.promise)
    found: dict[str, object] = {
        "what": case.name,
        "isl": case.isl,
        "osl": case.osl,
        "ttft_limit_ms": case.promise.ttft_ms,
        "itl_limit_ms": case.promise.itl_ms,
        "percentile": case.promise.percentile,
        "kind": plant.kind,
        "plant": plant.words,
        "requests_per_s": round(plant.rate_per_s, 2),
        "prompts_go": mode,
        "planned_local_share": round(plant.local_share, 3),
        "planned": {
            "within": round(plant.within, 4),
            "ttft_mean_ms": round(plant.ttft_mean_ms, 1),
            "ttft_p90_ms": round(plant.ttft_ms, 1),
            "itl_mean_ms": round(plant.itl_mean_ms, 2),
            "itl_p90_ms": round(plant.itl_ms, 2),
        },
        "simulated": seen,
    }
    print(
        f"{case.name} {case.isl}/{case.osl} {case.promise.ttft_ms}/{case.promise.itl_ms} {plant.kind} "
        f"({mode}), {plant.rate_per_s:.2f}/s: {plant.words}"
    )
    for name, value in found["planned"].items():  # type: ignore[attr-defined]
        print(f"    {name:13} planned {value:8.2f} simulated {seen[name]:8.2f}")
    return found


def _workers(fleet: Fleet, stage: StagePlan) -> Workers:
    engine = next(
        each
        for each in fleet.candidates
        if each.group.name == stage.group and each.parallel == stage.parallel
    )
    return Workers(engine, stage.role, stage.replicas, stage.chunk_tokens, stage.max_sequences)


def _seen(run: RunRecord, promise: Promise) -> dict[str, float]:
    after = run.requests[int(len(run.requests) * WARM) :]
    served = [each for each in after if each.served]
    good = sum(each.ttft_ms <= promise.ttft_ms and (each.tpot_ms or 0.0) <= promise.itl_ms for each in served)
    ttfts, tpots = sorted(each.ttft_ms for each in served), sorted(_tpots(served))
    return {
        "within": round(good / len(after), 4),
        "ttft_mean_ms": round(statistics.fmean(ttfts), 1),
        "ttft_p90_ms": round(_quantile(ttfts, 0.9), 1),
        "itl_mean_ms": round(statistics.fmean(tpots), 2),
        "itl_p90_ms": round(_quantile(tpots, 0.9), 2),
        "not_served": len(after) - len(served),
        "handed_over": run.handoffs,
        "local_share": round(statistics.fmean(r.prefill_worker == r.decode_worker for r in served), 3),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]
