"""Several frontends on one port: all are reached, choose as one would, and outlive each other."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from tests.waiting import wait_until

from tokenmill.operate.deploy.shared_port import can_share_ports
from tokenmill.testing.running_factory import RunningFactory

Serve = Callable[..., RunningFactory]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not can_share_ports(), reason="this system deals no connections out"),
]

WORKERS = 4
BLOCK = 16


def ask(port: int, path: str, body: object = None) -> dict:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "GET" if body is None else "POST",
            path,
            None if body is None else json.dumps(body),
            {"content-type": "application/json", "connection": "close"},
        )
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)
    finally:
        connection.close()


def complete(factory: RunningFactory, ids: list[int], **fields: object) -> dict:
    body = {"prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    return ask(factory.port, "/v1/completions", body)


def who_answers(factory: RunningFactory) -> str:
    return ask(factory.port, "/health")["frontend"]


def fronts(factory: RunningFactory) -> dict[str, int]:
    """Return the port of each frontend's own address, by id; each names the others."""
    found: dict[str, int] = {}
    for _ in range(64):
        for peer in ask(factory.port, "/health")["frontends"]:
            if peer["connected"]:
                found[peer["id"]] = int(peer["url"].rsplit(":", 1)[1])
    return found


def of_workers(factory: RunningFactory, field: str) -> dict[str, int]:
    return {load["id"]: load[field] for load in ask(factory.port, "/health")["worker_list"]}


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def factory(serve_module: Serve) -> RunningFactory:
    slow = ("--engine-arg", "prefill_token_ms=0.3")  # so that a long prefix is worth going for
    stages = ("--engine", "sim", "--both", str(WORKERS), *slow)
    factory = serve_module(*stages, "--frontends", "2", "--router-policy", "kv")
    wait_until(lambda: len(fronts(factory)) == 2)
    for port in fronts(factory).values():
        wait_until(lambda port=port: ask(port, "/health")["workers"]["both"].get("ready") == WORKERS)
    return factory


def test_both_are_reached_and_know_each_other(factory: RunningFactory) -> None:
    ids = {who_answers(factory) for _ in range(64)}
    assert len(ids) == 2
    assert set(fronts(factory)) == ids


def test_requests_are_spread_as_one_would(factory: RunningFactory) -> None:
    ports = fronts(factory)
    before = of_workers(factory, "prefill_tokens_total")
    routed = {port: metric(port, "tokenmill_router_routed_total") for port in ports.values()}
    count, tokens = 120, 5 * BLOCK
    with ThreadPoolExecutor(WORKERS * 2) as pool:
        prompts = [[300 + number, *[400] * (tokens - 1)] for number in range(count)]
        list(pool.map(lambda ids: complete(factory, ids, max_tokens=32), prompts))
    wait_until(
        lambda: (
            sum(of_workers(factory, "prefill_tokens_total").values()) >= sum(before.values()) + count * tokens
        )
    )
    after = of_workers(factory, "prefill_tokens_total")
    shares = [(after[worker] - before[worker]) // tokens for worker in after]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= count // WORKERS // 2, shares
    assert all(metric(port, "tokenmill_router_routed_total") > seen for port, seen in routed.items())
    assert all(metric(port, "tokenmill_peer_notes_received_total") > 0 for port in ports.values())


def test_a_burst_with_one_prefix_goes_to_one_worker_through_both(factory: RunningFactory) -> None:
    prefix = [777] * (240 * BLOCK)  # worth more than what two requests in each other's way cost
    complete(factory, [*prefix, 1])
    before = of_workers(factory, "prefix_hit_tokens_total")
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda tail: complete(factory, [*prefix, tail], max_tokens=1), range(2, 26)))
    found = Counter(each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in answers)
    assert found == {len(prefix): 24}
    wait_until(
        lambda: (
            sum(of_workers(factory, "prefix_hit_tokens_total").values())
            >= sum(before.values()) + 24 * len(prefix)
        )
    )
    after = of_workers(factory, "prefix_hit_tokens_total")
    assert len([worker for worker in after if after[worker] > before[worker]]) == 1


def test_the_own_address_only_answers_questions(factory: RunningFactory) -> None:
    ids = fronts(factory)
    for name, port in ids.items():
        assert {ask(port, "/health")["frontend"] for _ in range(8)} == {name}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "a"}))
        assert connection.getresponse().status == 405
        connection.close()


def test_one_that_is_killed_leaves_the_other_serving_and_comes_back(factory: RunningFactory) -> None:
    before = set(fronts(factory))
    victim, survivor = factory.frontends()
    url = next(
        peer["url"]
        for _ in range(64)
        for peer in ask(factory.port, "/health")["frontends"]
        if peer["pid"] == survivor.pid
    )
    port = int(url.rsplit(":", 1)[1])
    victim.kill()
    psutil.wait_procs([victim], timeout=10)
    for number in range(30):
        assert complete(factory, [500 + number] * 20)["choices"][0]["finish_reason"] == "length"
    wait_until(lambda: len(fronts(factory)) == 2 and len(before | set(fronts(factory))) == 3)
    assert ask(port, "/health")["frontends"][0]["connected"]
