"""Does it pay to split prefill from decode, on this machine, with the real embedded engine?

Long prompts arrive while other requests decode. One prefill and one decode worker, pinned to a core each,
serve the same open-loop requests as two aggregated workers, pinned to a core each, with each of several chunk
sizes. A request is good when its time to first token and the 99th percentile of its inter-token times are
both within a limit; goodput is good requests a second. Several limit pairs are read from the same runs, so
that it is seen where splitting wins and where it loses. The aggregated side may choose its best chunk size
anew for every load and every limit pair.

    python -m benchmarks.disaggregation_pays [--rates 4 7 10 13] [--chunks 32 96 256]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from benchmarks.factories import free_port, served
from benchmarks.machine import machine, write_result
from benchmarks.open_loop import Sample, Shape, poisson, run
from tokenmill.testing.checkpoints import make_checkpoint

SHAPES = [
    Shape("long prompt", prompt_tokens=768, output_tokens=16, share=0.5),
    Shape("long answer", prompt_tokens=64, output_tokens=96, share=0.5),
]
LIMITS = [  # (TTFT in s, p99 inter-token time in ms)
    (0.5, 20),
    (1.0, 20),
    (1.0, 25),
    (2.0, 30),
    (2.0, 50),
    (2.0, 100),
    (0.5, 400),
    (4.0, 400),
]
CHUNKS = [32, 96, 256]


def factory_file(name: str, model: Path, port: int, dtype: str, chunk: int | None) -> str:
    """Write the factory file: split when ``chunk`` is None, else aggregated with that chunk size."""
    common = f"engine: torch, threads: 1, dtype: {dtype}, kv_memory_mb: 512, max_sequences: 64"
    if chunk is None:
        stages = (
            f"  - {{name: prefill, role: prefill, replicas: 1, cpus: [0], {common}}}\n"
            f"  - {{name: decode, role: decode, replicas: 1, cpus: [1], {common}}}\n"
        )
    else:
        stages = (
            f"  - {{name: both, role: both, replicas: 2, cpus: [0, 1], prefill_budget: {chunk}, {common}}}\n"
        )
    return (
        f"apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {{name: {name}}}\n"
        f"model: {{name: bench, path: {model}}}\nfrontend: {{port: {port}}}\nlog: {{level: warning}}\n"
        f"stages:\n{stages}"
    )


def goodput(samples: list[Sample], ttft_s: float, gap_ms: float, seconds: float) -> float:
    """Count requests a second that met both limits."""
    good = [s for s in samples if not s.error and s.ttft_s <= ttft_s and s.gap_p99_s() * 1000 <= gap_ms]
    complete = [s for s in good if s.end_s < float("inf")]
    return len(complete) / seconds


def summary(samples: list[Sample]) -> dict[str, float]:
    """Say what a run looked like, whatever the limits."""
    done = [s for s in samples if s.end_s < float("inf")]
    if not done:
        return {"completed": 0}
    ttfts = sorted(s.ttft_s for s in done)
    gaps = sorted(s.gap_p99_s() for s in done)
    return {
        "requests": len(samples),
        "completed": len(done),
        "ttft_p50_ms": round(1000 * statistics.median(ttfts), 1),
        "ttft_p95_ms": round(1000 * ttfts[int(0.95 * (len(ttfts) - 1))], 1),
        "gap_p99_p50_ms": round(1000 * statistics.median(gaps), 1),
        "gap_p99_p95_ms": round(1000 * gaps[int(0.95 * (len(gaps) - 1))], 1),
    }


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run every plant at every rate and gather the samples."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder = Path(name)
        model = make_checkpoint(folder / "model", "llama", seed=1, size=arguments.size)
        plants: dict[str, int | None] = {
            "split": None,
            **{f"aggregated, chunk {c}": c for c in arguments.chunks},
        }
        for round_ in range(arguments.rounds):
            for plant, chunk in plants.items():
                port = free_port()
                with served(factory_file("bench", model, port, arguments.dtype, chunk), folder, port):
                    warm = poisson(SHAPES, 2.0, 3.0, range(300, 1000), seed=99)
                    asyncio.run(run("127.0.0.1", port, "bench", warm, 20))
                    for rate in arguments.rates:
                        arrivals = poisson(SHAPES, rate, arguments.seconds, range(300, 1000), seed=round_)
                        samples = asyncio.run(run("127.0.0.1", port, "bench", arrivals, 20))
                        runs.append({"plant": plant, "rate": rate, "round": round_, "samples": samples})
                        print(f"{plant:24} {rate:5.1f}/s  {summary(samples)}", flush=True)
    return {"runs": runs}


def table(runs: list[dict], arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Compare goodput for each limit pair and load; medians over the rounds."""
    rows = []
    for ttft_s, gap_ms in LIMITS:
        for rate in arguments.rates:
            by_plant: dict[str, list[float]] = {}
            for entry in runs:
                if entry["rate"] == rate:
                    value = goodput(entry["samples"], ttft_s, gap_ms, arguments.seconds)
                    by_plant.setdefault(entry["plant"], []).append(value)
            medians = {plant: statistics.median(values) for plant, values in by_plant.items()}
            split = medians.pop("split")
            best = max(medians, key=lambda plant: medians[plant])
            rows.append(
                {
                    "ttft_limit_ms": round(ttft_s * 1000),
                    "gap_limit_ms": gap_ms,
                    "rate": rate,
                    "split": round(split, 3),
                    "split_spread": [round(v, 3) for v in sorted(by_plant["split"])],
                    "aggregated": round(medians[best], 3),
                    "aggregated_plant": best,
                    "aggregated_spread": [round(v, 3) for v in sorted(by_plant[best])],
                    "ratio": round(split / medians[best], 2) if medians[best] else None,
                }
            )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[4, 7, 10, 13])
    parser.add_argument("--seconds", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS)
    parser.add_argument("--result", default="disaggregation_pays", help="name of the result file")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", default="16m")
    arguments = parser.parse_args()
    about = machine()
    runs = measure(arguments)["runs"]
    rows = table(runs, arguments)
    print(f"\n{'TTFT':>6} {'ITL':>5} {'load':>5} {'split':>7} {'aggr.':>7} {'ratio':>6}  best aggregated")
    for row in rows:
        print(
            f"{row['ttft_limit_ms']:6} {row['gap_limit_ms']:5} {row['rate']:5} {row['split']:7.2f} "
            f"{row['aggregated']:7.2f} {row['ratio'] or '-':>6}  {row['aggregated_plant']}"
        )
    summaries = [{**{k: r[k] for k in ("plant", "rate", "round")}, **summary(r["samples"])} for r in runs]
    shapes = [vars(shape) for shape in SHAPES]
    setting = {**vars(arguments), "shapes": shapes}
    result = {"setting": setting, "goodput": rows, "runs": summaries}
    path = write_result(arguments.result, result, about)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
