"""Simulated requests a second: our simulator, which is Python, against NVIDIA Dynamo's replay, which is Rust.

    python -m benchmarks.simulate_speed TRACE.jsonl [--dynamo-venv FOLDER] [--rounds 5]

TRACE: a file in the Mooncake format (the figures in the documentation: its conversation trace of 12,031
requests). Same plants on both sides (those of ``benchmarks.routing_quality``), routing by KV cache, one
process each, in turn: each round runs both sides of both plants, so that what else the machine does meets
both alike, and what counts is the ratio of each pair. A run's time is that of the whole process: start,
imports, reading the trace, simulating, printing. Memory is the largest that the process held.

Then ours alone, with 1,000 workers on the same trace made 250 times as dense.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import machine, write_result
from benchmarks.routing_quality import (
    BLOCK_TOKENS,
    BLOCKS,
    DYNAMO,
    SEQUENCES,
    STEP_TOKENS,
    prepare,
    scene,
)
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.report import figures_of
from tokenmill.simulate.traces_files import read_trace

PLANTS = ((8, 1.0), (64, 16.0))
"""Workers, and how many times as densely requests arrive."""

LARGE = ((250, 62.5), (1000, 250.0))
"""The same, ours alone."""

Row = dict[str, float]


def run_once(command: list[str]) -> tuple[Row, str]:
    """Run a process to its end; return what it took, and its last line."""
    began = time.perf_counter()
    child = subprocess.Popen(
        command,
        env={**os.environ, "DYN_LOG": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command[:3]} ended with status {child.returncode}")
    row = {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "memory_mb": used.ru_maxrss / 1024}
    return row, said.rsplit("RESULT ", 1)[1]


def ours(trace: Path, workers: int, speedup: float) -> Row:
    """Simulate in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.simulate_speed", str(trace)]
    row, said = run_once([*command, "--child", f"{workers}x{speedup:g}"])
    return {**row, **json.loads(said)}


def theirs(venv: Path, trace: Path, workers: int, speedup: float) -> Row:
    """Run Dynamo's replay in a process of its own."""
    engine = {
        "backend": "vllm",
        "num_gpu_blocks": BLOCKS,
        "block_size": BLOCK_TOKENS,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": STEP_TOKENS,
    }
    arguments = [str(trace), str(workers), str(speedup), "kv_router", json.dumps(engine)]
    row, said = run_once([str(venv / "bin" / "python"), "-c", DYNAMO, *arguments])
    summary = json.loads(said)
    return {
        **row,
        "requests": summary["completed_requests"],
        "prefix_hit": summary["prefix_cache_reused_ratio"],
    }


def child(trace: Path, plant: str) -> None:
    """Simulate one plant and print what came of it."""
    workers, speedup = plant.split("x")
    began = time.perf_counter()
    run = simulate(scene(int(workers), "kv"), read_trace(trace).faster(float(speedup)))
    simulated_s = time.perf_counter() - began
    figures = figures_of(run)
    told = {
        "simulated_s": simulated_s,
        "requests": figures.requests - figures.refused,
        "steps": run.steps,
        "virtual_s": figures.makespan_s,
        "prefix_hit": figures.prefix_hit,
    }
    print("RESULT", json.dumps(told))


def summed_up(rows: list[Row]) -> Row:
    """Return medians and spreads over rounds."""
    speeds = sorted(row["requests"] / row["wall_s"] for row in rows)
    told = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        **told,
        "requests_per_s": statistics.median(speeds),
        "requests_per_s_least": speeds[0],
        "requests_per_s_most": speeds[-1],
        "requests_per_cpu_s": statistics.median(row["requests"] / row["cpu_s"] for row in rows),
    }


def show(name: str, row: Row) -> None:
    """Print one row."""
    print(
        f"  {name:<8} {row['requests_per_s']:7.0f} requests/s "
        f"({row['requests_per_s_least']:.0f} to {row['requests_per_s_most']:.0f}), "
        f"{row['wall_s']:.1f} s, CPU {row['cpu_s']:.1f} s, {row['memory_mb']:.0f} MB, "
        f"hit {row['prefix_hit']:.3f}",
        flush=True,
    )


def compare(options: argparse.Namespace, workers: int, speedup: float) -> dict[str, object]:
    """Run both sides in turn."""
    sides: dict[str, list[Row]] = {"ours": []}
    for number in range(options.rounds):
        turn = ["ours", "dynamo"] if options.dynamo_venv else ["ours"]
        for side in turn if number % 2 == 0 else reversed(turn):
            if side == "ours":
                row = ours(options.trace, workers, speedup)
            else:
                row = theirs(options.dynamo_venv, options.trace, workers, speedup)
            sides.setdefault(side, []).append(row)
    told: dict[str, object] = {side: summed_up(rows) for side, rows in sides.items()}
    print(f"{workers} workers, arrivals x{speedup:g}, {options.rounds} rounds")
    for side, rows in sides.items():
        show(side, summed_up(rows))
    if options.dynamo_venv:
        pairs = zip(sides["ours"], sides["dynamo"], strict=True)
        ratios = sorted(their["wall_s"] / our["wall_s"] for our, their in pairs)
        told["ours_over_dynamo"] = ratio = statistics.median(ratios)
        told["ours_over_dynamo_rounds"] = ratios
        print(f"  ours / dynamo: {ratio:.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
    return told


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--dynamo-venv", type=Path, help="where Dynamo is, or is to be installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.trace, options.child)
        return
    if options.dynamo_venv:
        prepare(options.dynamo_venv)
    about = machine()
    plants = {f"{workers}x{speedup:g}": compare(options, workers, speedup) for workers, speedup in PLANTS}
    print("ours alone")
    for workers, speedup in LARGE:
        row = summed_up([ours(options.trace, workers, speedup)])
        plants[f"{workers}x{speedup:g}"] = {"ours": row}
        show(f"{workers}", row)
    write_result("simulate_speed", {"rounds": options.rounds, "plants": plants}, about)


if __name__ == "__main__":
    main()
