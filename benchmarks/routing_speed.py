"""What a routing decision costs, how fast KV events are applied, what a block and a worker take in memory.

One process, no I/O: the router object as the frontend has it, 128 workers with loads of their own. Every
request has a prompt of its own, given as packed token bytes; a decision is hash, look-up and choice. Hits:

- none: nobody has any of it.
- system prompt: every worker has the first quarter.
- conversations: that, and three workers have more, each to a depth of its own.
- ladder: every worker has another depth, from nothing to all.
- disaggregated: conversations on 32 prefill and 96 decode workers, both ways predicted and compared.

    PYTHONPATH=src python -m benchmarks.routing_speed [--requests 200] [--repeats 5]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from pathlib import Path

import msgspec

from benchmarks.machine import machine, write_result
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.decide.router.types import RouteRequest
from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.ids import BlockHash, RequestId, Role, WorkerId
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvents
from tokenmill.protocol.metrics import StepMetrics

WORKERS = 128
BLOCK_TOKENS = 16
VOCABULARY = 128_000
PATTERNS = ("none", "system prompt", "conversations", "ladder", "disaggregated")
LENGTHS = (4_000, 128_000)
GOALS_US = {4_000: 50.0, 128_000: 400.0}
GOAL_BLOCKS_PER_S = 200_000
CHAIN_BLOCKS = 250
MEMORY_BLOCKS = 1_000_000
MEMORY_WORKERS = 1_000


class Workers:
    """A router with workers that report and cache."""

    def __init__(self, roles: list[Role], *, seed: int, index_blocks: int = 1_000_000) -> None:
        self.randomness = random.Random(seed)
        self.router = Router(RouterSettings(index_blocks=index_blocks), seed=seed)
        self.names = [WorkerId(f"worker-{number}") for number in range(len(roles))]
        self.numbers = [0] * len(roles)
        for name, role in zip(self.names, roles, strict=True):
            self.router.worker_ready(worker_card(name, role))
            self.report(name)
        for number in range(len(roles)):
            self.tell(number, CacheCleared())

    def report(self, name: WorkerId) -> None:
        draw = self.randomness.randrange
        metrics = StepMetrics(
            step=1, running=draw(50), waiting_prefill_tokens=draw(5_000), kv_blocks_used=draw(60_000)
        )
        self.router.load_reported(name, metrics, 0.0)

    def tell(self, number: int, event: BlocksStored | BlocksRemoved | CacheCleared) -> None:
        batch = KvEvents(self.numbers[number], [event])
        self.numbers[number] += 1
        assert self.router.kv_changed(self.names[number], batch, 0.0)


def worker_card(name: WorkerId, role: Role) -> WorkerCard:
    return WorkerCard(
        worker_id=name,
        role=role,
        stage="stage",
        state=WorkerState.READY,
        address="tcp://127.0.0.1:1",
        engine="sim",
        model="model",
        max_model_len=1 << 20,
        block_tokens=BLOCK_TOKENS,
        kv_blocks=65_536,
        max_sequences=256,
        transports=["tcp"],
        fingerprint="f",
    )


def depths(pattern: str, tokens: int, randomness: random.Random) -> dict[int, int]:
    """How many of the prompt's tokens each worker has, by the worker's number."""
    if pattern == "none":
        return {}
    if pattern == "ladder":
        return {number: tokens * (number + 1) // WORKERS for number in range(WORKERS)}
    found = dict.fromkeys(range(WORKERS), tokens // 4)
    if pattern != "system prompt":
        for number in randomness.sample(range(WORKERS), 3):
            found[number] = randomness.randrange(tokens // 4, tokens)
    return found


def measure_routes(pattern: str, tokens: int, requests: int, seed: int) -> list[float]:
    """Return microseconds of each decision."""
    split = WORKERS // 4
    roles = [Role.BOTH] * WORKERS
    if pattern == "disaggregated":
        roles = [Role.PREFILL] * split + [Role.DECODE] * (WORKERS - split)
    workers = Workers(roles, seed=seed)
    randomness = random.Random(seed)
    system = [randomness.randrange(VOCABULARY) for _ in range(tokens // 4)]
    wanted: list[RouteRequest] = []
    for number in range(requests):
        own = random.Random(f"{seed} {number}").choices(range(VOCABULARY), k=tokens - len(system))
        prompt = array("I", system + own)
        having = depths(pattern, tokens, randomness)
        hashes = block_hashes(prompt, BLOCK_TOKENS)
        for worker, cached in having.items():
            workers.tell(worker, BlocksStored(hashes[: cached // BLOCK_TOKENS]))
        packed = prompt.tobytes()
        wanted.append(RouteRequest(request_id=RequestId(f"r{number}"), packed=packed, output_tokens=100))
    route, clock = workers.router.route, time.perf_counter
    spent: list[float] = []
    for request in wanted:
        begin = clock()
        decision = route(request, 1.0)
        spent.append((clock() - begin) * 1e6)
        assert decision is not None
    return spent


def measure_events(seed: int) -> dict[str, float]:
    """Return event blocks applied in a second: new ones, ones that another worker has too, and removed ones;
    and as a frontend gets them, decoded from a message."""
    workers = Workers([Role.BOTH] * WORKERS, seed=seed, index_blocks=4_000_000)
    names = names_of(400 * CHAIN_BLOCKS, seed)
    chains = [names[at : at + CHAIN_BLOCKS] for at in range(0, len(names), CHAIN_BLOCKS)]
    found: dict[str, float] = {}

    def apply(what: str, owner_shift: int, kind: type[BlocksStored | BlocksRemoved]) -> None:
        begin = time.perf_counter()
        for number, chain in enumerate(chains):
            workers.tell((number + owner_shift) % WORKERS, kind(chain))
        found[what] = len(names) / (time.perf_counter() - begin)

    apply("stored, new", 0, BlocksStored)
    apply("stored, known at another worker", 1, BlocksStored)
    apply("removed, still known at another worker", 0, BlocksRemoved)
    apply("removed, the last", 1, BlocksRemoved)
    messages = [
        msgspec.msgpack.encode(KvEvents(number // WORKERS, [BlocksStored(chain)]))
        for number, chain in enumerate(chains)
    ]
    fresh = Workers([Role.BOTH] * WORKERS, seed=seed, index_blocks=4_000_000)
    decoder = msgspec.msgpack.Decoder(KvEvents)
    begin = time.perf_counter()
    for number, message in enumerate(messages):
        batch = decoder.decode(message)
        fresh.tell(number % WORKERS, batch.events[0])
    found["decoded and stored, new"] = len(names) / (time.perf_counter() - begin)
    return found


def names_of(count: int, seed: int) -> list[BlockHash]:
    randomness = random.Random(seed)
    return [BlockHash(randomness.getrandbits(64)) for _ in range(count)]


def measure_memory() -> dict[str, float]:
    """Return bytes for each block and worker: what the process takes more. To be run in a fresh process."""
    begin = resident_bytes()
    many = Workers([Role.BOTH] * MEMORY_WORKERS, seed=1)
    worker_bytes = (resident_bytes() - begin) / MEMORY_WORKERS
    del many
    workers = Workers([Role.BOTH] * WORKERS, seed=1, index_blocks=2 * MEMORY_BLOCKS)
    decoder = msgspec.msgpack.Decoder(KvEvents)

    def fill(owner_of_chain: int, seed: int) -> float:
        begin = resident_bytes()
        for chain in range(MEMORY_BLOCKS // CHAIN_BLOCKS):
            names = names_of(CHAIN_BLOCKS, seed + chain)
            batch = decoder.decode(msgspec.msgpack.encode(KvEvents(0, [BlocksStored(names)])))
            workers.tell((chain + owner_of_chain) % WORKERS, batch.events[0])
        gc.collect()
        return (resident_bytes() - begin) / MEMORY_BLOCKS

    return {
        "bytes a worker": worker_bytes,
        "bytes a block": fill(0, 1),
        "bytes more for its second worker": fill(1, 1),
        "bytes more for its third worker": fill(2, 1),
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def routes(requests: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return each pattern's figures. Repeats are runs with other prompts; the median of their p50 counts."""
    found: dict[str, dict[str, float]] = {}
    for tokens in LENGTHS:
        count = max(10, requests * LENGTHS[0] // tokens)
        for pattern in PATTERNS:
            runs = [measure_routes(pattern, tokens, count, seed) for seed in range(repeats)]
            medians = [statistics.median(run) for run in runs]
            found[f"{pattern}, {tokens} tokens"] = {
                "p50_us": round(statistics.median(medians), 1),
                "p50_us_best_run": round(min(medians), 1),
                "p99_us": round(percentile([each for run in runs for each in run], 0.99), 1),
                "goal_us": GOALS_US[tokens],
                "decisions": sum(map(len, runs)),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(measure_memory()))
        return
    about = machine()
    gc.set_threshold(50_000, 20, 100)  # as the frontend does
    found = routes(arguments.requests, arguments.repeats)
    title = f"routing one request, {WORKERS} workers"
    print(f"{title:44}{'p50 us':>9}{'best run':>10}{'p99 us':>9}{'goal':>7}")
    for name, row in found.items():
        figures = (
            f"{row['p50_us']:9.1f}{row['p50_us_best_run']:10.1f}{row['p99_us']:9.1f}{row['goal_us']:7.0f}"
        )
        print(f"{name:44}{figures}")
    runs = [measure_events(seed) for seed in range(arguments.repeats)]
    events = {name: round(statistics.median([run[name] for run in runs])) for name in runs[0]}
    print(f"\n{'event blocks a second':44}{'median':>12}   goal {GOAL_BLOCKS_PER_S:,}")
    for name, rate in events.items():
        print(f"{name:44}{rate:12,}")
    command = [sys.executable, "-m", "benchmarks.routing_speed", "--memory"]
    memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"\n{'memory (resident set)':44}")
    for name, size in memory.items():
        print(f"{name:44}{size:12.0f}")
    result = {"workers": WORKERS, "block_tokens": BLOCK_TOKENS, "routes": found, "event_blocks_per_s": events}
    print(write_result("routing_speed", {**result, "memory": memory}, about))


if __name__ == "__main__":
    main()
