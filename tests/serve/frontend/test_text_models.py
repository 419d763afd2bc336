"""Models whose workers take text: what passes through, what is ours, and what happens when a server fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.items import Failed, Item
from tokenmill.protocol.metrics import Circuit, StepMetrics
from tokenmill.protocol.text import TextFinished, TextPieces, TextUsage
from tokenmill.testing.scripted_worker import ScriptedWorker
from tokenmill.testing.tiny_tokenizer import write_tiny_tokenizer

from .conftest import Plant, reply

TOLD = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500, "cost_details": "x"}
USAGE = TextUsage(1000, 400, 500, json.dumps(TOLD).encode())
PRICES = {"input": 2.0, "cached": 0.5, "output": 10.0}
TEXT = {"speaks": "text", "model": "hosted", "prices": PRICES, "kv_blocks": 0, "max_model_len": 0}


def choice(text: str, reason: str | None = None, index: int = 0) -> bytes:
    delta = {"content": text, "reasoning_content": "hm", "tool_calls": [{"index": 0}]}
    return json.dumps([{"index": index, "delta": delta, "finish_reason": reason}]).encode()


STREAMED = [choice("Hel"), choice("lo", "stop")]
WHOLE = json.dumps([{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]).encode()


def answers(request: GenerateRequest) -> list[Item]:
    if request.text.stream:
        return [TextPieces(0, STREAMED[:1]), TextFinished(1, STREAMED[1:], "stop", USAGE)]
    return [TextFinished(0, [WHOLE], "stop", USAGE)]


def failing(*items: Item) -> Callable[[GenerateRequest], list[Item]]:
    return lambda request: list(items)


@pytest.fixture
async def plant(make_plant) -> AsyncIterator[Plant]:
    async with make_plant(model="", text_models=["hosted"]) as made:
        yield made


async def add(plant: Plant, name: str = "t1", items=answers, **card) -> ScriptedWorker:
    worker = ScriptedWorker(plant.registry, name, lambda request: [], card=card_of(**card), items=items)
    plant.stack.push_async_callback(worker.stop)
    await worker.start()
    await plant.until(lambda: knows(plant, name))
    return worker


def card_of(**fields) -> dict:
    from tokenmill.protocol.card import Prices, Speech

    card = {**TEXT, **fields}
    return {**card, "speaks": Speech(card["speaks"]), "prices": Prices(**card["prices"])}


def knows(plant: Plant, name: str) -> bool:
    models = plant.server.handler._service.models.all
    return any(
        link.card.worker_id == name and link.usable for model in models for link in model.workers.links()
    )


async def test_a_stream_passes_through_with_our_names_around_it(plant: Plant):
    worker = await add(plant)
    answer = await plant.chat(
        model="hosted", stream=True, stream_options={"include_usage": True}, tools=[{"type": "function"}],
        response_format={"type": "json_object"}, priority=3, seed=1,
    )  # fmt: skip
    assert answer.status == 200
    first, second, usage, done = answer.events
    assert first["choices"] == json.loads(STREAMED[0])
    assert second["choices"] == json.loads(STREAMED[1])
    assert (first["model"], first["object"], first["usage"]) == ("hosted", "chat.completion.chunk", None)
    assert first["id"].startswith("chatcmpl-")
    assert (usage["choices"], usage["usage"], done) == ([], TOLD, "[DONE]")
    asked = worker.requests[0].text
    assert (asked.path, asked.model, asked.stream) == ("chat/completions", "", True)
    assert json.loads(asked.fields) == {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_object"},
        "seed": 1,
    }


async def test_a_whole_answer_passes_through(plant: Plant):
    worker = await add(plant)
    answer = await plant.complete(model="hosted", prompt=["a", "b"], n=2)
    body = answer.json()
    assert (body["choices"], body["usage"]) == (json.loads(WHOLE), TOLD)
    assert (body["object"], body["model"]) == ("text_completion", "hosted")
    assert json.loads(worker.requests[0].text.fields)["n"] == 2
    assert worker.requests[0].text.path == "completions"


async def test_an_answer_without_usage_says_so(plant: Plant):
    await add(plant, items=failing(TextFinished(0, [WHOLE], "stop")))
    assert (await plant.chat()).json()["usage"] is None


async def test_tokens_and_cost_are_counted_as_the_server_tells(plant: Plant):
    await add(plant)
    request_id = (await plant.chat()).headers["x-request-id"]
    text = (await plant.ask("GET", "/metrics")).body.decode()
    assert "tokenmill_prompt_tokens_total 1000.0" in text
    assert "tokenmill_cached_tokens_total 400.0" in text
    assert "tokenmill_output_tokens_total 500.0" in text
    cost = next(line for line in text.splitlines() if line.startswith("tokenmill_cost_total"))
    assert float(cost.split()[1]) == pytest.approx((600 * 2.0 + 400 * 0.5 + 500 * 10.0) / 1e6)
    assert 'tokenmill_worker_price_per_million_tokens{kind="output",worker="t1"} 10.0' in text
    told = (await plant.ask("GET", f"/v1/explain/{request_id}")).json()
    assert told["tokens"] == {"prompt": 1000, "output": 500}
    assert told["choices"][0]["tokens"]["cached"] == 400


async def test_a_server_that_fails_before_the_first_piece_is_replaced(plant: Plant):
    broken = await add(plant, "t1", failing(Failed(502, "upstream_failed", "down", retryable=True)))
    good = await add(plant, "t2")
    for _ in range(4):
        assert (await plant.chat(stream=True)).events[-1] == "[DONE]"
    assert len(good.requests) == 4
    assert broken.requests


async def test_a_server_that_fails_later_ends_the_stream_with_an_error(plant: Plant):
    lost = Failed(502, "upstream_lost", "it broke", retryable=True)
    await add(plant, items=failing(TextPieces(0, STREAMED[:1]), lost))
    await add(plant, "t2", failing(TextPieces(0, STREAMED[:1]), lost))
    answer = await plant.chat(stream=True)
    assert answer.status == 200
    piece, error = answer.events
    assert piece["choices"] == json.loads(STREAMED[0])
    assert error["error"]["code"] == "upstream_lost"
    assert "a part of the answer was sent already" in error["error"]["message"]


async def test_what_a_server_refuses_is_told_to_the_client(plant: Plant):
    await add(plant, items=failing(Failed(400, "upstream_refused", "too hot")))
    answer = await plant.chat(temperature=2)
    assert (answer.status, answer.json()["error"]["message"]) == (400, "too hot")


async def test_a_worker_whose_circuit_is_open_gets_nothing(plant: Plant):
    open_one = await add(plant, "t1")
    await add(plant, "t2")
    open_one.report(StepMetrics(circuit=Circuit.OPEN))
    await plant.until(lambda: not knows(plant, "t1"))
    for _ in range(4):
        await plant.chat()
    assert not open_one.requests
    workers = (await plant.ask("GET", "/health")).json()["worker_list"]
    shown = {each["id"]: (each["state"], each["circuit"]) for each in workers}
    assert shown == {"t1": ("broken", "open"), "t2": ("ready", "closed")}
    text = (await plant.ask("GET", "/metrics")).body.decode()
    assert 'tokenmill_worker_circuit{role="both",state="broken",worker="t1"} 2.0' in text
    open_one.report(StepMetrics(circuit=Circuit.HALF_OPEN))
    await plant.until(lambda: knows(plant, "t1"))


async def test_nobody_there_is_503(plant: Plant):
    answer = await plant.chat()
    assert (answer.status, answer.json()["error"]["code"]) == (503, "no_worker")


async def test_a_client_that_leaves_cancels_at_the_worker(plant: Plant):
    worker = await add(plant)
    worker.mute = True
    for stream in (True, False):
        asked = asyncio.ensure_future(plant.chat(stream=stream))
        await plant.until(lambda: len(worker.requests) > len(worker.cancelled))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await plant.until(lambda: len(worker.requests) == len(worker.cancelled))
    assert plant.server.handler._service.metrics.in_flight == 0


async def test_a_request_that_takes_too_long_is_504(make_plant):
    async with make_plant(model="", text_models=["hosted"], request_timeout_s=0.05) as plant:
        (await add(plant)).mute = True
        assert (await plant.chat()).status == 504


async def test_the_longest_output_is_ours_to_limit(make_plant):
    async with make_plant(model="", text_models=["hosted"], max_output_tokens=10) as plant:
        worker = await add(plant)
        too_much = await plant.chat(max_completion_tokens=11)
        assert (too_much.status, too_much.json()["error"]["param"]) == (400, "max_completion_tokens")
        await plant.chat()
        await plant.chat(max_tokens=3)
        assert [json.loads(each.text.fields)["max_tokens"] for each in worker.requests] == [10, 3]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 99}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": 3}, "messages"),
    ],
)
async def test_what_we_must_understand_is_checked(plant: Plant, fields, param):
    await add(plant)
    answer = await plant.chat(**fields)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_there_is_no_tokenizer_for_it(plant: Plant):
    await add(plant)
    answer = await plant.post("/tokenize", {"prompt": "a"})
    assert answer.status == 422
    assert answer.json()["error"]["message"] == "the model `hosted` has no tokenizer here"


async def test_every_model_of_a_server_can_be_asked_for(make_plant):
    async with make_plant(model="", text_models=["*"]) as plant:
        ab = await add(plant, "ab", model="*", offers=["a", "b"])
        bc = await add(plant, "bc", model="*", offers=["b", "org/c"])
        listed = (await plant.ask("GET", "/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["a", "b", "org/c"]
        for _ in range(3):
            assert (await plant.chat(model="org/c")).json()["model"] == "org/c"
        assert [each.text.model for each in bc.requests] == ["org/c"] * 3
        assert not ab.requests
        missing = await plant.chat(model="d")
        assert missing.status == 404
        assert "this server has `a`, `b`, `org/c`" in missing.json()["error"]["message"]
        assert (await plant.chat(model="*")).status == 404
        assert (await plant.chat()).status == 400
        await bc.stop()
        await plant.until(lambda: not knows(plant, "bc"))
        assert (await plant.chat(model="org/c")).status == 404
        assert (await plant.chat(model="b")).status == 200


async def test_text_and_tokens_live_behind_one_door(make_plant, tmp_path):
    paths = {"own": str(write_tiny_tokenizer(tmp_path / "own"))}
    async with make_plant(model="", model_paths=paths, text_models=["hosted"]) as plant:
        await add(plant)
        own = ScriptedWorker(plant.registry, "o1", reply("mine"), card={"model": "own"})
        plant.stack.push_async_callback(own.stop)
        await own.start()
        await plant.until(lambda: knows(plant, "o1"))
        mine = await plant.chat(model="own")
        assert mine.json()["choices"][0]["message"]["content"] == "mine"
        assert (await plant.chat(model="hosted")).json()["choices"] == json.loads(WHOLE)
        text = (await plant.ask("GET", "/metrics")).body.decode()
        assert 'tokenmill_cost_total{model="own"} 0.0' in text


async def test_a_worker_of_the_wrong_speech_is_never_asked(plant: Plant, model_folder):
    tokens = ScriptedWorker(plant.registry, "w1", reply("tokens"), card={"model": "hosted"})
    plant.stack.push_async_callback(tokens.stop)
    await tokens.start()
    await add(plant)
    assert not knows(plant, "w1")
    assert (await plant.chat()).status == 200


async def test_prompts_that_begin_alike_go_where_they_went(make_plant):
    async with make_plant(model="", text_models=["hosted"], router_policy="kv") as plant:
        workers = [await add(plant, f"t{index}") for index in range(3)]
        system = {"role": "system", "content": "be brief. " * 200}
        for turn in range(6):
            await plant.chat(messages=[system, {"role": "user", "content": f"question {turn}"}])
        assert sorted(len(worker.requests) for worker in workers) == [0, 0, 6]


def test_the_request_survives_its_frame():
    from tokenmill.protocol.calls import Call, Generate
    from tokenmill.protocol.generate import Sampling
    from tokenmill.protocol.ids import RequestId
    from tokenmill.protocol.text import TextRequest

    request = GenerateRequest(
        request_id=RequestId("r"),
        prompt=[],
        sampling=Sampling(max_tokens=0),
        text=TextRequest(path="completions", fields=b'{"a":1}', tokens=2),
    )
    frame = msgspec.msgpack.encode(Generate(request))
    assert msgspec.msgpack.decode(frame, type=Call) == Generate(request)
    for item in answers(request):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(item), type=Item) == item
