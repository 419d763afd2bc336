"""A plain vLLM server behind ``engine: openai``: it is known by OpenAI's API alone, and what it says
passes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e.streams import start_factory

from tokenmill.testing.running_factory import RunningFactory

from .plants import BLOCK, ENVIRONMENT, ONE_PROCESS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

KEY = "a-key-of-vllm"
CHAT = {"messages": [{"role": "user", "content": "tell me of mills"}], "max_tokens": 16, "temperature": 0}
UP_S = 300


class PlainServer:
    """``vllm serve`` as anybody would start it, with a key."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        words = [
            python, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "plain",
            "--host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1], "--api-key", KEY,
            "--dtype", "float32", "--max-model-len", "2048", "--block-size", str(BLOCK), "--enforce-eager",
            "--distributed-executor-backend", "uni", "--kv-cache-memory-bytes", str(128 * 2**20),
            "--enable-prompt-tokens-details",
        ]  # fmt: skip
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                words,
                env={**os.environ, **ENVIRONMENT, **ONE_PROCESS},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_up(self) -> None:
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text(errors="replace"))

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(vllm_python, checkpoint, tmp_path_factory) -> Iterator[PlainServer]:
    made = PlainServer(vllm_python, checkpoint("llama"), tmp_path_factory.mktemp("plain") / "log")
    try:
        made.wait_up()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def front(server: PlainServer, tmp_path_factory) -> Iterator[RunningFactory]:
    folder = tmp_path_factory.mktemp("front")
    (folder / "key").write_text(KEY)
    stage = {"name": "hosted", "engine": "openai", "attach": server.url, "attach_key": "file:key"}
    factory = start_factory(folder, {"metadata": {"name": "front"}, "stages": [stage]})
    try:
        factory.wait_ready()
        yield factory
    finally:
        status = factory.stop()
    assert status == 0, factory.log()


def ask(url: str, body: dict, path: str = "chat/completions") -> tuple[int, dict | list]:
    """Returns the events of a stream without "[DONE]", or the body."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(
        f"{url}/v1/{path}", json.dumps({"model": "plain", **body}).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            data = answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    if not body.get("stream"):
        return 200, json.loads(data)
    events = [block.removeprefix("data: ") for block in data.split("\n\n") if block]
    assert events[-1] == "[DONE]"
    return 200, [json.loads(event) for event in events[:-1]]


def told(events: list) -> list[tuple[int, str, str | None]]:
    """What a stream says, without what differs from run to run."""
    return [
        (choice["index"], choice["delta"].get("content") or "", choice["finish_reason"])
        for event in events
        for choice in event["choices"]
    ]


def texts(events: list) -> dict[int, str]:
    found: dict[int, str] = {}
    for index, text, _ in told(events):
        found[index] = found.get(index, "") + text
    return found


def test_its_model_is_listed_with_its_context(front: RunningFactory):
    (model,) = json.loads(front.get("/v1/models")[1])["data"]
    assert (model["id"], model["max_model_len"]) == ("plain", 2048)


def test_answers_are_its_own(server: PlainServer, front: RunningFactory):
    for body in (
        CHAT,
        {**CHAT, "logprobs": True, "top_logprobs": 2},
        {**CHAT, "n": 2, "temperature": 1, "seed": 3},
    ):
        _, direct = ask(server.url, body)
        status, passed = ask(front.url, body)
        assert (status, passed["choices"]) == (200, direct["choices"])
        assert passed["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]


def test_streams_are_its_own(server: PlainServer, front: RunningFactory):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    _, direct = ask(server.url, body)
    _, passed = ask(front.url, body)
    assert len(told(passed)) > 1
    assert texts(passed) == texts(direct)  # vLLM joins tokens into one piece as it finds time
    assert told(passed)[-1][2] == told(direct)[-1][2] == "length"
    assert passed[-1]["usage"]["prompt_tokens"] == direct[-1]["usage"]["prompt_tokens"]
    assert passed[-1]["usage"]["completion_tokens"] == 16
    content = texts(direct)[0]
    stop = content[len(content) // 2 :][:3]
    _, stopped = ask(front.url, {**body, "stop": stop})
    assert texts(stopped)[0] == content[: content.index(stop)]
    assert told(stopped)[-1][2] == "stop"
    _, two = ask(front.url, {**body, "n": 2, "temperature": 1, "seed": 5})
    assert sorted(texts(two)) == [0, 1]


def test_token_ids_and_structured_output_pass_through(server: PlainServer, front: RunningFactory):
    body = {"prompt": [300, 301, 302], "max_tokens": 5, "temperature": 0, "return_token_ids": True}
    _, direct = ask(server.url, body, "completions")
    _, passed = ask(front.url, body, "completions")
    assert passed["choices"][0]["token_ids"] == direct["choices"][0]["token_ids"]
    _, chosen = ask(front.url, {**CHAT, "structured_outputs": {"choice": ["ab", "cd"]}})
    assert chosen["choices"][0]["message"]["content"] in ("ab", "cd")


def test_its_refusals_are_told(front: RunningFactory):
    status, answer = ask(front.url, {**CHAT, "max_tokens": 100_000})
    assert status == 400
    assert "100000" in answer["error"]["message"]


def test_eight_at_once_all_get_their_own_answer(server: PlainServer, front: RunningFactory):
    bodies = [
        {**CHAT, "messages": [{"role": "user", "content": f"mill {index}"}], "stream": True}
        for index in range(8)
    ]
    alone = [texts(ask(server.url, body)[1]) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: texts(ask(front.url, body)[1]), bodies))
    assert together == alone


def test_its_death_is_an_error_and_no_hang(server: PlainServer, front: RunningFactory):
    """Last: nobody starts it again."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(
            cut_short, front.url, {**CHAT, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        )
        deadline = time.monotonic() + 60
        while not front.worker_loads()[0]["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)  # some pieces are on their way; none would be right, too
        server.stop()
        status, end = long.result(120)
    assert status in (200, 502, 503)
    assert "error" in end
    assert ask(front.url, CHAT)[0] in (502, 503)


def cut_short(url: str, body: dict) -> tuple[int, dict]:
    """Returns the status and the last event."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps({"model": "plain", **body}).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            events = [block for block in answer.read().decode().split("\n\n") if block]
            return answer.status, json.loads(events[-1].removeprefix("data: "))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
