"""A factory of vLLM workers, whose servers only look like vLLM: what real ones do is tested in tests/vllm."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenmill.testing.running_factory import RunningFactory

from .streams import Client, run_all, start_factory, until, wait_for_workers

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

FAKE = Path(__file__).parents[1] / "serve" / "engines" / "vllm" / "fake_vllm.py"
STREAMS = 8
TOKENS = 60


def stage(role: str, replicas: int, **environment: str) -> dict[str, object]:
    return {
        "name": role,
        "role": role,
        "replicas": replicas,
        "engine": "vllm",
        "engine_command": f"{sys.executable} {FAKE}",
        "engine_env": {"FAKE_PACE_S": "0.02", **environment},
        "block_tokens": 16,
        "drain_timeout_s": 1,
    }


def spec(*stages: dict[str, object]) -> dict[str, object]:
    return {
        "metadata": {"name": "vllm"},
        "router": {"prefill": "remote"},
        "frontend": {"worker_wait_s": 60},
        "stages": list(stages),
    }


@pytest.fixture
def up(tmp_path: Path) -> Iterator:
    running: list[RunningFactory] = []

    def start(*stages: dict[str, object], **counts: int) -> RunningFactory:
        running.append(start_factory(tmp_path, spec(*stages)))
        running[-1].wait_ready()
        wait_for_workers(running[-1], **counts)
        return running[-1]

    yield start
    assert [factory.stop() for factory in running] == [0] * len(running)


def bodies() -> list[dict[str, object]]:
    return [
        {"prompt": [300 + index] * 40, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        for index in range(STREAMS)
    ]


def told(body: dict) -> list[int]:
    """What the servers make of a prompt, and of a prompt with what was said before: sums grow with it."""
    return [(sum(body["prompt"]) + index) % 1000 for index in range(TOKENS)]


def attempt(factory: RunningFactory, client: Client) -> dict:
    return json.loads(factory.get(f"/v1/explain/{client.name}")[1])["choices"][0]["attempts"][-1]


def test_caches_are_handed_over(up) -> None:
    factory = up(stage("prefill", 1), stage("decode", 1), prefill=1, decode=1)
    clients = asyncio.run(run_all(factory, bodies(), "handed"))
    assert [client.tokens for client in clients] == [told(body) for body in bodies()]
    for client in clients:
        assert attempt(factory, client)["prefill_worker"]
        assert attempt(factory, client)["handoff_failed"] is None


def test_the_reason_of_a_failed_handoff_is_told(up) -> None:
    broken = {"FAKE_NIXL_ERROR": "NIXL compatibility hash mismatch."}
    factory = up(stage("prefill", 1), stage("decode", 1, **broken), prefill=1, decode=1)
    clients = asyncio.run(run_all(factory, bodies(), "broken"))
    for client, body in zip(clients, bodies(), strict=True):
        assert client.error is None
        assert client.tokens[0] == told(body)[0]
        assert len(client.tokens) == TOKENS
        assert attempt(factory, client)["handoff_failed"]["reason"] == "mismatch"
    assert f'tokenmill_handoffs_lost_total{{reason="mismatch"}} {STREAMS}.0' in factory.get("/metrics")[1]


def test_a_server_that_is_killed_loses_no_request(up) -> None:
    factory = up(stage("both", 2), both=2)

    async def during(clients: list[Client]) -> None:
        await until(lambda: all(len(client.tokens) > 3 for client in clients))
        (server,) = factory.workers("both")[0].children()
        os.kill(server.pid, signal.SIGKILL)

    clients = asyncio.run(run_all(factory, bodies(), "killed", during))
    assert [(client.error, len(client.tokens)) for client in clients] == [(None, TOKENS)] * STREAMS
    moved = [client for client, body in zip(clients, bodies(), strict=True) if client.tokens != told(body)]
    assert 0 < len(moved) < STREAMS, "the other server's requests go on undisturbed"
