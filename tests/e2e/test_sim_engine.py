"""The simulated engine behind real processes: needs no torch, and aggregated equals disaggregated."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from tokenmill.testing.running_factory import RunningFactory

Serve = Callable[..., RunningFactory]

pytestmark = pytest.mark.processes


def complete(factory: RunningFactory, **fields: object) -> dict:
    body = {
        "model": "tokenmill-mini",
        "prompt": list(range(300, 400)),
        "max_tokens": 32,
        "temperature": 0,
        **fields,
    }
    request = urllib.request.Request(
        f"{factory.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-request-id": "mine"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["x-request-id"] == "mine"
        return json.load(answer)


def test_disaggregated_equals_aggregated_over_every_transport(serve: Serve) -> None:
    split = serve("--engine", "sim", "--prefill", "2", "--decode", "2", "--router-prefill", "remote")
    both = serve("--engine", "sim", "--both", "1")
    a = [complete(split, prompt=[300 + i] * 50)["choices"][0]["text"] for i in range(6)]
    b = [complete(both, prompt=[300 + i] * 50)["choices"][0]["text"] for i in range(6)]
    assert a == b
    assert len(set(a)) == 6


def test_cached_tokens_are_reported(serve: Serve) -> None:
    factory = serve("--engine", "sim", "--both", "1")
    first = complete(factory)
    second = complete(factory)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 80
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_children_die_with_a_killed_supervisor(serve: Serve) -> None:
    factory = serve("--engine", "sim")
    children = psutil.Process(factory.process.pid).children(recursive=True)
    assert len(children) == 3
    factory.process.kill()
    factory.process.wait(10)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) == 3
    factory.process.returncode = 0  # killed on purpose: the fixture need not mind


def test_ctrl_c_drains_and_ends_well(serve: Serve) -> None:
    factory = serve("--engine", "sim")
    assert complete(factory)["choices"][0]["finish_reason"] == "length"
    factory.process.send_signal(signal.SIGINT)
    assert factory.process.wait(20) == 0


def test_a_dead_worker_is_started_again(serve: Serve) -> None:
    factory = serve("--engine", "sim", "--both", "1")
    (worker,) = factory.workers("both")
    worker.kill()
    deadline = time.monotonic() + 20
    while not [w for w in factory.workers("both") if w.pid != worker.pid] or factory.get("/ready")[0] != 200:
        assert time.monotonic() < deadline, factory.log()
        time.sleep(0.05)
    assert complete(factory)["choices"][0]["finish_reason"] == "length"
