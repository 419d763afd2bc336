"""An engine that the factory attaches to, started by the command that ``tokenmill render`` prints for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from tests.e2e.streams import Client

from tokenmill.operate.deploy.rendering import commands
from tokenmill.serve.engines.remote.child import free_ports
from tokenmill.spec.load import parse_factory

from .plants import Plant, greedy, plant_spec, prompts
from .servers import Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ELSEWHERE = "127.0.0.2"
"""Stands for another machine: prefill is launched at 127.0.0.1."""

REQUESTS = 8


@pytest.fixture(scope="module")
def spec(vllm_python, checkpoint) -> dict:
    found = plant_spec(vllm_python, checkpoint("llama"), prefill=1, decode=1)
    [port] = free_ports(1, ELSEWHERE, neighbours=4)
    found["stages"][1]["attach"] = f"http://{ELSEWHERE}:{port}"
    return found


@pytest.fixture(scope="module")
def engine(spec, tmp_path_factory) -> Iterator[Server]:
    """The decode engine, as a person would start it on its machine."""
    [shown] = [each for each in commands(parse_factory(json.dumps(spec), "f"), {}) if not each.runs]
    log = tmp_path_factory.mktemp("engine") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            shown.command,
            env={**os.environ, **shown.environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(0, psutil.Process(process.pid))
    server.url = spec["stages"][1]["attach"]
    try:
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.fixture(scope="module")
def plant(spec, engine, tmp_path_factory) -> Iterator[Plant]:
    plant = Plant(tmp_path_factory.mktemp("plant"), spec)
    try:
        plant.wait_ready()
        yield plant
    finally:
        status = plant.stop()
    assert status == 0, plant.factory.log()


def test_it_takes_caches_from_an_engine_that_was_launched_here(plant: Plant, engine: Server) -> None:
    bodies = [greedy(prompt) for prompt in prompts(REQUESTS, "elsewhere")]
    clients = [Client(plant.factory, body, f"elsewhere-{index}") for index, body in enumerate(bodies)]

    async def run() -> None:
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run())

    before = engine.metric("vllm:external_prefix_cache_hits_total")
    asyncio.run(run())
    assert [client.error for client in clients] == [None] * REQUESTS
    moved = engine.metric("vllm:external_prefix_cache_hits_total") - before
    assert moved >= sum(len(body["prompt"]) - 1 for body in bodies)
    alone = [engine.tokens({**body, "cache_salt": f"alone-{i}"}) for i, body in enumerate(bodies)]
    assert [client.tokens for client in clients] == alone
