"""What was measured on real GPUs and published, beside what our formulas say of the same load.

One engine that always has so many requests: batches by fixed point, step times from the database's kernels of
three engines (which one the measured server ran on is not told). The points with few requests judge step
times, those with many judge batches, and the last one judges memory: no more sequences fit.
"""

from __future__ import annotations

from benchmarks.planned_plants import fleet_of
from tokenmill.decide.fleet.candidates import Candidate
from tokenmill.decide.fleet.queueing import bisect
from tokenmill.decide.fleet.stages import DecodeGroup, DecodePoint
from tokenmill.decide.fleet.workload import Workload, steady

MODEL = "nvidia/Llama-3.3-70B-Instruct-FP8"
SOURCE = "docs.nvidia.com/nim/benchmarking/llm: NIM 1.8.0, Llama 3.3 70B FP8, TP2 on two H100 80 GB"
ISL, OSL = 5000, 500
POINTS = (
    (1, 406.77, 18.58, 51.67),
    (5, 546.70, 21.83, 218.48),
    (25, 688.69, 38.75, 623.40),
    (50, 834.51, 59.73, 814.37),
    (250, 88605.32, 93.20, 920.12),
)
"""Requests at a time, time to first token (ms), between tokens (ms), tokens/s."""


def held(
    engine: Candidate, workload: Workload, chunk: float, at_a_time: float, extra_ms: float
) -> DecodePoint:
    """One worker that always has so many requests, some of them computing their prompts for ``extra_ms``
    longer than their steps take."""
    group = DecodeGroup(
        replica=engine.replica, count=1, workload=workload, chunk_tokens=chunk, local_share=1.0
    )
    lanes = engine.replica.lanes

    def holds(batch: float) -> bool:
        point = group.at_batch(batch)
        if point is None or point.first_token is None:
            return False
        prompts = point.rate * (point.first_token.own_ms() + extra_ms) / lanes
        in_memory = batch * workload.decode_context + prompts * workload.prompt_tokens
        return (batch + prompts) * lanes <= at_a_time and in_memory <= engine.replica.lane_kv_tokens

    point = group.at_batch(bisect(holds, 0.001, at_a_time / lanes))
    assert point is not None
    return point


def measured() -> dict[str, object]:
    """Return and print both sides."""
    engines: dict[str, object] = {}
    print(SOURCE)
    for name in ("trtllm", "vllm", "sglang"):
        engine = fleet_of(MODEL, {"H100": 2}, longest=ISL + OSL, engine=name).engine("H100", 2)
        rows = []
        for at_a_time, _, itl_ms, tokens_per_s in POINTS:
            point = held(engine, steady(ISL, OSL), 8192, at_a_time, 0.0)
            ours = point.rate * 1000 * OSL
            rows.append(
                {
                    "at_a_time": at_a_time,
                    "measured_tokens_per_s": tokens_per_s,
                    "ours": round(ours, 1),
                    "off": round(ours / tokens_per_s - 1, 3),
                    "measured_itl_ms": itl_ms,
                    "our_itl_ms": round(point.itl_ms, 2),
                    "itl_off": round(point.itl_ms / itl_ms - 1, 3),
                }
            )
        engines[name] = rows
        shown = (f"{each['at_a_time']}: {each['off']:+.1%} (ITL {each['itl_off']:+.1%})" for each in rows)
        print(f"  {name}: " + ", ".join(shown))
    return {"source": SOURCE, "isl": ISL, "osl": OSL, "engines": engines}
