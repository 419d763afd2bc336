"""Plants that AIConfigurator recommends, by its figures, by ours, and on the virtual clock; and what was
measured on real GPUs.

For the same model, GPU, engine and service level its own search is run (``pip install aiconfigurator``, the
tool whose kernel tables ``aiconfigurator-core`` holds), and what it published for Qwen3-32B on 32 H200 is
taken from its README. Each of its plants is put together again from our parts and compared at steady state:
as many requests at a time as it says, always.

It takes off what it calls bubbles: a tenth of prefill workers' rates and 8 % of decode workers' in split
plants, and under vLLM 0.8 ms a layer and prompt. Ours are given with the same taken off, which compares step
times and batches, and without, which is what plan and simulator reckon with.

python -m benchmarks.against_aiconfigurator [--no-simulation]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.against_measured import held, measured
from benchmarks.machine import machine, spread, write_result
from benchmarks.planned_plants import Fleet, by_kind, fleet_of, planned, row
from benchmarks.simulated_plants import Workers, saturated_rate
from tokenmill.decide.fleet.candidates import Candidate
from tokenmill.decide.fleet.capacity import Promise, decode_capacity, prefill_capacity
from tokenmill.decide.fleet.stages import DecodeGroup, PrefillGroup
from tokenmill.decide.fleet.workload import Workload, steady
from tokenmill.profiles.kernel_tables import version
from tokenmill.profiles.models import load_shape
from tokenmill.protocol.ids import Role

PREFILL_KEPT, DECODE_KEPT = 0.9, 0.92
"""What its rate matching leaves of prefill and decode workers' rates."""

DISPATCH_MS = 0.8
"""What it adds a layer and prompt under vLLM."""


class Case(NamedTuple):
    """``system``: its name of ``gpu``."""

    model: str
    gpu: str
    system: str
    engine: str
    gpus: int
    isl: int
    osl: int
    ttft_ms: float
    tpot_ms: float


LLAMA, GPT_OSS = "nvidia/Llama-3.1-70B-Instruct-FP8", "openai/gpt-oss-120b"
CASES = [
    Case(LLAMA, "H100", "h100_sxm", "vllm", 8, 3000, 150, 2000, 50),
    Case(LLAMA, "H100", "h100_sxm", "vllm", 8, 3000, 150, 1000, 30),
    Case(LLAMA, "H100", "h100_sxm", "vllm", 8, 3000, 150, 600, 20),
    Case(LLAMA, "H100", "h100_sxm", "vllm", 16, 3000, 150, 1000, 20),
    Case(LLAMA, "H100", "h100_sxm", "trtllm", 8, 3000, 150, 1000, 30),
    Case(LLAMA, "H100", "h100_sxm", "sglang", 8, 3000, 150, 1000, 30),
    Case(LLAMA, "H200", "h200_sxm", "vllm", 8, 3000, 150, 1000, 20),
    Case("meta-llama/Meta-Llama-3.1-8B", "L40S", "l40s", "vllm", 8, 1000, 500, 1000, 40),
    Case("Qwen/Qwen3-32B-FP8", "H200", "h200_sxm", "trtllm", 32, 4000, 500, 300, 10),
    Case("Qwen/Qwen3-32B-FP8", "H200", "h200_sxm", "vllm", 8, 4000, 500, 1000, 25),
    Case(GPT_OSS, "H100", "h100_sxm", "vllm", 8, 3000, 150, 1000, 25),
]

PUBLISHED_SOURCE = "README of AIConfigurator, run of October 2025 (its tables then: TensorRT-LLM 1.0.0rc3)"
PUBLISHED_CASE = Case("Qwen/Qwen3-32B", "H200", "h200_sxm", "trtllm", 32, 4000, 500, 300, 10)
# Tokens/s a GPU, then as its tables name things.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "disagg": [
        {
            "tokens/s/gpu": tokens,
            "(d)bs": batch,
            "(p)workers": 4,
            "(p)tp": 1,
            "(p)bs": 1,
            "(d)workers": 1,
            "(d)tp": 4,
        }
        for tokens, batch in ((812.92, 60), (750.55, 52), (651.19, 44))
    ],
    "agg": [
        {"tokens/s/gpu": tokens, "bs": batch, "tp": 4, "ctx_tokens": 4000}
        for tokens, batch in ((478.57, 20), (429.39, 16), (398.29, 14))
    ],
}


