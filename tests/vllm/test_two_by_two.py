"""Two prefill and two decode servers: equal tokens, servers that die under load, prefix hits by policy."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.e2e.streams import Client, migrations, run_all, until

from .plants import BLOCK, Plant, greedy, prompts
from .servers import Server
from .test_handover import CONCURRENCY, REQUESTS, served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PLANT = {"prefill": 2, "decode": 2}

STREAMS = 16
TOKENS = 160
MANY_TOKENS = 500
HITS = "vllm:prefix_cache_hits_total"


@pytest.fixture
def full(plant: Plant) -> Plant:
    """With nobody missing from an earlier test."""
    plant.wait_ready()
    return plant


def alone(plant: Plant, bodies: list[dict]) -> list[list[int]]:
    """What one server says when it does all by itself."""
    server = plant.servers("decode")[0]
    salted = [{**body, "cache_salt": f"alone-{index}"} for index, body in enumerate(bodies)]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(server.tokens, salted))


def test_tokens_are_those_of_an_aggregated_server(full: Plant) -> None:
    bodies = [greedy(prompt) for prompt in prompts(REQUESTS, "two by two")]
    clients = asyncio.run(served(full, bodies, "equal"))
    assert [client.tokens for client in clients] == alone(full, bodies)
    attempts = [full.explain(client.name)["attempts"] for client in clients]
    for role in ("prefill", "decode"):
        assert len({each[f"{role}_worker"] for (each,) in attempts}) == 2, "both take part"


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_server_that_is_killed_loses_no_request(full: Plant, role: str) -> None:
    factory = full.factory
    length = 60 if role == "decode" else 2000
    tokens = MANY_TOKENS if role == "decode" else TOKENS
    bodies = [greedy(prompt, tokens) for prompt in prompts(STREAMS, f"killed {role}", (length,))]
    right = alone(full, bodies)
    before = migrations(factory)
    victims: list[Server] = []

    async def during(clients: list[Client]) -> None:
        enough = STREAMS // 2 if role == "decode" else 1
        await until(lambda: sum(len(client.tokens) > 1 for client in clients) >= enough)
        servers = await asyncio.to_thread(full.servers, role)
        victims.append(max(servers, key=lambda server: server.metric("vllm:num_requests_running")))
        os.killpg(victims[0].process.pid, signal.SIGKILL)

    clients = asyncio.run(run_all(factory, bodies, f"killed-{role}", during))
    assert [client.error for client in clients] == [None] * STREAMS
    assert [client.tokens for client in clients] == right
    moved = sum(migrations(factory).values()) - sum(before.values())
    lost = [
        attempt["handoff_failed"]
        for client in clients
        for attempt in full.explain(client.name)["attempts"]
        if attempt["handoff_failed"]
    ]
    assert moved or lost, "nothing was disturbed"


GROUPS = 5
ROUNDS = 4
PREFIX = 16 * BLOCK


def complete(plant: Plant, body: dict) -> None:
    request = urllib.request.Request(
        f"{plant.factory.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        json.load(answer)


def hits(plant: Plant, seed: str) -> float:
    """Prefix hits of the prefill servers, in tokens, where groups of requests share a prefix each."""
    rng = random.Random(seed)
    prefixes = [rng.choices(range(300, 4000), k=PREFIX) for _ in range(GROUPS)]
    before = plant.total("prefill", HITS)
    for _ in range(ROUNDS):
        for prefix in prefixes:
            complete(plant, greedy([*prefix, *rng.choices(range(300, 4000), k=20)], 2))
    return plant.total("prefill", HITS) - before


def test_kv_routing_finds_more_cached_prefixes(full: Plant) -> None:
    by_cache = hits(full, "kv")
    file = full.folder / "factory.yaml"
    file.write_text(file.read_text().replace("policy: kv", "policy: round-robin"))
    subprocess.run(
        [sys.executable, "-m", "tokenmill", "up", str(file)],
        env={**os.environ, "TOKENMILL_STATE_DIR": str(full.folder / "state")},
        check=True,
        timeout=240,
    )
    full.wait_ready()
    in_turn = hits(full, "round-robin")
    # Every group's prefix is computed once, or once on each of the two.
    assert by_cache == (ROUNDS - 1) * GROUPS * PREFIX
    assert in_turn < by_cache
