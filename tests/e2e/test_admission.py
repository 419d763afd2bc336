"""More requests than the workers can take: real processes, the simulated engine, little KV room."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime

import pytest

from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes

# 4,096 tokens of KV. A step takes 50 ms, so that what fills the worker holds it until the test lets go.
FACTORY = """
apiVersion: tokenmill/v1
kind: Factory
metadata: {name: overload}
frontend: {port: PORT}
admission: {max_queued: 12, max_wait_s: 60}
stages:
  - {name: worker, role: both, engine: sim, kv_blocks: 256, block_tokens: 16, max_sequences: 2,
     prefix_cache: false, engine_args: {fixed_ms: "50"}}
"""


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFactory]:
    running = RunningFactory.up(tmp_path_factory.mktemp("up"), FACTORY)
    try:
        running.wait_ready()
        yield running
    finally:
        status = running.stop()
    assert status == 0


def connect(factory: RunningFactory) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", factory.port, timeout=120)


def send(connection: http.client.HTTPConnection, prompt: int, output: int, **headers: str) -> None:
    body = {"prompt": [300] * prompt, "max_tokens": output, "ignore_eos": True}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    names["content-type"] = "application/json"
    connection.request("POST", "/v1/completions", json.dumps(body), names)


def complete(factory: RunningFactory, prompt: int, output: int, **headers: str) -> tuple[int, dict, dict]:
    """Return status, headers and body of one request."""
    connection = connect(factory)
    try:
        send(connection, prompt, output, **headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, json.loads(answer.read())
    finally:
        connection.close()


def queue(factory: RunningFactory) -> dict:
    return json.loads(factory.get("/health")[1])["admission"]


def until(factory: RunningFactory, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{queue(factory)}\n{factory.log()}"
        time.sleep(0.01)


@contextmanager
def worker_filled(factory: RunningFactory) -> Iterator[None]:
    """One request holds nearly all of the worker's KV room, until the end of the block."""
    until(factory, lambda: queue(factory)["busy_workers"] == 0)
    connection = connect(factory)
    try:
        send(connection, 3750, 330)
        until(factory, lambda: queue(factory)["busy_workers"] == 1)
        yield
        assert queue(factory)["busy_workers"] == 1, "the worker was let go too early for this test"
    finally:
        connection.close()


def admitted_at(factory: RunningFactory, name: str) -> float:
    """When a request left the queue, from its own account."""
    status, text = factory.get(f"/v1/explain/{name}")
    assert status == 200, text
    told = json.loads(text)
    (attempt,) = told["choices"][0]["attempts"]
    started = datetime.fromisoformat(told["started"]).timestamp()
    return started + attempt["timeline_ms"]["routed"] / 1000


def test_overload_is_served_or_told_when_to_come_back(factory: RunningFactory) -> None:
    with ThreadPoolExecutor(40) as pool:
        with worker_filled(factory):
            before = sum(queue(factory)["refused_total"].values())
            asked = [pool.submit(complete, factory, 200, 8) for _ in range(40)]
            until(factory, lambda: sum(queue(factory)["refused_total"].values()) == before + 28)
            until(factory, lambda: queue(factory)["queued"] == 12)
        answers = [one.result() for one in asked]
    statuses = [status for status, _, _ in answers]
    assert (statuses.count(200), statuses.count(429)) == (12, 28)
    for status, headers, body in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert body["error"]["code"] == "overloaded"
        else:
            assert body["usage"]["completion_tokens"] == 8
    assert queue(factory)["queued"] == 0


def test_a_deadline_in_the_queue_is_504(factory: RunningFactory) -> None:
    with worker_filled(factory):
        status, headers, body = complete(factory, 50, 4, x_request_deadline_ms="200")
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert int(headers["retry-after"]) >= 1


def test_priorities_overtake(factory: RunningFactory) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked: list[Future] = []
        with worker_filled(factory):
            for number, priority in enumerate([0, 0, -5, 0, 7]):
                name = f"overtake-{number}"
                headers = {"x_request_id": name, "x_request_priority": str(priority)}
                asked.append(pool.submit(complete, factory, 50, 4, **headers))
                until(factory, lambda count=number + 1: queue(factory)["queued"] == count)
        assert [one.result()[0] for one in asked] == [200] * 5
    order = sorted(range(5), key=lambda number: admitted_at(factory, f"overtake-{number}"))
    assert order == [4, 0, 1, 3, 2]


def test_a_flood_does_not_starve_another_tenant(factory: RunningFactory) -> None:
    with ThreadPoolExecutor(24) as pool:
        flood: list[Future] = []
        few: list[Future] = []
        with worker_filled(factory):
            before = sum(queue(factory)["refused_total"].values())
            for number in range(20):  # eight more than the queue takes
                headers = {"x_tenant_id": "flood", "x_request_id": f"flood-{number}"}
                flood.append(pool.submit(complete, factory, 50, 4, **headers))
            until(factory, lambda: sum(queue(factory)["refused_total"].values()) == before + 8)
            for number in range(3):
                headers = {"x_tenant_id": "few", "x_request_id": f"few-{number}"}
                few.append(pool.submit(complete, factory, 50, 4, **headers))
            until(factory, lambda: sum(queue(factory)["refused_total"].values()) == before + 11)
        assert [one.result()[0] for one in few] == [200] * 3
        statuses = [one.result()[0] for one in flood]
    assert (statuses.count(200), statuses.count(429)) == (9, 11)
    admitted = {f"few-{number}": admitted_at(factory, f"few-{number}") for number in range(3)}
    for number, status in enumerate(statuses):
        if status == 200:
            admitted[f"flood-{number}"] = admitted_at(factory, f"flood-{number}")
    order = sorted(admitted, key=admitted.__getitem__)
    # Turn by turn, though the flood was there first.
    assert sum(name.startswith("few") for name in order[:6]) == 3


def test_cancelled_in_the_queue_leaves_no_trace(factory: RunningFactory) -> None:
    def load(name: str) -> int:
        (worker,) = factory.worker_loads()
        return int(str(worker[name]))

    with worker_filled(factory):
        until(factory, lambda: load("running") == 1 and load("waiting_prefill_tokens") == 0)
        connections = [connect(factory) for _ in range(5)]
        for connection in connections:
            send(connection, 100, 4)
        until(factory, lambda: queue(factory)["queued"] == 5)
        for connection in connections:
            connection.close()
        until(factory, lambda: queue(factory)["queued"] == 0)
        before = load("prefill_tokens_total")
    until(factory, lambda: queue(factory)["busy_workers"] == 0)
    assert complete(factory, 64, 2)[0] == 200
    until(factory, lambda: load("prefill_tokens_total") > before)
    assert load("prefill_tokens_total") == before + 64
    assert load("streams") == 0
