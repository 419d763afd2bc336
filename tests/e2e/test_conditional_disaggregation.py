"""Short prompts are computed where they are decoded, long ones beside many decodes on a prefill worker: real
processes, seen by the workers' own counts."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.streams import Client, run_all, start_factory, until

from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes

SHORT, LONG, ANSWERS = 24, 1600, 8


def spec(mode: str) -> dict[str, object]:
    """A step takes 2 ms, a prompt token 0.1 ms more: 1,600 of them 160 ms, in steps of 50 ms at most."""
    worker = {
        "engine": "sim",
        "prefill_budget": 500,
        "engine_args": {"fixed_ms": "2", "prefill_token_ms": "0.1"},
    }
    return {
        "metadata": {"name": f"paths-{mode}"},
        "router": {"prefill": mode},
        "stages": [
            {"name": "prefill", "role": "prefill", **worker},
            {"name": "decode", "role": "decode", **worker},
        ],
    }


@pytest.fixture(params=["auto", "remote"])
def factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningFactory]:
    running = start_factory(tmp_path, spec(request.param))
    try:
        running.wait_ready()
        running.wait_for_mode("disaggregated")
        running.mode = request.param
        yield running
    finally:
        status = running.stop()
    assert status == 0


def counts(factory: RunningFactory) -> dict[str, dict[str, int]]:
    return {worker["role"]: worker for worker in factory.worker_loads()}


def prompt(first: int, tokens: int) -> list[int]:
    return [300 + (first + index) % 500 for index in range(tokens)]


def complete(factory: RunningFactory, ids: list[int], name: str) -> int:
    """Return how many tokens came."""
    body = {"prompt": ids, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{factory.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-request-id": name},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def wait_for_counts(factory: RunningFactory, condition) -> None:
    deadline = time.monotonic() + 60
    while not condition(counts(factory)):
        assert time.monotonic() < deadline, (counts(factory), factory.log())
        time.sleep(0.05)


async def test_each_prompt_goes_the_better_way(factory: RunningFactory) -> None:
    for number in range(4):
        # The frontend must have heard that nothing runs: a decode worker in mid-step is worth avoiding.
        wait_for_counts(factory, lambda seen: all(worker["running"] == 0 for worker in seen.values()))
        assert complete(factory, prompt(100 * number, SHORT), f"short-{number}") == 4
    if factory.mode == "remote":
        wait_for_counts(factory, lambda seen: seen["decode"]["handoffs_in_total"] == 4)
        assert counts(factory)["decode"]["prefill_tokens_total"] == 0
        return
    wait_for_counts(factory, lambda seen: seen["decode"]["prefill_tokens_total"] >= 4 * SHORT)
    assert counts(factory)["prefill"]["prefill_tokens_total"] == 0
    # Many decodes, each of which a long prompt in their midst would hold up.
    answer = {"max_tokens": 1200, "temperature": 0, "ignore_eos": True}
    bodies = [{"prompt": prompt(number, SHORT), **answer} for number in range(ANSWERS)]

    async def long_prompt_in_their_midst(clients: list[Client]) -> None:
        def running() -> bool:
            decode = counts(factory)["decode"]
            return decode["running"] >= ANSWERS and decode["waiting_prefill_tokens"] == 0

        await until(running, factory.log)
        client = Client(factory, {"prompt": prompt(7, LONG), **answer, "max_tokens": 4}, "long")
        await client.run()
        assert (client.error, len(client.tokens)) == (None, 4)
        assert not all(other.ended for other in clients)

    await run_all(factory, bodies, "answer", long_prompt_in_their_midst)
    wait_for_counts(factory, lambda seen: seen["prefill"]["prefill_tokens_total"] >= LONG)
    assert counts(factory)["prefill"]["handoffs_out_total"] >= 1
    way = json.loads(factory.get("/v1/explain/long")[1])["choices"][0]["attempts"][0]["ways"]
    assert {each["kind"]: each["chosen"] for each in way} == {"local": False, "remote": True}
