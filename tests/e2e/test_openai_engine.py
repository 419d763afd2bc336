"""A factory in front of another one, which it knows as a server of OpenAI's API alone: text in, text out."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.e2e.streams import start_factory, until

from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes

KEY = "sk-this-key-is-never-shown"
CHAT = {"messages": [{"role": "user", "content": "Tell me of mills."}], "seed": 7, "max_tokens": 24}


def ask(factory: RunningFactory, body: dict, path: str = "/v1/chat/completions") -> tuple[int, list | dict]:
    """Returns the events of a stream without "[DONE]", or the body."""
    request = urllib.request.Request(
        factory.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = answer.read().decode()
            if not body.get("stream"):
                return answer.status, json.loads(data)
            events = [block.removeprefix("data: ") for block in data.split("\n\n") if block]
            assert events[-1] == "[DONE]"
            return answer.status, [json.loads(event) for event in events[:-1]]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def text_of(events: list) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    return texts


def hosted(url: str, **fields: object) -> dict:
    stage = {
        "name": "hosted",
        "engine": "openai",
        "attach": f"{url}/v1",
        "attach_key": "env:TOKENMILL_TEST_UPSTREAM_KEY",
        "price": {"input": 1.0, "cached": 0.25, "output": 4.0},
        "engine_args": {"breaker_failures": 2, "breaker_open_s": 0.3, "breaker_longest_s": 0.6},
    }
    return {"metadata": {"name": "front"}, "stages": [stage], **fields}


def upstream_spec() -> dict:
    stage = {"name": "w", "replicas": 1, "engine": "sim", "engine_args": {"speedup": 50}}
    return {"metadata": {"name": "behind"}, "model": {"name": "mini"}, "stages": [stage]}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory) -> Iterator[RunningFactory]:
    factory = start_factory(tmp_path_factory.mktemp("behind"), upstream_spec())
    try:
        factory.wait_ready()
        yield factory
    finally:
        status = factory.stop()
    assert status == 0, factory.log()


@pytest.fixture(scope="module")
def front_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("front")


@pytest.fixture(scope="module")
def front(upstream: RunningFactory, front_folder: Path) -> Iterator[RunningFactory]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENMILL_TEST_UPSTREAM_KEY", KEY)
        factory = start_factory(front_folder, hosted(upstream.url, model={"name": "far", "path": "mini"}))
    try:
        factory.wait_ready()
        yield factory
    finally:
        status = factory.stop()
    assert status == 0, factory.log()


def test_answers_are_those_of_the_server_behind(upstream: RunningFactory, front: RunningFactory):
    _, direct = ask(upstream, {**CHAT, "n": 2})
    status, passed = ask(front, {**CHAT, "n": 2, "model": "far"})
    assert status == 200
    assert passed["choices"] == direct["choices"]
    assert passed["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
    assert passed["usage"]["prompt_tokens"] == direct["usage"]["prompt_tokens"]
    assert passed["model"] == "far"


def test_streams_pass_through_with_usage_stop_and_all_choices(
    upstream: RunningFactory, front: RunningFactory
):
    _, whole = ask(upstream, CHAT)
    content = whole["choices"][0]["message"]["content"]
    stop = content[len(content) // 2 :][:4]
    body = {**CHAT, "n": 2, "stream": True, "stream_options": {"include_usage": True}, "stop": [stop]}
    _, direct = ask(upstream, body)
    status, passed = ask(front, {**body, "model": "far"})
    assert status == 200
    assert text_of(passed) == text_of(direct)
    assert stop not in text_of(passed)[0]
    reasons = {
        choice["index"]: choice["finish_reason"]
        for event in passed
        for choice in event["choices"]
        if choice["finish_reason"]
    }
    assert reasons == {0: "stop", 1: reasons[1]}
    assert passed[-1]["choices"] == []
    assert passed[-1]["usage"]["completion_tokens"] == direct[-1]["usage"]["completion_tokens"]
    assert {event["model"] for event in passed} == {"far"}


def test_completions_pass_through_with_what_only_the_server_knows(upstream, front: RunningFactory):
    body = {"prompt": [72, 105], "max_tokens": 4, "logprobs": 1, "return_token_ids": True, "seed": 1}
    _, direct = ask(upstream, body, "/v1/completions")
    status, passed = ask(front, {**body, "model": "far"}, "/v1/completions")
    assert (status, passed["choices"]) == (200, direct["choices"])


def test_what_the_server_refuses_the_client_is_told(front: RunningFactory):
    status, answer = ask(front, {**CHAT, "temperature": 9})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "temperature" in answer["error"]["message"]
    status, answer = ask(front, {**CHAT, "model": "other"})
    assert status == 404


def test_the_key_is_shown_nowhere(front: RunningFactory, front_folder: Path):
    ask(front, CHAT)
    for path in ("/health", "/metrics"):
        assert KEY not in front.get(path)[1]
    processes = [
        psutil.Process(front.process.pid),
        *psutil.Process(front.process.pid).children(recursive=True),
    ]
    assert all(KEY not in word for process in processes for word in process.cmdline())
    kept = [path for path in front_folder.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in kept)


def test_tokens_and_their_price_are_counted(front: RunningFactory):
    def counted(name: str) -> float:
        lines = front.get("/metrics")[1].splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    before = counted("tokenmill_cost_total")
    _, answer = ask(front, CHAT)
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    fresh = usage["prompt_tokens"] - cached
    cost = (fresh * 1.0 + cached * 0.25 + usage["completion_tokens"] * 4.0) / 1e6
    assert counted("tokenmill_cost_total") - before == pytest.approx(cost)


def test_every_model_that_the_server_lists_can_be_had(upstream: RunningFactory, tmp_path: Path):
    spec = hosted(upstream.url)
    del spec["stages"][0]["attach_key"]
    factory = start_factory(tmp_path, spec)
    try:
        factory.wait_ready()
        assert [model["id"] for model in json.loads(factory.get("/v1/models")[1])["data"]] == ["mini"]
        assert ask(factory, {**CHAT, "model": "mini"})[0] == 200
    finally:
        assert factory.stop() == 0, factory.log()


async def test_a_server_that_goes_opens_the_circuit_and_its_return_closes_it(tmp_path: Path):
    (tmp_path / "behind").mkdir()
    (tmp_path / "front").mkdir()
    behind = start_factory(tmp_path / "behind", upstream_spec())
    behind.wait_ready()
    spec = hosted(behind.url, model={"name": "mini"}, frontend={"worker_wait_s": 0.2})
    del spec["stages"][0]["attach_key"]
    front = start_factory(tmp_path / "front", spec)

    def state() -> str:
        return front.worker_loads()[0]["circuit"]

    def fails() -> bool:
        assert ask(front, CHAT)[0] in (502, 503)
        return state() == "open"

    try:
        front.wait_ready()
        assert ask(front, CHAT)[0] == 200
        assert behind.stop() == 0
        await until(fails, front.log)
        again = RunningFactory._run(
            tmp_path / "behind", behind.port, "up", str(tmp_path / "behind/factory.yaml"), "--foreground"
        )
        try:
            again.wait_ready()
            await until(lambda: ask(front, CHAT)[0] == 200, front.log)
            await until(lambda: state() == "closed")
        finally:
            again.stop()
    finally:
        behind.stop()
        assert front.stop() == 0, front.log()
