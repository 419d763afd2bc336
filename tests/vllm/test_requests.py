"""What a client asks for reaches a real server, and comes back: log probabilities, shapes, hanging up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request

import pytest
from tests.e2e.streams import Client, until

from .plants import Plant, greedy, prompts
from .servers import Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PLANT = {"both": 1, "every_args": {"enable_scale_out": "true"}}
MADE = "vllm:generation_tokens_total"
MANY = 3000


def ask(plant: Plant, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        plant.factory.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture
def server(plant: Plant) -> Server:
    (server,) = plant.servers("both")
    return server


def test_the_route_for_tokens_gives_what_completions_give(plant: Plant, server: Server) -> None:
    route = {"handler": "/inference/v1/generate"}
    for index, prompt in enumerate(prompts(4, "route")):
        body = greedy(prompt, 8, logprobs=2, seed=5, temperature=0.8 * (index % 2), top_k=5)
        before = server.metric("http_requests_total", **route)
        (ours,) = ask(plant, "/v1/completions", {**body, "return_token_ids": True})["choices"]
        assert server.metric("http_requests_total", **route) > before
        # Seeds of choices are made of the client's, so that a sampled output is compared in length alone.
        (theirs,) = server.complete({**body, "cache_salt": f"alone-{index}"})["choices"]
        assert len(ours["token_ids"]) == len(theirs["token_ids"]) == 8
        if not index % 2:
            assert ours["token_ids"] == theirs["token_ids"]
            scores = [each["logprobs"]["token_logprobs"] for each in (ours, theirs)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
            tops = [
                [sorted(top.values()) for top in each["logprobs"]["top_logprobs"]] for each in (ours, theirs)
            ]
            for one, other in zip(*tops, strict=True):
                assert one == pytest.approx(other, abs=1e-4)


def test_the_output_is_shaped_as_the_client_says(plant: Plant) -> None:
    words = ["aa", "bb"]
    for wanted in words:
        body = {"prompt": prompts(1, wanted)[0], "max_tokens": 8, "temperature": 0}
        (free,) = ask(plant, "/v1/completions", body)["choices"]
        (shaped,) = ask(plant, "/v1/completions", {**body, "structured_outputs": {"choice": [wanted]}})[
            "choices"
        ]
        assert free["text"] != wanted
        assert (shaped["text"], shaped["finish_reason"]) == (wanted, "stop")
    chat = {"messages": [{"role": "user", "content": "say"}], "max_tokens": 40, "temperature": 0}
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    (choice,) = ask(plant, "/v1/chat/completions", {**chat, "response_format": shape})["choices"]
    if choice["finish_reason"] == "stop":  # random weights may like blanks without end
        assert json.loads(choice["message"]["content"]) == {"a": "b"}
    assert choice["message"]["content"].strip()[:1] in ("{", "")


async def test_who_hangs_up_aborts_his_request(plant: Plant, server: Server) -> None:
    before = server.metric(MADE)
    client = Client(plant.factory, greedy(prompts(1, "hang up")[0], MANY), "hang-up")
    running = asyncio.create_task(client.run())
    await until(lambda: client.tokens)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric(MADE) - before < MANY