def recommended(case: Case) -> dict[str, list[dict[str, Any]]]:
    """Run its search; the best three plants of each kind, each as a row of its own table."""
    from aiconfigurator.cli.api import cli_default

    found = cli_default(
        case.model,
        case.gpus,
        case.system,
        backend=case.engine,
        isl=case.isl,
        osl=case.osl,
        ttft=case.ttft_ms,
        tpot=case.tpot_ms,
        strict_sla=True,
        top_n=3,
    )
    return {kind: table.head(3).to_dict("records") for kind, table in found.best_configs.items()}


def published_today(case: Case, kind: str, its: Mapping[str, Any]) -> float:
    """What it says today of a plant that it published, tokens/s a GPU: its tables have changed since."""
    from aiconfigurator.cli.api import cli_estimate

    if kind == "agg":
        spread_over = {"tp_size": its["tp"], "batch_size": its["bs"], "ctx_tokens": its["ctx_tokens"]}
    else:
        spread_over = {
            "prefill_tp_size": its["(p)tp"],
            "prefill_batch_size": its["(p)bs"],
            "prefill_num_workers": its["(p)workers"],
            "decode_tp_size": its["(d)tp"],
            "decode_batch_size": its["(d)bs"],
            "decode_num_workers": its["(d)workers"],
        }
    found = cli_estimate(
        case.model,
        case.system,
        mode=kind,
        backend_name=case.engine,
        isl=case.isl,
        osl=case.osl,
        gemm_quant_mode="fp8",
        kvcache_quant_mode="fp8",
        **spread_over,
    )
    return float(found.tokens_per_second_per_gpu)


class Ours(NamedTuple):
    """Requests a second at steady state of the whole plant: with what it takes off (``kept``), and without;
    and what plan promises it for, queues counted. ``tpot_ms``: mean time between tokens."""

    kept: float
    whole: float
    promised: float
    tpot_ms: float
    gpus: int
    stages: list[Workers]


def _dispatch_ms(case: Case) -> float:
    return DISPATCH_MS * load_shape(case.model).layers if case.engine == "vllm" else 0.0


def _promise(case: Case) -> Promise:
    return Promise(ttft_ms=case.ttft_ms, itl_ms=case.tpot_ms, percentile=90)


def aggregated(fleet: Fleet, case: Case, workload: Workload, its: Mapping[str, Any]) -> Ours:
    """One worker with always ``bs`` requests; as many as there are GPUs for in what is promised."""
    engine, batch = _engine(fleet, case, its, ""), int(its["bs"]) * int(its.get("dp", 1))
    point = held(engine, workload, its["ctx_tokens"], batch, 0.0)
    kept = held(engine, workload, its["ctx_tokens"], batch, _dispatch_ms(case))
    count = case.gpus // engine.gpus
    promised = decode_capacity(engine.replica, count, workload, _promise(case), local_share=1.0).rate / count
    workers = Workers(engine, Role.BOTH, 1, chunk_tokens=int(its["ctx_tokens"]), max_sequences=batch)
    return Ours(kept.rate * 1000, point.rate * 1000, promised, point.itl_ms, engine.gpus, [workers])


