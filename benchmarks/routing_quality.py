"""Routing quality on a virtual clock: our policies and two of NVIDIA Dynamo's, on the same plants and trace.

    python -m benchmarks.routing_quality TRACE.jsonl [--dynamo-venv FOLDER] [--jobs 2] [--only 8x1]

TRACE: a file in the Mooncake format (the figures in the documentation: its conversation trace of 12,031
requests). Our side drives the objects that serve (``decide.router``, ``decide.batching``); what workers say
reaches the router a millisecond later, loads at most every 50 ms. Dynamo's side is the offline replay in
its public wheel ``ai-dynamo-runtime`` 1.6.1, installed in a virtual environment of its own. Step times on
both sides are the mocker's polynomials. Also computed: the hit rates that no router can exceed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import heapq
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.machine import machine, write_result
from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.report import figures_of
from tokenmill.simulate.scene import Scene, StageScene
from tokenmill.simulate.timing import PolynomialTimes
from tokenmill.simulate.traces import Trace
from tokenmill.simulate.traces_files import read_trace

PLANTS = ((8, 1.0), (8, 2.0), (8, 4.0), (64, 16.0), (64, 24.0))
"""Workers, and how many times as densely requests arrive."""

POLICIES = ("kv", "round-robin", "least-loaded", "power-of-two", "random", "session")
BLOCKS, BLOCK_TOKENS, SEQUENCES, STEP_TOKENS = 16384, 64, 256, 8192
JOIN_TOKENS = 6144
"""Three quarters of a step: past that, our step scheduler lets a prompt that is nearly done go alone."""

GOALS = {"prefix_hit": 1.2, "ttft_mean_ms": 0.85}
"""Our kv policy over Dynamo's: at least, and at most."""

DYNAMO = """
import sys, types, json
core, sdk = types.ModuleType("aisimulate_core"), types.ModuleType("aisimulate_core.sdk")
sdk.ForwardPassPerfModelConfig = type("ForwardPassPerfModelConfig", (), {})
core.sdk = sdk
sys.modules.update({"aisimulate_core": core, "aisimulate_core.sdk": sdk})
import dynamo._core as dynamo
trace, workers, speed, mode, engine = sys.argv[1:]
result = dynamo.run_mocker_trace_replay(
    [trace], num_workers=int(workers), router_mode=mode, extra_engine_args={"engine": json.loads(engine)},
    arrival_speedup_ratio=float(speed), trace_block_size=512).summary
print("RESULT", json.dumps(result if isinstance(result, dict) else json.loads(result), default=str))
"""

DYNAMO_FIELDS = {
    "prefix_hit": "prefix_cache_reused_ratio",
    "ttft_mean_ms": "mean_ttft_ms",
    "ttft_p50_ms": "median_ttft_ms",
    "ttft_p99_ms": "p99_ttft_ms",
    "itl_mean_ms": "mean_itl_ms",
    "itl_p99_ms": "p99_itl_ms",
    "tpot_mean_ms": "mean_tpot_ms",
    "tpot_p99_ms": "p99_tpot_ms",
}

Row = dict[str, float]


def scene(workers: int, policy: str, seed: int = 0) -> Scene:
    """Return the plant that both sides have: workers that do both stages."""
    batching = BatchingConfig(
        total_blocks=BLOCKS,
        max_model_len=BLOCKS * BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
        token_budget=STEP_TOKENS,
        join_tokens=JOIN_TOKENS,
        max_sequences=SEQUENCES,
        max_waiting=100_000,
    )
    stage = StageScene(name="w", role=Role.BOTH, workers=workers, batching=batching, times=PolynomialTimes())
    return Scene(stages=[stage], router=RouterSettings(policy=policy), seed=seed)


def ours(trace: Path, workers: int, speedup: float, policy: str, seed: int = 0) -> Row:
    """Run one plant under one policy; in a process of its own."""
    began = time.perf_counter()
    run = simulate(scene(workers, policy, seed), read_trace(trace).faster(speedup))
    figures = figures_of(run)
    return {**msgspec.to_builtins(figures), "wall_s": round(time.perf_counter() - began, 1)}


def theirs(venv: Path, trace: Path, workers: int, speedup: float, mode: str) -> Row:
    """Run Dynamo's replay once."""
    engine = {
        "backend": "vllm",
        "num_gpu_blocks": BLOCKS,
        "block_size": BLOCK_TOKENS,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": STEP_TOKENS,
    }
    began = time.perf_counter()
    arguments = [str(trace), str(workers), str(speedup), mode, json.dumps(engine)]
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", DYNAMO, *arguments],
        env={**os.environ, "DYN_LOG": "error"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    summary = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    row: Row = {name: float(summary[field]) for name, field in DYNAMO_FIELDS.items()}
    return {**row, "wall_s": round(time.perf_counter() - began, 1)}


def prepare(venv: Path) -> None:
    """Install Dynamo's runtime where it is missing."""
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "ai-dynamo-runtime==1.6.1"], check=True)
        subprocess.run([*pip, "uvloop", "pydantic", "msgspec"], check=True)


