"""One prefill and one decode server: the tokens are those of one aggregated server, whatever the model."""

from __future__ import annotations

import asyncio

import pytest
from tests.e2e.streams import Client

from .plants import Plant, greedy, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PLANT = {"prefill": 1, "decode": 1}
CONCURRENCY = 8
REQUESTS = 24
ARCHITECTURES = [pytest.param({"architecture": name}, id=name) for name in ("llama", "qwen3", "gpt_oss")]


async def served(plant: Plant, bodies: list[dict], prefix: str) -> list[Client]:
    """Send all, ``CONCURRENCY`` at a time."""
    places = asyncio.Semaphore(CONCURRENCY)
    clients = [Client(plant.factory, body, f"{prefix}-{index}") for index, body in enumerate(bodies)]

    async def run(client: Client) -> None:
        async with places:
            await client.run()

    async with asyncio.timeout(240), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(run(client))
    return clients


def aggregated(plant: Plant, bodies: list[dict]) -> list[list[int]]:
    """What the decode server says when it does all by itself, one request after the other, nothing cached."""
    (server,) = plant.servers("decode")
    return [server.tokens({**body, "cache_salt": f"alone-{index}"}) for index, body in enumerate(bodies)]


@pytest.mark.parametrize("plant", ARCHITECTURES, indirect=True)
def test_tokens_are_those_of_an_aggregated_server(plant: Plant) -> None:
    bodies = [greedy(prompt) for prompt in prompts(REQUESTS, "equal")]
    before = plant.total("decode", "vllm:external_prefix_cache_hits_total")
    clients = asyncio.run(served(plant, bodies, "equal"))
    assert [client.error for client in clients] == [None] * REQUESTS
    moved = plant.total("decode", "vllm:external_prefix_cache_hits_total") - before
    assert [client.tokens for client in clients] == aggregated(plant, bodies)
    # It was not equal because the decode server had computed the prompts itself.
    assert moved >= sum(len(body["prompt"]) - 1 for body in bodies)
    for client in clients:
        (attempt,) = plant.explain(client.name)["attempts"]
        assert attempt["prefill_worker"], attempt
        assert attempt["handoff_failed"] is None


@pytest.mark.parametrize("plant", ARCHITECTURES, indirect=True)
def test_the_cache_of_another_request_is_noticed(plant: Plant) -> None:
    """The negative control: with wrong parameters the comparison above would fail."""
    (prefill,), (decode,) = plant.servers("prefill"), plant.servers("decode")
    mine, other = prompts(2, "control", (333,))
    right = decode.tokens(greedy(mine, cache_salt="right"))
    offers = [
        prefill.complete(
            greedy(prompt, 1, kv_transfer_params={"do_remote_decode": True, "do_remote_prefill": False})
        )["kv_transfer_params"]
        for prompt in (mine, other)
    ]
    taken = [
        decode.tokens(greedy(mine, cache_salt=f"taken-{index}", kv_transfer_params=offer))
        for index, offer in enumerate(offers)
    ]
    assert taken[0] == right
    assert taken[1] != right
