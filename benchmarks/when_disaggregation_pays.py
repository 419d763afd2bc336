"""When does it pay to split prefill from decode? Claims that others made, looked at by placement.

    levels    Llama 70B FP8, 3,000 tokens in and 150 out, on 8 and 16 H100: the best aggregated, disaggregated
              and mixed plant over service levels from loose to tight
    gpt-oss   gpt-oss-120b on 8 H100: 4 GPUs that prefill and 4 that decode, against aggregated
    knee      Llama 3.3 70B NVFP4 on one B200: the prefill batch that saturates
    fleet     H100, A100 and L40S together against the best of them alone, at the same service level
    speed     how long plans take, the database's tables included
    simulate  plants of these parts at their planned load on the virtual clock (``simulated_plants``)

python -m benchmarks.when_disaggregation_pays [PART ...]

Needs the step-time database (``pip install 'tokenmill[perf,plan]'``). Each part writes
``results/when_disaggregation_pays_PART.json``; ``--pictures DIR`` draws those with figures for it (needs
``tokenmill[plot]``).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import machine, write_result
from benchmarks.planned_plants import (
    KINDS,
    Fleet,
    by_kind,
    fleet_of,
    planned,
    row,
    split_row,
    together_row,
    whole_prompts,
)
from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.perf.fitting import saturating_tokens
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.profiles.kernel_tables import installed, version
from tokenmill.profiles.models import load_shape
from tokenmill.profiles.sources import step_time_source

LLAMA = "nvidia/Llama-3.1-70B-Instruct-FP8"
GPT_OSS = "openai/gpt-oss-120b"
QWEN, QWEN_FP8 = "Qwen/Qwen3-32B", "Qwen/Qwen3-32B-FP8"
SMALL_LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
NVFP4 = "nvidia/Llama-3.3-70B-Instruct-NVFP4"
PERCENTILE = 90.0
TTFTS_MS = (400, 600, 1000, 2000, 5000)
ITLS_MS = (10, 12, 15, 20, 25, 30, 40, 60, 100)
RECIPE = "recipes/llama-3.3-70b-fp8-one-node.yaml"


def level(ttft_ms: float, itl_ms: float, percentile: float = PERCENTILE) -> Promise:
    return Promise(ttft_ms=ttft_ms, itl_ms=itl_ms, percentile=percentile)


def kinds_at(fleet: Fleet, promise: Promise, isl: float = 3000, osl: float = 150) -> dict[str, object]:
    """The best plant of each kind for as much as the fleet can serve; tokens a second over all its GPUs,
    idle ones included."""
    plants = by_kind(planned(fleet, steady(isl, osl), promise))
    found: dict[str, object] = {"ttft_ms": promise.ttft_ms, "itl_ms": promise.itl_ms}
    per_gpu = {
        kind: plant.rate_per_s * osl / fleet.inventory.gpus for kind, plant in plants.items() if kind in KINDS
    }
    for kind in KINDS:
        if kind in plants:
            found[kind] = {**row(plants[kind]), "tokens_per_s_per_fleet_gpu": round(per_gpu[kind], 1)}
        else:
            found[kind] = None
    aggregated = per_gpu.get("aggregated")
    for kind in KINDS[1:]:
        share = per_gpu[kind] / aggregated if aggregated and kind in per_gpu else None
        found[f"{kind}_over_aggregated"] = None if share is None else round(share, 3)
    return found


def ratio(found: dict[str, object]) -> str:
    share = found["disaggregated_over_aggregated"]
    if share is not None:
        return f"{share:5.2f}"
    return "  new" if found["disaggregated"] else "    -"


def levels() -> dict[str, object]:
    """The grid for one and two nodes, and what moves it."""
    result: dict[str, object] = {"model": LLAMA, "isl": 3000, "osl": 150, "percentile": PERCENTILE}
    for gpus in (8, 16):
        fleet = fleet_of(LLAMA, {"H100": gpus}, longest=3150)
        print(f"{gpus} H100: disaggregated over aggregated, tokens/s a GPU (new: only it holds the level)")
        print("  TTFT \\ ITL ms " + " ".join(f"{itl:5}" for itl in ITLS_MS))
        cells = []
        for ttft_ms in TTFTS_MS:
            line = [kinds_at(fleet, level(ttft_ms, itl_ms)) for itl_ms in ITLS_MS]
            cells += line
            print(f"  {ttft_ms:13} " + " ".join(map(ratio, line)))
        result[f"{gpus}_h100"] = cells
    result["what_if"] = list(_what_if())
    return result


def _what_if() -> Iterator[dict[str, object]]:
    """The same at 1,000 ms to the first token, with one thing changed."""
    # One GPU holds the FP8 weights and little else; 0.92 of its memory leaves room for a prompt.
    variants: dict[str, dict[str, object]] = {
        "as above": {},
        "0.92 of the memory (one-GPU prefill workers fit)": {"utilization": 0.92},
        "KV cache in bf16": {"model": "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic"},
        "TensorRT-LLM's kernels": {"engine": "trtllm"},
        "SGLang's kernels": {"engine": "sglang"},
        "percentile 50": {"percentile": 50.0},
        "percentile 99": {"percentile": 99.0},
        "aggregated without chunks": {"whole": True},
    }
    for name, change in variants.items():
        given = {key: value for key, value in change.items() if key in {"utilization", "engine"}}
        for gpus in (8, 16):
            fleet = fleet_of(str(change.get("model", LLAMA)), {"H100": gpus}, longest=3150, **given)
            line = []
            for itl_ms in ITLS_MS:
                promise = level(1000, itl_ms, float(str(change.get("percentile", PERCENTILE))))
                found = kinds_at(fleet, promise)
                if change.get("whole"):
                    found = whole_prompts(fleet, steady(3000, 150), promise, found)
                line.append(found)
            print(f"  {gpus:2} GPUs, {name:50} " + " ".join(map(ratio, line)))
            yield {"what": name, "gpus": gpus, "levels": line}


def gpt_oss() -> dict[str, object]:
    """Four GPUs prefill, four decode; against aggregated, and against the best split of eight."""
    rows = []
    for isl, osl in ((3000, 150), (1000, 1000), (8000, 1000)):
        fleet = fleet_of(GPT_OSS, {"H100": 8}, longest=isl + osl)
        for ttft_ms, itl_ms in ((2000, 50), (1000, 25), (1000, 15), (500, 10), (500, 7)):
            promise, workload = level(ttft_ms, itl_ms), steady(isl, osl)
            found = kinds_at(fleet, promise, isl, osl)
            found["isl"], found["osl"] = isl, osl
            found["tp4_and_tp4"] = split_row(fleet, workload, promise, 4, 4, tensor_parallel_only=True)
            found["four_and_four"] = split_row(fleet, workload, promise, 4, 4)
            found["two_tp4_aggregated"] = together_row(fleet, workload, promise, "H100", 4)
            rows.append(found)
            shown = {
                "aggregated": found["aggregated"],
                "2x TP4 alike": found["two_tp4_aggregated"],
                "TP4 + TP4": found["tp4_and_tp4"],
                "best 4 + 4": found["four_and_four"],
                "disaggregated": found["disaggregated"],
            }
            print(f"{isl} in, {osl} out, {ttft_ms} ms, {itl_ms} ms:")
            for name, each in shown.items():
                rate = f"{each['requests_per_s']:7.2f} requests/s  {each['plant']}" if each else "none"
                print(f"  {name:14} {rate}")
    return {"model": GPT_OSS, "percentile": PERCENTILE, "levels": rows}


def knee() -> dict[str, object]:
    """The smallest prefill batch that saturates a B200, by the kernels of each engine."""
    rows = []
    shape, source = load_shape(NVFP4), step_time_source()
    sizes = [round(128 * 2 ** (step / 2)) for step in range(17)]
    for engine in ("vllm", "trtllm", "sglang"):
        answer = source.replica(ReplicaAsk(shape=shape, gpu=CATALOGUE.gpu("B200"), engine=engine))
        if isinstance(answer, NoTimes) or not isinstance(answer.times, TableStepTime):
            continue
        times = answer.times
        each_us = {n: times.prefill_ms(n, n * (n + 1) / 2) / n * 1000 for n in sizes}
        best = min(each_us.values())
        good = [n for n, value in each_us.items() if value <= 1.1 * best]
        found = {
            "engine": engine,
            "step_times": answer.origin,
            "saturates_at_tokens": saturating_tokens(times.table),
            "one_prompt_us_a_token": {str(n): round(value, 2) for n, value in each_us.items()},
            "within_a_tenth_of_the_best": [min(good), max(good)],
        }
        rows.append(found)
        print(
            f"{engine} ({answer.origin}): saturates at {found['saturates_at_tokens']} tokens; one prompt is "
            f"within 10% of the least a token ({best:.1f} us) from {min(good)} to {max(good)} tokens"
        )
    return {"model": NVFP4, "gpu": "b200-sxm", "engines": rows}


class Demand(NamedTuple):
    model: str
    isl: int
    osl: int
    promise: Promise
    rates: tuple[float, ...]


FLEET = {"H100": 32, "A100": 32, "L40S": 32}
DEMANDS = [
    Demand(model, isl, osl, level(ttft_ms, itl_ms), rates)
    for model, rates in (
        (LLAMA, (10.0, 20.0)),
        (QWEN_FP8, (10.0, 20.0)),
        (QWEN, (10.0, 20.0)),
        (SMALL_LLAMA, (40.0,)),
    )
    for isl, osl in ((3000, 150), (1000, 500))
    for ttft_ms, itl_ms in ((1000, 30), (2000, 50))
]


def mixed_fleet() -> dict[str, object]:
    """The cheapest plant of any GPUs against the cheapest of each type alone."""
    rows = []
    for demand in DEMANDS:
        fleet = fleet_of(demand.model, FLEET, longest=demand.isl + demand.osl)
        workload = steady(demand.isl, demand.osl)
        for rate in demand.rates:
            best = planned(fleet, workload, demand.promise, rate).best
            alone = {gpu: planned(fleet.only([gpu]), workload, demand.promise, rate).best for gpu in FLEET}
            costs = {gpu: plant.dollars_per_hour for gpu, plant in alone.items() if plant is not None}
            if best is None or not costs:
                continue
            least = min(costs, key=lambda gpu: costs[gpu])
            saved = 1 - best.dollars_per_hour / costs[least]
            types = sorted({stage.gpu for stage in best.stages})
            rows.append(
                {
                    "model": demand.model,
                    "isl": demand.isl,
                    "osl": demand.osl,
                    "ttft_ms": demand.promise.ttft_ms,
                    "itl_ms": demand.promise.itl_ms,
                    "requests_per_s": rate,
                    "mixed": row(best),
                    "types": types,
                    "alone": {gpu: row(plant) if plant else None for gpu, plant in alone.items()},
                    "best_alone": least,
                    "saved": round(saved, 3),
                }
            )
            print(
                f"{demand.model.rpartition('/')[2]:26} {demand.isl}/{demand.osl} {demand.promise.ttft_ms}/"
                f"{demand.promise.itl_ms} {rate:3.0f}/s: ${best.dollars_per_hour:6.2f} against "
                f"${costs[least]:6.2f} ({least}): {saved:4.0%}  {best.words}"
            )
    prices = {gpu: CATALOGUE.gpu(gpu).dollars_per_hour for gpu in FLEET}
    return {"fleet": FLEET, "dollars_per_gpu_hour": prices, "percentile": PERCENTILE, "demands": rows}


def speed() -> dict[str, object]:
    """The command for 8 GPUs as its own process; 1,000 GPUs of six types in this one."""
    command = [sys.executable, "-m", "tokenmill", "plan", RECIPE, "--isl", "3000", "--osl", "150"]
    with tempfile.TemporaryDirectory() as empty:
        runs, cpu = [], []
        for _ in range(4):
            start, start_cpu = time.perf_counter(), _children_cpu_s()
            subprocess.run(
                command, check=True, capture_output=True, env={**os.environ, "TOKENMILL_CACHE_DIR": empty}
            )
            runs.append(round(time.perf_counter() - start, 2))
            cpu.append(round(_children_cpu_s() - start_cpu, 2))
    six = {"H100": 160, "A100": 200, "L40S": 240, "H200": 120, "B200": 80, "MI300X": 200}
    start = time.perf_counter()
    fleet = fleet_of(LLAMA, six, longest=4000)
    loaded, start_cpu = time.perf_counter(), time.process_time()
    plan = planned(fleet, steady(3000, 150), level(1000, 30), 200.0)
    found: dict[str, object] = {
        "8_gpus_first_s": runs[0],
        "8_gpus_first_cpu_s": cpu[0],
        "8_gpus_again_s": runs[1:],
        "8_gpus_again_cpu_s": cpu[1:],
        "1000_gpus_tables_s": round(loaded - start, 2),
        "1000_gpus_plan_s": round(time.perf_counter() - loaded, 2),
        "1000_gpus_plan_cpu_s": round(time.process_time() - start_cpu, 2),
        "1000_gpus_best": plan.best.words if plan.best else None,
        "1000_gpus_compared_with": len(plan.runners_up),
    }
    for name, value in found.items():
        print(f"{name}: {value}")
    return found


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def simulate() -> dict[str, object]:
    """See ``benchmarks/simulated_plants.py``."""
    from benchmarks.simulated_plants import confirm

    return confirm()


PARTS: dict[str, Callable[[], dict[str, object]]] = {
    "levels": levels,
    "gpt-oss": gpt_oss,
    "knee": knee,
    "fleet": mixed_fleet,
    "speed": speed,
    "simulate": simulate,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; none: all")
    parser.add_argument("--pictures", type=Path, help="draw pictures of the results into this folder")
    given = parser.parse_args(arguments)
    if not installed():
        sys.exit("the step-time database is not installed: pip install 'tokenmill[perf]'")
    for name in given.parts or PARTS:
        print(f"== {name}")
        about = {**machine(), "step_time_database": version()}
        start = time.perf_counter()
        result = {**PARTS[name](), "seconds": round(time.perf_counter() - start, 1)}
        print("written:", write_result(f"when_disaggregation_pays_{name.replace('-', '_')}", result, about))
    if given.pictures:
        from benchmarks.when_disaggregation_pictures import draw

        draw(given.pictures)


if __name__ == "__main__":
    main()
