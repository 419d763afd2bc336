from __future__ import annotations

import json

import pytest

from tokenmill.protocol.ids import Role

from .conftest import REPLY, reply

PROMPT = "<|user|>hi<|end|><|assistant|>"
PROMPT_IDS = [257, 104, 105, 256, 258]


async def test_whole_answer(aggregated):
    answer = await aggregated.chat()
    body = answer.json()
    assert answer.status == 200, body
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": REPLY, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    tokens = len(REPLY.encode()) + 1
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": tokens,
        "total_tokens": 5 + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_the_worker_gets_the_rendered_prompt(aggregated):
    await aggregated.chat(seed=5, temperature=0)
    (request,) = aggregated.workers[0].requests
    assert request.prompt == PROMPT_IDS
    assert (request.sampling.seed, request.sampling.temperature) == (5, 0)
    assert request.sampling.max_tokens == 4096 - 5


async def test_streamed_answer(aggregated):
    answer = await aggregated.chat(stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == REPLY
    *chunks, usage, done = answer.events
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(REPLY.encode()) + 1


async def test_a_stream_without_options_has_no_usage(aggregated):
    events = (await aggregated.chat(stream=True)).events
    assert all("usage" not in event for event in events if event != "[DONE]")


@pytest.mark.parametrize("stream", [False, True])
async def test_disaggregated(disaggregated, stream):
    answer = await disaggregated.chat(stream=stream)
    text = answer.text if stream else answer.json()["choices"][0]["message"]["content"]
    assert text == REPLY
    prefill, decode = disaggregated.workers
    assert [request.role for request in prefill.requests] == [Role.PREFILL]
    assert [request.role for request in decode.requests] == [Role.DECODE]
    assert decode.requests[0].handoff.descriptor == prefill.requests[0].request_id.encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_length(aggregated, stream, field):
    answer = await aggregated.chat(stream=stream, **{field: 5})
    if stream:
        assert answer.text == "Hello"
        assert answer.events[-2]["choices"][0]["finish_reason"] == "length"
    else:
        choice = answer.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["lo, w", ["zzz", "lo, w", "!"]])
async def test_stop_strings(plant, stream, stop):
    worker = await plant.worker("b", reply(REPLY * 3), pace_s=0.002)
    answer = await plant.chat(
        stream=stream, stop=stop, stream_options={"include_usage": True} if stream else None
    )
    if stream:
        assert answer.text == "Hel"
        assert answer.events[-3]["choices"][0]["finish_reason"] == "stop"
        usage = answer.events[-2]["usage"]
    else:
        choice = answer.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "stop")
        usage = answer.json()["usage"]
    assert usage["completion_tokens"] == 8
    await plant.until(lambda: len(worker.cancelled) == 1)


async def test_a_stop_string_may_be_kept(aggregated):
    body = (await aggregated.chat(stop="lo", include_stop_str_in_output=True)).json()
    assert body["choices"][0]["message"]["content"] == "Hello"


async def test_a_stop_string_that_never_completes_is_let_go(aggregated):
    assert (await aggregated.chat(stop="d!x", stream=True)).text == REPLY