def split(fleet: Fleet, case: Case, workload: Workload, its: Mapping[str, Any]) -> Ours:
    """Prefill workers that are never idle, decode workers with always ``(d)bs`` requests."""
    giver, taker = _engine(fleet, case, its, "(p)"), _engine(fleet, case, its, "(d)")
    givers, takers = int(its["(p)workers"]), int(its["(d)workers"])
    chunk = int(its["(p)bs"]) * case.isl
    batch = int(its["(d)bs"]) * int(its.get("(d)dp", 1))
    prefill = PrefillGroup(replica=giver.replica, count=givers, workload=workload, chunk_tokens=chunk)
    decode = DecodeGroup(replica=taker.replica, count=takers, workload=workload)
    point = decode.at_batch(batch / taker.replica.lanes)
    assert point is not None
    first, then = prefill.most_rate * 1000, point.rate * 1000
    stages = [
        Workers(giver, Role.PREFILL, givers, chunk_tokens=chunk, max_sequences=max(8, 4 * int(its["(p)bs"]))),
        Workers(taker, Role.DECODE, takers, chunk_tokens=256, max_sequences=batch),
    ]
    prompt_ms = givers * giver.replica.lanes / prefill.most_rate
    kept = min(first * prompt_ms / (prompt_ms + _dispatch_ms(case)) * PREFILL_KEPT, then * DECODE_KEPT)
    promised = min(
        prefill_capacity(giver.replica, givers, workload, _promise(case)).rate,
        decode_capacity(taker.replica, takers, workload, _promise(case)).rate,
    )
    gpus = giver.gpus * givers + taker.gpus * takers
    return Ours(kept, min(first, then), promised, point.itl_ms, gpus, stages)


def _engine(fleet: Fleet, case: Case, its: Mapping[str, Any], side: str) -> Candidate:
    """Ours of the same parallelism. Raises LookupError where we would not try it."""
    tp, dp = int(its[f"{side}tp"]), int(its.get(f"{side}dp", 1))
    ep = int(its.get(f"{side}moe_ep", 1))
    for each in fleet.candidates:
        way = each.parallel
        if (way.tp, way.dp, way.pp) == (tp, dp, int(its.get(f"{side}pp", 1))) and (way.ep > 1) == (ep > 1):
            return each
    raise LookupError(f"TP{tp} DP{dp} EP{ep} on {case.gpu}")


def compared(
    case: Case, kind: str, fleet: Fleet, its: Mapping[str, Any], *, simulated: bool
) -> dict[str, object] | None:
    """Its figure for one plant beside ours; None where we would not build it."""
    workload = steady(case.isl, case.osl)
    try:
        ours = (aggregated if kind == "agg" else split)(fleet, case, workload, its)
    except LookupError as error:
        print(f"  {kind}: left out: {error}")
        return None
    # Its tokens are those after the first in aggregated plants, all of an answer in split ones.
    tokens = case.osl - 1 if kind == "agg" else case.osl
    theirs = float(its["tokens/s/gpu"])
    found: dict[str, object] = {
        "kind": kind,
        "plant": " + ".join(each.words for each in ours.stages),
        "theirs": round(theirs, 1),
        "ours": round(ours.kept * tokens / ours.gpus, 1),
        "ours_nothing_taken_off": round(ours.whole * tokens / ours.gpus, 1),
        "ours_promised": round(ours.promised * tokens / ours.gpus, 1),
        "off": round(ours.kept * tokens / ours.gpus / theirs - 1, 3),
        "off_nothing_taken_off": round(ours.whole * tokens / ours.gpus / theirs - 1, 3),
        "their_tpot_ms": round(float(its["tpot"]), 2) if "tpot" in its else None,
        "our_tpot_ms": round(ours.tpot_ms, 2),
    }
    shown = f"theirs {theirs:7.1f}, ours {found['ours']:7.1f} ({found['off']:+.1%})"
    shown += f", nothing taken off {found['ours_nothing_taken_off']} ({found['off_nothing_taken_off']:+.1%})"
    if simulated:
        rate, tpot_ms = saturated_rate(ours.stages, case.isl, case.osl, ours.whole)
        per_gpu = rate * tokens / ours.gpus
        found["simulated_nothing_taken_off"] = round(per_gpu, 1)
        found["simulated"] = round(per_gpu * ours.kept / ours.whole, 1)
        found["simulated_off"] = round(per_gpu * ours.kept / ours.whole / theirs - 1, 3)
        found["simulated_over_ours"] = round(rate / ours.whole - 1, 3)
        found["simulated_tpot_ms"] = round(tpot_ms, 2)
        shown += f", simulated {found['simulated']} ({found['simulated_off']:+.1%})"
    print(f"  {found['plant']:52} {shown}, promised {found['ours_promised']}")
    return found