def bounds(trace: Trace, workers: int) -> Row:
    """Hit rates that no router can exceed.

    ``unlimited``: one cache that forgets nothing. ``clairvoyant``: one cache with the memory of all workers
    together that evicts what is needed latest (Belady), free of outputs; no placement on separate workers can
    do better. ``pooled_lru``: the same memory, evicting what was used longest ago.
    """
    room = workers * BLOCKS * BLOCK_TOKENS // trace.prefix_block_tokens
    total = trace.prompt_tokens
    return {
        "unlimited": _belady(trace, 1 << 60) / total,
        "clairvoyant": _belady(trace, room) / total,
        "pooled_lru": _lru(trace, room) / total,
    }


def _hit_tokens(trace: Trace, number: int, held: set[int] | dict[int, int]) -> int:
    request, size, tokens = trace.requests[number], trace.prefix_block_tokens, 0
    for index, block in enumerate(request.prefix_ids):
        if block not in held:
            break
        tokens += min(size, request.prompt_tokens - size * index)
    return tokens


def _belady(trace: Trace, room: int) -> int:
    uses: dict[int, list[int]] = {}
    for number, request in enumerate(trace.requests):
        for block in request.prefix_ids:
            uses.setdefault(block, []).append(number)
    for numbers in uses.values():
        numbers.reverse()
    held: dict[int, int] = {}
    latest: list[tuple[int, int, int]] = []
    never, hits = len(trace.requests), 0
    for number, request in enumerate(trace.requests):
        hits += _hit_tokens(trace, number, held)
        for index, block in enumerate(request.prefix_ids):
            uses[block].pop()
            held[block] = uses[block][-1] if uses[block] else never
            heapq.heappush(latest, (-held[block], -index, block))
        while len(held) > room:
            due, _, block = heapq.heappop(latest)
            if held.get(block) == -due:
                del held[block]
    return hits


def _lru(trace: Trace, room: int) -> int:
    held: dict[int, int] = {}
    hits = 0
    for number, request in enumerate(trace.requests):
        hits += _hit_tokens(trace, number, held)
        for block in reversed(request.prefix_ids):
            held.pop(block, None)
            held[block] = number
        while len(held) > room:
            del held[next(iter(held))]
    return hits


def show(name: str, row: Row) -> None:
    """Print one row."""
    print(
        f"  {name:<18} hit {row['prefix_hit']:.4f}  "
        f"TTFT ms {row['ttft_mean_ms']:.0f} / {row['ttft_p50_ms']:.0f} / {row['ttft_p99_ms']:.0f}  "
        f"ITL ms {row['itl_mean_ms']:.2f} / {row['itl_p99_ms']:.0f}  "
        f"TPOT p99 ms {row['tpot_p99_ms']:.1f}  ({row['wall_s']:.0f} s)",
        flush=True,
    )


def verdict(rows: dict[str, Row], limits: Row) -> Row:
    """Compare kv with Dynamo's, and with both round robins."""
    mine = rows["kv"]
    said: Row = {"hit_of_clairvoyant": mine["prefix_hit"] / limits["clairvoyant"]}
    if "dynamo kv" in rows:
        said["hit_ratio"] = mine["prefix_hit"] / rows["dynamo kv"]["prefix_hit"]
        said["ttft_ratio"] = mine["ttft_mean_ms"] / rows["dynamo kv"]["ttft_mean_ms"]
        robin = rows["dynamo round-robin"]["tpot_p99_ms"]
        said["tpot_p99_over_dynamo_round_robin"] = mine["tpot_p99_ms"] / robin
    if "round-robin" in rows:
        said["tpot_p99_over_own_round_robin"] = mine["tpot_p99_ms"] / rows["round-robin"]["tpot_p99_ms"]
    return said


def main() -> None:
    """Run all plants, print rows as they come, write the result after each plant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--dynamo-venv", type=Path, help="where Dynamo is, or is to be installed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="one plant, as 8x1")
    parser.add_argument("--policies", default=",".join(POLICIES))
    options = parser.parse_args()
    if options.dynamo_venv:
        prepare(options.dynamo_venv)
    about, plants = machine(), {}
    chosen = [plant for plant in PLANTS if options.only in (None, f"{plant[0]}x{plant[1]:g}")]
    trace = read_trace(options.trace)
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        waiting = {
            (workers, speedup, policy): pool.submit(ours, options.trace, workers, speedup, policy)
            for policy in options.policies.split(",")
            for workers, speedup in chosen
        }
        for workers, speedup in chosen:
            print(f"{workers} workers, arrivals x{speedup:g}", flush=True)
            limits = bounds(trace, workers)
            rows: dict[str, Row] = {}
            for mode in ("kv_router", "round_robin") if options.dynamo_venv else ():
                name = "dynamo kv" if mode == "kv_router" else "dynamo round-robin"
                rows[name] = theirs(options.dynamo_venv, options.trace, workers, speedup, mode)
                show(name, rows[name])
            for policy in options.policies.split(","):
                rows[policy] = waiting[workers, speedup, policy].result()
                show(policy, rows[policy])
            judged = verdict(rows, limits)
            print("  ", {name: round(value, 3) for name, value in {**limits, **judged}.items()}, flush=True)
            plants[f"{workers}x{speedup:g}"] = {"rows": rows, "bounds": limits, "verdict": judged}
            write_result("routing_quality", {"goals": GOALS, "plants": plants}, about)


if __name__ == "__main__":
    main()