@pytest.mark.parametrize("stream", [False, True])
async def test_n(aggregated, stream):
    answer = await aggregated.chat(n=3, seed=1, stream=stream)
    worker = aggregated.workers[0]
    assert len({request.sampling.seed for request in worker.requests}) == 3
    assert len({request.request_id for request in worker.requests}) == 3
    if stream:
        texts = ["", "", ""]
        reasons = {}
        for event in answer.events[:-1]:
            (choice,) = event["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
        assert texts == [REPLY] * 3
        assert reasons == {0: "stop", 1: "stop", 2: "stop"}
    else:
        body = answer.json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["prompt_tokens"] == 5
        assert body["usage"]["completion_tokens"] == 3 * (len(REPLY.encode()) + 1)


async def test_the_same_seed_gives_the_same_seeds(aggregated):
    await aggregated.chat(n=2, seed=1)
    await aggregated.chat(n=2, seed=1)
    await aggregated.chat(n=2)
    seeds = [request.sampling.seed for request in aggregated.workers[0].requests]
    assert seeds[:2] == seeds[2:4]
    assert len({*seeds[2:]}) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(aggregated, stream):
    answer = await aggregated.chat(logprobs=True, top_logprobs=2, max_tokens=2, stream=stream)
    if stream:
        content = [
            entry
            for event in answer.events[:-1]
            if event["choices"][0]["logprobs"]
            for entry in event["choices"][0]["logprobs"]["content"]
        ]
    else:
        content = answer.json()["choices"][0]["logprobs"]["content"]
    assert content == [
        {
            "token": "H",
            "logprob": -0.072,
            "bytes": [72],
            "top_logprobs": [
                {"token": "H", "logprob": -0.072, "bytes": [72]},
                {"token": "I", "logprob": -1.072, "bytes": [73]},
            ],
        },
        {
            "token": "e",
            "logprob": -0.101,
            "bytes": [101],
            "top_logprobs": [
                {"token": "e", "logprob": -0.101, "bytes": [101]},
                {"token": "f", "logprob": -1.101, "bytes": [102]},
            ],
        },
    ]


async def test_logprobs_leave_the_end_token_out(plant):
    await plant.worker("b", reply("ab"))
    body = (await plant.chat(logprobs=True)).json()
    entries = body["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["a", "b"]
    assert all(entry["top_logprobs"] == [] for entry in entries)


async def test_token_ids(plant):
    await plant.worker("b", reply("ab"))
    body = (await plant.chat(return_token_ids=True)).json()
    assert body["prompt_token_ids"] == PROMPT_IDS
    assert body["choices"][0]["token_ids"] == [97, 98]
    events = (await plant.chat(return_token_ids=True, stream=True)).events
    assert events[0]["prompt_token_ids"] == PROMPT_IDS
    assert [token for event in events[1:-2] for token in event["choices"][0]["token_ids"]] == [97, 98]


async def test_special_tokens_are_shown_on_request(plant):
    await plant.worker("b", lambda request: [97, 257, 98, 256])
    assert (await plant.chat()).json()["choices"][0]["message"]["content"] == "ab"
    shown = await plant.chat(skip_special_tokens=False)
    assert shown.json()["choices"][0]["message"]["content"] == "a<|user|>b"


async def test_parts_and_continuation(aggregated):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    await aggregated.chat(messages=[{"role": "user", "content": parts}])
    await aggregated.chat(
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ab"}],
        continue_final_message=True,
    )
    first, second = aggregated.workers[0].requests
    assert first.prompt == [257, 104, 10, 105, 256, 258]
    assert second.prompt == [257, 104, 105, 256, 258, 97, 98]


async def test_cached_tokens_are_reported(plant):
    worker = await plant.worker("b")
    worker.cached_tokens = 4
    body = (await plant.chat(n=2)).json()
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


async def test_unknown_fields_are_ignored(aggregated):
    answer = await aggregated.chat(
        store=True, metadata={"a": 1}, service_tier="auto", reasoning_effort="low", whatever=[1, {"x": None}]
    )
    assert answer.status == 200


async def test_no_op_values_are_taken(aggregated):
    answer = await aggregated.chat(
        best_of=1, tools=[], tool_choice="none", response_format={"type": "text"}, modalities=["text"],
        temperature=None, stop=None, logit_bias=None, user="me", frequency_penalty=0, model="tiny",
    )  # fmt: skip
    assert answer.status == 200, answer.json()


BAD = [
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"min_p": -1}, "min_p"),
    ({"top_k": -2}, "top_k"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": "x" * 2000}, "stop"),
    ({"stop": 5}, "stop"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"stop_token_ids": [9999]}, "stop_token_ids"),
    ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"best_of": 2}, "best_of"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"self": 1, "tools": []}}, "chat_template_kwargs.tools"),
    ({"n": 10**400}, "n"),
    ({"top_k": -(10**400)}, "top_k"),
    ({"priority": 10**400}, "priority"),
    ({"max_tokens": 10**4299}, "max_tokens"),
    ({"max_tokens": -(10**4299)}, "max_tokens"),
    ({"stop_token_ids": [10**4299]}, "stop_token_ids"),
    ({"seed": "x"}, "seed"),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[json.dumps(fields)[:60] for fields, _ in BAD])
async def test_bad_fields_are_named(aggregated, fields, param):
    answer = await aggregated.chat(**fields)
    error = answer.json()["error"]
    assert answer.status == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.split(".")[0].split("[")[0] in error["message"]
    assert not aggregated.workers[0].requests


async def test_the_context_is_told_in_numbers(aggregated):
    error = (await aggregated.chat(max_tokens=4092)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    for number in ("4096", "4097", "4092", "(5 "):
        assert number in error["message"]
    too_long = await aggregated.chat(messages=[{"role": "user", "content": "x" * 5000}])
    assert too_long.status == 400
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    assert too_long.json()["error"]["param"] == "messages"
    assert (await aggregated.chat(max_tokens=4091)).status == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"x"', b'{"messages":' + b"[" * 5000]
)
async def test_bad_json(aggregated, body):
    answer = await aggregated.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json()["error"]["message"]


async def test_half_a_surrogate_is_refused(aggregated):
    answer = await aggregated.post(
        "/v1/chat/completions", b'{"messages":[{"role":"user","content":"\\ud800"}]}'
    )
    assert answer.status == 400


async def test_a_template_variable_may_have_any_name(aggregated):
    variables = {"self": 1, "template": 2, "messages_": 3, "a b": 4}
    assert (await aggregated.chat(chat_template_kwargs=variables, max_tokens=1)).status == 200


async def test_another_model(aggregated):
    answer = await aggregated.chat(model="gpt-9")
    assert answer.status == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_limits_of_the_server(make_plant):
    async with make_plant(max_prompt_tokens=4, max_output_tokens=7, default_max_tokens=6) as plant:
        worker = await plant.worker("b")
        assert (await plant.chat()).status == 413
        assert (await plant.complete(max_tokens=8)).status == 400
        assert (await plant.complete(max_tokens=None)).status == 200
        assert worker.requests[0].sampling.max_tokens == 6