def _fleet(case: Case, *, fp8: bool = False) -> Fleet:
    # Nearly all of the memory: it counts one-GPU replicas of 70 GB of weights as fitting into 80 GB.
    return fleet_of(
        case.model,
        {case.gpu: case.gpus},
        longest=case.isl + case.osl,
        engine=case.engine,
        utilization=0.95,
        as_fp8=fp8,
    )


def _own_search(case: Case, fleet: Fleet) -> dict[str, object]:
    """What our placement would put there: queues and percentiles counted, and so less of a promise."""
    plants = by_kind(planned(fleet, steady(case.isl, case.osl), _promise(case)))
    return {kind: row(plant) for kind, plant in plants.items()}


def compare(*, simulated: bool) -> Iterator[dict[str, object]]:
    """All cases, then what was published."""
    for case in CASES:
        print(
            f"{case.model} on {case.gpus} {case.gpu}, {case.engine}, {case.isl}/{case.osl}, "
            f"{case.ttft_ms} ms, {case.tpot_ms} ms"
        )
        fleet = _fleet(case)
        rows = _all_compared(case, fleet, recommended(case), simulated=simulated)
        yield {
            "case": case._asdict(),
            "source": "run",
            "plants": rows,
            "our_search": _own_search(case, fleet),
        }
    case = PUBLISHED_CASE
    print(f"published: {case.model} on {case.gpus} {case.gpu}, {case.isl}/{case.osl}")
    rows = _all_compared(case, _fleet(case, fp8=True), PUBLISHED, simulated=simulated)
    its = [(kind, plant) for kind, plants in PUBLISHED.items() for plant in plants]
    for found, (kind, plant) in zip(rows, its, strict=True):
        today = published_today(case, kind, plant)
        found["theirs_today"] = round(today, 1)
        found["off_today"] = round(float(str(found["ours"])) / today - 1, 3)
        print(f"  {found['plant']:52} theirs today {today:7.1f}: ours {found['off_today']:+.1%}")
    yield {"case": case._asdict(), "source": PUBLISHED_SOURCE, "plants": rows}


def _all_compared(
    case: Case, fleet: Fleet, tables: Mapping[str, Sequence[Mapping[str, Any]]], *, simulated: bool
) -> list[dict[str, object]]:
    """The first of each kind is simulated as well; each takes some seconds."""
    rows = []
    for kind, plants in tables.items():
        for place, its in enumerate(plants):
            found = compared(case, kind, fleet, its, simulated=simulated and not place)
            if found is not None:
                rows.append(found)
    return rows


def main() -> None:
    """Compare, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-simulation", action="store_true", help="formulas only")
    simulated = not parser.parse_args().no_simulation
    warnings.simplefilter("ignore")
    try:
        import aiconfigurator.cli.api  # noqa: F401
    except ImportError:
        sys.exit("this compares with aiconfigurator: pip install 'aiconfigurator>=0.12,<0.13'")
    logging.disable(logging.CRITICAL)  # it logs and warns about each point
    about, start = {**machine(), "step_time_database": version()}, time.perf_counter()
    cases = list(compare(simulated=simulated))
    summary: dict[str, object] = {}
    for source in ("run", "published"):
        plants = [
            each
            for case in cases
            if (case["source"] == "run") == (source == "run")
            for each in case["plants"]  # type: ignore[attr-defined]
        ]
        for figure in ("off", "off_nothing_taken_off", "simulated_off", "simulated_over_ours", "off_today"):
            errors = [abs(each[figure]) for each in plants if figure in each]
            if errors:
                within = sum(error <= 0.15 for error in errors)
                summary[f"{source}_{figure}"] = {**spread(errors), "within_15_percent": within}
                print(f"{source} {figure}: {within} of {len(errors)} within 15%; {spread(errors)}")
    result = {
        "summary": summary,
        "cases": cases,
        "measured": measured(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print("written:", write_result("against_aiconfigurator", result, about))


if __name__ == "__main__":
    main()
