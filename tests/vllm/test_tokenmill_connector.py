"""Our own KV connector in real vLLM servers: equal tokens, over both transports, whatever fails."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from tests.e2e.streams import Client, run_all, until
from tests.waiting import wait_until

from tokenmill.protocol.ids import Role
from tokenmill.testing.engine_client import EngineClient, hand_over

from .plants import Plant, greedy, launched, plant_spec, prompts
from .servers import Server, refused
from .test_failures import losses, offered
from .test_handover import REQUESTS, aggregated, served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

OURS = {"prefill": 1, "decode": 1, "kv_connector": "tokenmill"}
EACH = [
    pytest.param({**OURS, "architecture": "llama"}, id="llama"),
    pytest.param({**OURS, "architecture": "qwen3", "transports": ["tcp"]}, id="qwen3 over tcp"),
    pytest.param({**OURS, "architecture": "gpt_oss"}, id="gpt_oss"),
    pytest.param({**OURS, "architecture": "gpt_oss", "transports": ["tcp"]}, id="gpt_oss over tcp"),
]
EXTERNAL = "vllm:external_prefix_cache_hits_total"
USED = "vllm:kv_cache_usage_perc"

WINDOW_EDGES = (2, 33, 127, 128, 129, 130, 158, 159, 160, 161, 191)
"""Prompt lengths around a sliding window of 128 tokens and the ends of blocks of 32."""


# Those that start servers of their own come first: the last plant of a module stays until the module ends.


@contextmanager
def running(folder: Path, spec: dict) -> Iterator[Plant]:
    folder.mkdir()
    plant = Plant(folder, spec)
    try:
        plant.wait_ready()
        yield plant
    finally:
        status = plant.stop()
    assert status == 0, plant.factory.log()


def test_tokens_are_those_of_nixl(vllm_python, checkpoint, tmp_path) -> None:
    bodies = [greedy(prompt) for prompt in prompts(REQUESTS, "two connectors")]
    tokens = {}
    for name in ("nixl", "tokenmill"):
        spec = plant_spec(vllm_python, checkpoint("gpt_oss"), prefill=1, decode=1, kv_connector=name)
        with running(tmp_path / name, spec) as plant:
            clients = asyncio.run(served(plant, bodies, name))
            assert plant.total("decode", EXTERNAL) > 0
            tokens[name] = [client.tokens for client in clients]
    assert tokens["nixl"] == tokens["tokenmill"]


LEASE_S = 4
LEASED = {"kv_connector": "tokenmill", "lease_s": LEASE_S}


async def used(engine: EngineClient) -> float:
    url = engine.engine._client.base_url  # type: ignore[attr-defined]
    server = Server.__new__(Server)
    server.url = url
    return await asyncio.to_thread(server.metric, USED)


async def test_what_fails_is_computed_by_the_decode_server(vllm_python, checkpoint, tmp_path) -> None:
    model = checkpoint("gpt_oss")
    prefill = EngineClient(launched(vllm_python, model, Role.PREFILL, tmp_path / "p", **LEASED))
    decode = EngineClient(launched(vllm_python, model, Role.DECODE, tmp_path / "d", **LEASED))
    asked = prompts(4, "our losses", (333,))
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(each) for each in (prefill, decode)))
        well, again, late, dead = [(prompt, await prefill.generate(prompt)) for prompt in asked]

        assert (await hand_over(prefill, decode, well[0]))[0] == well[1]
        assert await losses(decode, well[0], await offered(prefill, well[0]), well[1]) == []

        twice = await offered(prefill, again[0])
        assert await losses(decode, again[0], twice, again[1]) == []
        assert await losses(decode, again[0], twice, again[1]) == ["engine"]  # it has been taken

        kept = await offered(prefill, late[0])
        assert await used(prefill) > 0
        async with asyncio.timeout(LEASE_S + 20):
            while await used(prefill) > 0:
                await asyncio.sleep(0.1)
        assert await losses(decode, late[0], kept, late[1]) == ["lease_expired"]

        orphan = await offered(prefill, dead[0])
        os.killpg(prefill.engine._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        await prefill.engine.failure()
        assert await losses(decode, dead[0], orphan, dead[1]) == ["unreachable"]
        assert await used(decode) == 0


async def test_another_connectors_offer_is_a_mismatch(vllm_python, checkpoint, tmp_path) -> None:
    """Servers of a pair that somebody else has put together."""
    model = checkpoint("llama")
    theirs = EngineClient(
        launched(vllm_python, model, Role.PREFILL, tmp_path / "p", kv_connector="nixl", lease_s=LEASE_S)
    )
    ours = EngineClient(launched(vllm_python, model, Role.DECODE, tmp_path / "d", **LEASED))
    (prompt,) = prompts(1, "other", (333,))
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(each) for each in (theirs, ours)))
        whole = await theirs.generate(prompt)
        handoff = await offered(theirs, prompt)
        assert await losses(ours, prompt, handoff, whole) == ["unreadable"]
        servers = []
        for client in (theirs, ours):
            server = Server.__new__(Server)
            server.url = client.engine._client.base_url  # type: ignore[attr-defined]
            servers.append(server)
        asked = greedy(prompt, 1, kv_transfer_params={"do_remote_decode": True, "do_remote_prefill": False})
        params = (await asyncio.to_thread(servers[0].complete, asked))["kv_transfer_params"]
        taken = greedy(prompt, 4, kv_transfer_params=params)
        assert "error" in await asyncio.to_thread(refused, servers[1], taken)
        assert await asyncio.to_thread(servers[1].tokens, greedy(prompt, 16)) == whole  # it lives


@pytest.mark.parametrize("plant", EACH, indirect=True)
def test_tokens_are_those_of_an_aggregated_server(plant: Plant) -> None:
    bodies = [greedy(prompt) for prompt in prompts(REQUESTS, "equal")]
    bodies += [greedy(*prompts(1, f"edge {length}", (length,))) for length in WINDOW_EDGES]
    before = plant.total("decode", EXTERNAL)
    clients = asyncio.run(served(plant, bodies, "equal"))
    assert [client.error for client in clients] == [None] * len(bodies)
    moved = plant.total("decode", EXTERNAL) - before
    assert [client.tokens for client in clients] == aggregated(plant, bodies)
    assert moved == sum(len(body["prompt"]) - 1 for body in bodies)
    for client in clients:
        (attempt,) = plant.explain(client.name)["attempts"]
        assert attempt["prefill_worker"], attempt
        assert attempt["handoff_failed"] is None
    (prefill,) = plant.servers("prefill")
    wait_until(lambda: prefill.metric(USED) == 0)  # every block has come back


@pytest.mark.parametrize("plant", EACH[::2], indirect=True)
def test_the_cache_of_another_request_is_noticed(plant: Plant) -> None:
    """The negative control: with wrong parameters the comparison above would fail."""
    (prefill,), (decode,) = plant.servers("prefill"), plant.servers("decode")
    mine, other = prompts(2, "control", (333,))
    right = decode.tokens(greedy(mine, cache_salt="right"))
    offers = [
        prefill.complete(greedy(prompt, 1, kv_transfer_params={"do_remote_decode": True}))[
            "kv_transfer_params"
        ]
        for prompt in (mine, other)
    ]
    taken = [
        decode.tokens(greedy(mine, cache_salt=f"taken-{index}", kv_transfer_params=offer))
        for index, offer in enumerate(offers)
    ]
    assert taken[0] == right
    assert taken[1] != right


STREAMS = 8


@pytest.mark.parametrize(
    "plant", [pytest.param({**OURS, "architecture": "gpt_oss"}, id="gpt_oss")], indirect=True
)
def test_a_prefill_server_that_is_killed_loses_no_request(plant: Plant) -> None:
    bodies = [greedy(prompt, 64) for prompt in prompts(STREAMS, "killed", (2000,))]
    right = aggregated(plant, bodies)
    (victim,) = plant.servers("prefill")

    async def during(clients: list[Client]) -> None:
        await until(lambda: any(client.tokens for client in clients))
        assert not any(client.finish for client in clients), "too quick to be disturbed"
        os.killpg(victim.process.pid, signal.SIGKILL)

    clients = asyncio.run(run_all(plant.factory, bodies, "killed", during))
    assert [client.error for client in clients] == [None] * STREAMS
    assert [client.tokens for client in clients] == right
    (decode,) = plant.servers("decode")
    wait_until(lambda: decode.metric(USED) == 0)
