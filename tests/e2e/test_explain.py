"""What a real factory tells of a request that was handed over."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest

from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes


def complete(factory: RunningFactory, name: str) -> dict:
    body = {"prompt": list(range(300, 600)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{factory.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-request-id": name},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_request_is_explained_from_arrival_to_end(serve: Callable[..., RunningFactory]) -> None:
    factory = serve(
        *("--engine", "sim", "--prefill", "2", "--decode", "2"),
        *("--router-policy", "kv", "--router-prefill", "remote"),
    )
    factory.wait_for_mode("disaggregated")
    complete(factory, "first")
    answer = complete(factory, "second")
    told = json.loads(factory.get("/v1/explain/second")[1])
    assert told == json.loads(factory.get(f"/v1/explain/{answer['id']}")[1])
    assert told["tokens"] == {"prompt": 300, "output": 8}
    (choice,) = told["choices"]
    assert choice["tokens"]["cached"] == answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    (attempt,) = choice["attempts"]
    times = attempt["timeline_ms"]
    steps = ["asked", "routed", "sent", "cache_offered", "cache_transferred"]
    assert [name for name in times if name in steps] == steps
    assert 0 <= times["sent"] < times["first_token"] <= told["timeline_ms"]["finished"]
    chosen = {each["chosen"]: each["worker"] for each in attempt["candidates"] if each["chosen"]}
    assert chosen == {"prefill": attempt["prefill_worker"], "decode": attempt["decode_worker"]}
    assert {way["kind"] for way in attempt["ways"]} == {"local", "remote"}
    metrics = factory.get("/metrics")[1]
    for name in ("route", "prefill", "transfer_gap"):
        count = next(
            line for line in metrics.splitlines() if line.startswith(f"tokenmill_{name}_seconds_count")
        )
        assert float(count.split()[-1]) == 2
    status, body = factory.get("/v1/explain/third")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
