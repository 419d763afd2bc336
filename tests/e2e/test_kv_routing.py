"""Requests go where their prefix is cached: real processes, seen by the cached tokens that usage reports."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest
from tests.waiting import wait_until

from tokenmill.testing.running_factory import RunningFactory

Serve = Callable[..., RunningFactory]

pytestmark = pytest.mark.processes

BLOCK = 16
PREFIX = 40 * BLOCK
GROUPS = 6
ROUNDS = 4


def prompt(group: int, tail: int) -> list[int]:
    """A long prefix that a group shares, and a tail of one's own."""
    return [300 + group] * PREFIX + [400 + tail] * 7


def complete(factory: RunningFactory, ids: list[int], **fields: object) -> dict:
    body = {"prompt": ids, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}
    request = urllib.request.Request(
        f"{factory.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def cached(answer: dict) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def known_blocks(factory: RunningFactory) -> int:
    """Blocks that the frontend knows to be cached by workers' events."""
    return sum(json.loads(factory.get("/health")[1])["router"]["worker_blocks"].values())


def hits(factory: RunningFactory) -> list[int]:
    """Send every group's requests, one after the other, the groups in turn; return what was cached."""
    return [
        cached(complete(factory, prompt(group, tail))) for tail in range(ROUNDS) for group in range(GROUPS)
    ]


@pytest.mark.parametrize(
    "stages", [("--both", "3"), ("--prefill", "2", "--decode", "2")], ids=["aggregated", "disaggregated"]
)
def test_a_prefix_is_computed_once_in_the_whole_factory(serve: Serve, stages: tuple[str, ...]) -> None:
    factory = serve("--engine", "sim", *stages, "--router-policy", "kv", "--router-prefill", "remote")
    if "--prefill" in stages:
        factory.wait_for_mode("disaggregated")
    wait_until(lambda: len(factory.worker_loads()) == sum(int(count) for count in stages[1::2]))
    found = hits(factory)
    assert found[:GROUPS] == [0] * GROUPS
    assert found[GROUPS:] == [PREFIX] * (GROUPS * (ROUNDS - 1))


def test_a_lost_cache_is_forgotten_and_the_new_one_learned(serve: Serve) -> None:
    factory = serve("--engine", "sim", "--both", "2", "--router-policy", "kv")
    hits(factory)
    assert known_blocks(factory) > 0
    for worker in factory.workers("both"):
        worker.kill()
        worker.wait(10)
    wait_until(lambda: known_blocks(factory) == 0)
    wait_until(lambda: sum(load["state"] == "ready" for load in factory.worker_loads()) == 2)
    found = hits(factory)
    assert found[:GROUPS] == [0] * GROUPS
    assert found[GROUPS:] == [PREFIX] * (GROUPS * (ROUNDS - 1))


def test_a_frontend_that_comes_late_knows_what_is_cached(serve: Serve) -> None:
    """The new frontend gets each worker's snapshot."""
    factory = serve("--engine", "sim", "--both", "2", "--router-policy", "kv")
    hits(factory)
    before = known_blocks(factory)
    (front,) = factory.frontends()
    front.kill()
    front.wait(10)
    factory.wait_ready()
    wait_until(lambda: known_blocks(factory) == before)
    assert hits(factory)[:GROUPS] == [PREFIX] * GROUPS


def test_the_torch_engine_tells_its_cache_too(serve: Serve) -> None:
    pytest.importorskip("torch")
    factory = serve("--both", "2", "--router-policy", "kv", "--dtype", "float32")
    wait_until(lambda: len(factory.worker_loads()) == 2)
    length = 8 * BLOCK
    first = [300 + n for n in range(length)]
    second = [700 + n for n in range(length)]
    a, b = complete(factory, [*first, 5]), complete(factory, [*second, 5])
    assert (cached(a), cached(b)) == (0, 0)
    for tail in range(6, 9):
        assert cached(complete(factory, [*first, tail])) == length
        assert cached(complete(factory, [*second, tail])) == length
