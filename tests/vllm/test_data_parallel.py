"""Data-parallel ranks of one server: each request goes to the rank that has its prefix."""

from __future__ import annotations

import asyncio
import random

import pytest

from .plants import BLOCK, Plant, greedy
from .test_handover import served
from .test_two_by_two import complete

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PLANT = {"both": 1, "parallel": {"dp": 2}}
GROUPS = 4
ROUNDS = 3
PREFIX = 8 * BLOCK
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"


def test_requests_go_to_the_rank_that_has_their_prefix(plant: Plant) -> None:
    (server,) = plant.servers("both")
    rng = random.Random(3)
    prefixes = [rng.choices(range(300, 4000), k=PREFIX) for _ in range(GROUPS)]
    for _ in range(ROUNDS):
        for prefix in rng.sample(prefixes, GROUPS):
            complete(plant, greedy([*prefix, *rng.choices(range(300, 4000), k=20)], 2))
    asyncio.run(served(plant, [greedy([*prefixes[0], 5], 1)], "last"))
    hits = [server.metric(HITS, engine=rank) for rank in ("0", "1")]
    assert sum(hits) == (ROUNDS - 1) * GROUPS * PREFIX + PREFIX
    assert all(server.metric(QUERIES, engine=rank) > 0 for rank in ("0", "1")), "both are used"
    cached = plant.explain("last-0")["tokens"]["cached"]
    assert cached == PREFIX


def test_the_frontend_knows_what_all_ranks_have(plant: Plant) -> None:
    """Blocks of both ranks are one cache to it."""
    rng = random.Random(4)
    prompts = [rng.choices(range(300, 4000), k=PREFIX + 1) for _ in range(2)]
    for prompt in prompts:
        complete(plant, greedy(prompt, 1))
    for client in asyncio.run(served(plant, [greedy(prompt, 1) for prompt in prompts], "known")):
        (attempt,) = plant.explain(client.name)["attempts"]
        assert attempt["predicted"]["cached_tokens"] == PREFIX
