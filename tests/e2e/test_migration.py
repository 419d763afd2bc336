"""Workers that die, freeze and leave under 32 streams: every client gets every token exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator

import psutil
import pytest

from tokenmill.testing.running_factory import RunningFactory

from .streams import Client, all_ready, migrations, run_all, start_factory, until, wait_for_workers

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

STREAMS = 32
TOKENS = 400

SIM = {
    "metadata": {"name": "migration"},
    "router": {"policy": "round-robin", "prefill": "remote"},
    "migration": {"stall_timeout_s": 3, "max_attempts": 5},
    "frontend": {"worker_wait_s": 60},
    "stages": [
        {"name": "prefill", "role": "prefill", "replicas": 2, "engine": "sim", "drain_timeout_s": 0.2},
        {"name": "decode", "role": "decode", "replicas": 2, "engine": "sim", "drain_timeout_s": 0.2},
    ],
}


@contextlib.contextmanager
def running(folder, spec) -> Iterator[RunningFactory]:
    factory = start_factory(folder, spec)
    try:
        factory.wait_ready()
        yield factory
    finally:
        status = factory.stop()
    assert status == 0, factory.log()


@pytest.fixture(scope="module")
def factory(tmp_path_factory) -> Iterator[RunningFactory]:
    with running(tmp_path_factory.mktemp("migration"), SIM) as factory:
        yield factory


@pytest.fixture
def full_factory(factory) -> RunningFactory:
    """With nobody missing from an earlier test."""
    wait_for_workers(factory, prefill=2, decode=2)
    return factory


def bodies(prompt_tokens: int = 60) -> list[dict[str, object]]:
    """Requests that all differ; every other one is sampled."""
    return [
        {
            "prompt": [300 + index] * prompt_tokens,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": index % 2,
            "seed": index,
            "logprobs": 0 if index % 4 == 0 else None,
        }
        for index in range(STREAMS)
    ]


@pytest.fixture(scope="module")
def undisturbed(factory):
    wait_for_workers(factory, prefill=2, decode=2)
    results = {}
    for prompt_tokens in (60, 3000):
        clients = asyncio.run(run_all(factory, bodies(prompt_tokens), f"undisturbed-{prompt_tokens}"))
        results[prompt_tokens] = [client.result for client in clients]
        for error, finish, tokens, _, _ in results[prompt_tokens]:
            assert (error, finish, len(tokens)) == (None, "length", TOKENS)
    return results


async def all_stream(clients: list[Client], tokens: int = 5) -> None:
    """Wait until all have some tokens."""
    await until(lambda: all(len(client.tokens) > tokens for client in clients))
    assert not any(client.finish for client in clients), "too quick to be disturbed"


def more(before, after, reason) -> dict[str, int]:
    """Migrations for this reason since, by phase."""
    return {
        phase: count - before.get((why, phase), 0)
        for (why, phase), count in after.items()
        if why == reason and count > before.get((why, phase), 0)
    }


def attempts_of(factory, client) -> list[dict]:
    (choice,) = json.loads(factory.get(f"/v1/explain/{client.name}")[1])["choices"]
    return choice["attempts"]


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_killed_worker(full_factory, undisturbed, role):
    factory, before = full_factory, migrations(full_factory)
    victim = factory.workers(role)[0]

    async def during(clients):
        await (all_stream(clients) if role == "decode" else until(lambda: clients[0].tokens))
        victim.kill()

    prompt_tokens = 60 if role == "decode" else 3000
    clients = await run_all(factory, bodies(prompt_tokens), f"killed-{role}", during)
    assert [client.result for client in clients] == undisturbed[prompt_tokens]
    assert sum(more(before, migrations(factory), "lost").values()) > 0
    moved = [client for client in clients if len(attempts_of(factory, client)) > 1]
    assert {attempts_of(factory, client)[0]["moved"]["reason"] for client in moved} == {"lost"}


async def test_a_frozen_decode_worker(full_factory, undisturbed):
    factory, before = full_factory, migrations(full_factory)
    victim = factory.workers("decode")[0]

    async def during(clients):
        await all_stream(clients)
        with frozen(victim):
            await until(lambda: more(before, migrations(factory), "stalled"), factory.log)
            so_far = migrations(factory)
            late = await run_all(factory, bodies()[:8], "while-frozen")
            assert [client.result for client in late] == undisturbed[60][:8]
            assert migrations(factory) == so_far, "new requests went to the frozen worker"

    clients = await run_all(factory, bodies(), "frozen", during)
    assert [client.result for client in clients] == undisturbed[60]
    stalled = more(before, migrations(factory), "stalled")
    assert stalled.get("decode", 0) > 0
    await until(lambda: all_ready(factory, decode=2), factory.log)
    await until(lambda: not any(w["running"] + w["receiving"] for w in factory.worker_loads()), factory.log)


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_frozen_prefill_worker(full_factory, undisturbed, when):
    factory, before = full_factory, migrations(full_factory)
    victim = factory.workers("prefill")[0]
    stack = contextlib.ExitStack()
    if when == "before":
        stack.enter_context(frozen(victim))

    async def during(clients):
        await until(lambda: clients[0].tokens or clients[1].tokens)
        if when == "during":
            stack.enter_context(frozen(victim))
        await until(lambda: more(before, migrations(factory), "stalled"), factory.log)

    with stack:
        clients = await run_all(factory, bodies(3000), f"frozen-{when}", during)
    assert [client.result for client in clients] == undisturbed[3000]
    assert more(before, migrations(factory), "stalled").get("prefill", 0) > 0
    await until(lambda: all_ready(factory, prefill=2), factory.log)


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_worker_that_leaves(full_factory, undisturbed, role):
    factory, before = full_factory, migrations(full_factory)
    victim = factory.workers(role)[0]

    async def during(clients):
        await (all_stream(clients) if role == "decode" else until(lambda: clients[0].tokens))
        victim.send_signal(signal.SIGTERM)

    prompt_tokens = 60 if role == "decode" else 3000
    clients = await run_all(factory, bodies(prompt_tokens), f"leaving-{role}", during)
    assert [client.result for client in clients] == undisturbed[prompt_tokens]
    after = migrations(factory)
    assert sum(more(before, after, "drained").values()) > 0
    assert not more(before, after, "lost")


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()
