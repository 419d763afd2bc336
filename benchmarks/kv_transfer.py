"""How fast a KV cache moves between two processes of this machine, against copying memory with numpy.

    python benchmarks/kv_transfer.py [--cache-mib 256] [--rounds 9] [--out FILE.json]

The cache is that of an 8-billion-parameter model with grouped-query attention in bfloat16: 64 planes (keys
and values of 32 layers), 16-token blocks, 2048 bytes a token and plane; 256 MiB are 2048 tokens. Each round
does, one after the other, a numpy copy of as many bytes (warm, one thread) and a pull through each
transport, once with both block tables in order and once with both shuffled. The pull's time is all of it:
connection, control messages, copy, release. CPU time is that of both processes together; unlike the speed
it hardly depends on what else the machine does. Also: how long the pull of a single block takes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import platform
import random
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tokenmill.clock import SystemClock
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.transfer.memory import HostKvMemory
from tokenmill.serve.transfer.transport import StreamTransport

MIB = 1 << 20
LARGE = KvLayout(planes=64, block_tokens=16, token_bytes=2048, dtype="bfloat16")
SMALL = KvLayout(planes=8, block_tokens=16, token_bytes=256, dtype="float32")
TRANSPORTS = ("shm", "tcp")
REQUIRED = {"shm": 0.6, "tcp": 0.4}
LEASE_S = 30.0


async def open_all(blocks: int) -> tuple[dict[tuple[str, str], StreamTransport], list[HostKvMemory]]:
    """Start each transport on a memory for the large and one for the small layout."""
    memories = {
        "large": HostKvMemory(LARGE, blocks, prefault=True),
        "small": HostKvMemory(SMALL, 8, prefault=True),
    }
    transports = {}
    for size, memory in memories.items():
        for name in TRANSPORTS:
            transport = open_transport([name], host="127.0.0.1", run_dir=None, clock=SystemClock())
            await transport.start(memory)
            transports[name, size] = transport
    return transports, list(memories.values())


def sender_process(pipe: Connection, blocks: int) -> None:
    """Export what the parent asks for until it hangs up."""
    uvloop.run(send(pipe, blocks))


async def send(pipe: Connection, blocks: int) -> None:
    transports, memories = await open_all(blocks)
    pattern = np.random.default_rng(0).integers(0, 256, memories[0].size_bytes, dtype=np.uint8)
    np.copyto(np.frombuffer(memories[0].region, np.uint8), pattern)
    loop = asyncio.get_running_loop()
    pipe.send("ready")
    while (order := await loop.run_in_executor(None, pipe.recv)) is not None:
        if order == "cpu":
            pipe.send(time.process_time())
            continue
        name, size, table, tokens = order
        export = transports[name, size].export(table, tokens, lease_s=LEASE_S, on_released=lambda _: None)
        export.seal(b"")
        pipe.send(export.descriptor)
    for transport in transports.values():
        await transport.stop()


class Receiver:
    """The parent's side."""

    def __init__(self, pipe: Connection, transports: dict[tuple[str, str], StreamTransport]) -> None:
        self._pipe = pipe
        self._transports = transports

    def cpu_s(self) -> float:
        """Return the CPU time that both processes have taken so far."""
        self._pipe.send("cpu")
        return float(self._pipe.recv()) + time.process_time()

    async def pull_s(self, name: str, size: str, source: list[int], target: list[int], tokens: int) -> float:
        """Return the seconds that one pull takes."""
        self._pipe.send((name, size, source, tokens))
        descriptor = self._pipe.recv()
        await asyncio.sleep(0.002)  # the sender goes to sleep
        start = time.perf_counter()
        await self._transports[name, size].pull(descriptor, target)
        return time.perf_counter() - start


