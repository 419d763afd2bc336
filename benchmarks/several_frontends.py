"""Do two frontends choose workers as one would, and what does it cost that they tell each other?

The same requests, each on a connection of its own, against one frontend, two that tell each other what they
route, and two that do not; four simulated workers behind them. Prompts share prefixes in groups, drawn by a
fixed seed, as many at a time as ``--clients``. Printed for each: share of prompt tokens found cached, the
busiest worker's share of the requests against an even one, the frontends' CPU for each request, and how late
one frontend knew what the other had routed.

    python -m benchmarks.several_frontends [--requests 1500] [--clients 16] [--runs 3]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.factories import free_port, served
from benchmarks.machine import machine, spread, write_result

WORKERS = 4
GROUPS = 64
PREFIX_TOKENS, TAIL_TOKENS = 640, 32
PLANTS = {"one": (1, True), "two, telling": (2, True), "two, silent": (2, False)}

FACTORY = """\
metadata: {{name: several-frontends}}
frontend: {{port: {port}, replicas: {replicas}, peer_sync: {sync}}}
stages: [{{name: w, role: both, replicas: {workers}, engine: sim}}]
"""


def ask(port: int, path: str, body: object = None) -> bytes:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text!r}")
        return text
    finally:
        connection.close()


def health(port: int) -> dict[str, object]:
    """What one of the frontends knows."""
    answer: dict[str, object] = json.loads(ask(port, "/health"))
    return answer


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts whose heads are shared in groups."""
    draw = random.Random(seed)
    return [
        [300 + draw.randrange(GROUPS)] * PREFIX_TOKENS
        + [draw.randrange(300, 1300) for _ in range(TAIL_TOKENS)]
        for _ in range(count)
    ]


def own_ports(port: int, replicas: int) -> list[int]:
    """Where each frontend can be asked for itself; waits until they hear each other."""
    if replicas == 1:
        return [port]
    found: set[int] = set()
    deadline = time.monotonic() + 30
    while len(found) < replicas and time.monotonic() < deadline:
        peers = health(port)["frontends"]
        assert isinstance(peers, list)
        found |= {int(peer["url"].rsplit(":", 1)[1]) for peer in peers if peer["connected"]}
        time.sleep(0.02)
    return sorted(found)


def lag(ports: list[int]) -> dict[str, float]:
    """Mean, and shares of messages within a bound, of how late news of the other frontend were known."""
    count = total = 0.0
    within = dict.fromkeys(("0.01", "0.025"), 0.0)
    for port in ports:
        for line in ask(port, "/metrics").decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == "tokenmill_peer_lag_seconds_count":
                count += float(value)
            elif name == "tokenmill_peer_lag_seconds_sum":
                total += float(value)
            for bound in within:
                if name == f'tokenmill_peer_lag_seconds_bucket{{le="{bound}"}}':
                    within[bound] += float(value)
    if not count:
        return {}
    shares = {f"within_{float(bound) * 1000:g}_ms": round(n / count, 3) for bound, n in within.items()}
    return {"mean_ms": round(total / count * 1000, 2), **shares}


def frontend_processes() -> list[psutil.Process]:
    """The frontends of the factory that this process runs."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "frontend" in child.cmdline()]


def measure(requests: int, clients: int, seed: int, *, replicas: int, sync: bool) -> dict[str, object]:
    """Serve all prompts once; return the figures."""
    port = free_port()
    text = FACTORY.format(port=port, replicas=replicas, sync=str(sync).lower(), workers=WORKERS)
    with tempfile.TemporaryDirectory() as folder, served(text, Path(folder), port):
        ports = own_ports(port, replicas) if sync else [port]
        fronts = frontend_processes()
        before = sum(sum(each.cpu_times()[:2]) for each in fronts)
        began = time.monotonic()

        def complete(ids: list[int]) -> tuple[int, int]:
            body = {"prompt": ids, "max_tokens": 16, "ignore_eos": True, "temperature": 0}
            usage = json.loads(ask(port, "/v1/completions", body))["usage"]
            return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

        with ThreadPoolExecutor(clients) as pool:
            counts = list(pool.map(complete, prompts(requests, seed)))
        wall_s = time.monotonic() - began
        cpu_s = sum(sum(each.cpu_times()[:2]) for each in fronts) - before
        time.sleep(0.5)  # the workers' last reports
        loads = health(port)["worker_list"]
        assert isinstance(loads, list)
        decoded = [load["decode_tokens_total"] for load in loads]
        return {
            "cached_share": round(sum(c for _, c in counts) / sum(p for p, _ in counts), 4),
            "busiest_worker": round(max(decoded) / (sum(decoded) / len(decoded)), 3),
            "frontend_cpu_ms": round(cpu_s / requests * 1000, 3),
            "requests_per_s": round(requests / wall_s),
            "lag": lag(ports) if sync and replicas > 1 else {},
        }


def main() -> None:
    """Measure all plants in turn, several times; print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    where = machine()
    results: dict[str, list[dict[str, object]]] = {name: [] for name in PLANTS}
    for run in range(options.runs):
        for name, (replicas, sync) in PLANTS.items():
            figures = measure(options.requests, options.clients, run, replicas=replicas, sync=sync)
            results[name].append(figures)
            print(f"{name:14} {figures}", flush=True)
    names = ("cached_share", "busiest_worker", "frontend_cpu_ms", "requests_per_s")
    summary = {
        plant: {name: spread([float(str(each[name])) for each in runs]) for name in names}
        for plant, runs in results.items()
    }
    print(json.dumps(summary, indent=2))
    write_result("several_frontends", {"summary": summary, "runs": results}, where)


if __name__ == "__main__":
    main()