async def measure(pipe: Connection, blocks: int, rounds: int) -> dict[str, Any]:
    transports, memories = await open_all(blocks)
    assert pipe.recv() == "ready"
    receiver = Receiver(pipe, transports)
    size_bytes = memories[0].size_bytes
    source, target = np.ones(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)
    in_order = list(range(blocks))
    tables = {"contiguous": (in_order, in_order), "scattered": (shuffled(blocks, 1), shuffled(blocks, 2))}
    speeds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    gc.collect()
    gc.disable()
    for round_ in range(rounds + 1):  # the first warms up
        start, cpu_start = time.perf_counter(), time.process_time()
        np.copyto(target, source)
        taken = {"numpy copy": (time.perf_counter() - start, time.process_time() - cpu_start)}
        for name in TRANSPORTS:
            for kind, (theirs, ours) in tables.items():
                tokens = blocks * LARGE.block_tokens
                cpu_start = receiver.cpu_s()
                seconds = await receiver.pull_s(name, "large", theirs, ours, tokens)
                taken[f"{name} {kind}"] = seconds, receiver.cpu_s() - cpu_start
        for case, (seconds, cpu_seconds) in taken.items():
            if round_:
                speeds.setdefault(case, []).append(size_bytes / seconds / 1e9)
                cpu.setdefault(case, []).append(cpu_seconds / size_bytes * 1e12)
    latency = await latencies(receiver)
    gc.enable()
    pipe.send(None)
    for transport in transports.values():
        await transport.stop()
    return {"gb_per_s": summarized(speeds, cpu), "one_block_us": latency}


async def latencies(receiver: Receiver, repeats: int = 100) -> dict[str, dict[str, float]]:
    """Microseconds to pull a single block that is ready."""
    found = {}
    for name in TRANSPORTS:
        for size, layout in (("large", LARGE), ("small", SMALL)):
            taken = [
                await receiver.pull_s(name, size, [0], [0], layout.block_tokens) * 1e6 for _ in range(repeats)
            ]
            cuts = statistics.quantiles(taken, n=20)
            kib = layout.planes * layout.block_bytes >> 10
            found[f"{name} {kib} KiB"] = {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}
    return found


def shuffled(blocks: int, seed: int) -> list[int]:
    """Return a block table in random order."""
    table = list(range(blocks))
    random.Random(seed).shuffle(table)
    return table


def summarized(times: dict[str, list[float]], cpu: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, extremes, ratios to the numpy copy (of each round, and of medians), CPU time."""
    reference = times["numpy copy"]
    return {
        case: {
            "median": round(statistics.median(speeds), 2),
            "min": round(min(speeds), 2),
            "max": round(max(speeds), 2),
            "ratio": round(statistics.median(s / r for s, r in zip(speeds, reference, strict=True)), 3),
            "ratio_of_medians": round(statistics.median(speeds) / statistics.median(reference), 3),
            "cpu_ms_per_gb": round(statistics.median(cpu[case]), 1),
        }
        for case, speeds in times.items()
    }


def machine() -> dict[str, Any]:
    """Say what was measured on."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def report(result: dict[str, Any]) -> None:
    where = result["machine"]
    print(f"{where['cpu']}, {where['cores']} cores, load average {where['load_average']}")
    print(f"{result['cache_mib']} MiB, {result['rounds']} rounds; ratio to the numpy copy of the same round")
    print(f"  {'':16} {'GB/s':>6}  {'min .. max':14} {'ratio':>6}  {'CPU ms/GB':>9}")
    for case, speed in result["gb_per_s"].items():
        spread = f"{speed['min']:.2f} .. {speed['max']:.2f}"
        required = REQUIRED.get(case.split()[0])
        wanted = "" if required is None else f"  (required {required:.0%})"
        figures = f"{speed['median']:6.2f}  {spread:14} {speed['ratio']:6.1%}  {speed['cpu_ms_per_gb']:9.0f}"
        print(f"  {case:16} {figures}{wanted}")
    print("one block, microseconds, p50 / p95")
    for case, taken in result["one_block_us"].items():
        print(f"  {case:16} {taken['p50']:8.1f} / {taken['p95']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure KV transfers against a numpy copy.")
    parser.add_argument("--cache-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kv_transfer.json")
    options = parser.parse_args()
    blocks = options.cache_mib * MIB // (LARGE.planes * LARGE.block_bytes)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=sender_process, args=(theirs, blocks), daemon=True
    )
    child.start()
    theirs.close()
    result = {
        "machine": machine(),
        "cache_mib": options.cache_mib,
        "rounds": options.rounds,
        "layout": {
            "planes": LARGE.planes,
            "block_tokens": LARGE.block_tokens,
            "token_bytes": LARGE.token_bytes,
        },
        **uvloop.run(measure(ours, blocks, options.rounds)),
    }
    child.join(10)
    report(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
