from __future__ import annotations

import pytest

from .conftest import REPLY, reply


async def test_whole_answer(aggregated):
    body = (await aggregated.complete()).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": REPLY, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == 3
    assert aggregated.workers[0].requests[0].prompt == [97, 98, 99]


async def test_sixteen_tokens_are_the_default(aggregated):
    await aggregated.post("/v1/completions", {"prompt": "abc"})
    assert aggregated.workers[0].requests[0].sampling.max_tokens == 16


async def test_streamed_answer(aggregated):
    answer = await aggregated.complete(stream=True, stream_options={"include_usage": True})
    assert answer.text == REPLY
    assert answer.events[-3]["choices"] == [
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer.events[-2]["usage"]["total_tokens"] == 3 + len(REPLY.encode()) + 1


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
async def test_kinds_of_prompts(aggregated, prompt, prompts):
    body = (await aggregated.complete(prompt=prompt, n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(prompts)))
    asked = [request.prompt for request in aggregated.workers[0].requests]
    assert asked == [ids for ids in prompts for _ in range(2)]
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(plant, stream):
    await plant.worker("b", reply("ab"))
    answer = await plant.complete(logprobs=1, stream=stream)
    if stream:
        parts = [event["choices"][0]["logprobs"] for event in answer.events[:-1]]
        logprobs = {key: [] for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        for part in parts:
            for key, values in (part or {}).items():
                logprobs[key] += values
    else:
        logprobs = answer.json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.097, -0.098],
        "top_logprobs": [{"a": -0.097}, {"b": -0.098}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_echo(plant, stream):
    await plant.worker("b", reply("de"))
    answer = await plant.complete(echo=True, stream=stream)
    assert (answer.text if stream else answer.json()["choices"][0]["text"]) == "abcde"


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_scores_the_prompt(plant, stream, prompt):
    worker = await plant.worker("b", reply("d"))
    answer = await plant.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=0, stream=stream)
    assert worker.requests[0].sampling.prompt_logprobs == 0
    assert worker.requests[0].sampling.max_tokens == 1
    choice = answer.events[0]["choices"][0] if stream else answer.json()["choices"][0]
    assert choice["text"] == "abc"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -0.098, -0.099],
        "top_logprobs": [None, {"b": -0.098}, {"c": -0.099}],
        "text_offset": [0, 1, 2],
    }
    if stream:
        assert answer.text == "abc"
    else:
        assert answer.json()["usage"]["completion_tokens"] == 0


async def test_echo_with_logprobs_disaggregated(disaggregated):
    body = (await disaggregated.complete(echo=True, logprobs=1, max_tokens=3)).json()
    assert body["choices"][0]["text"] == "abcHel"
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert body["choices"][0]["logprobs"]["token_logprobs"][0] is None


async def test_token_ids(plant):
    await plant.worker("b", reply("de"))
    choice = (await plant.complete(return_token_ids=True)).json()["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([97, 98, 99], [100, 101])
    events = (await plant.complete(return_token_ids=True, stream=True)).events
    assert events[0]["choices"][0]["prompt_token_ids"] == [97, 98, 99]


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], ["a", 1], [1, "a"], [[1], "a"], [1, [2]], [9999], [-1], [[1], [9999]], ["a"] * 200, 5],
)
async def test_bad_prompts(aggregated, prompt):
    answer = await aggregated.complete(prompt=prompt)
    assert answer.status == 400
    assert answer.json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4094}, "max_tokens"),
        ({"prompt": ["a"] * 20, "n": 16}, "n"),
    ],
)
async def test_bad_fields_are_named(aggregated, fields, param):
    answer = await aggregated.complete(**fields)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


async def test_a_missing_prompt_is_named(aggregated):
    answer = await aggregated.post("/v1/completions", {"model": "tiny"})
    assert answer.json()["error"]["param"] == "prompt"


async def test_sampling_reaches_the_worker(aggregated):
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 1,
        "frequency_penalty": -1, "repetition_penalty": 1.1, "seed": -3, "logit_bias": {"97": -100},
        "min_tokens": 2, "stop_token_ids": [5], "ignore_eos": True, "priority": 4, "cache_salt": "s",
    }  # fmt: skip
    assert (await aggregated.complete(**fields)).status == 200
    request = aggregated.workers[0].requests[0]
    sampling = request.sampling
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"):
        assert getattr(sampling, name) == fields[name]
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
    assert (sampling.logit_bias, sampling.stop_token_ids) == ({97: -100.0}, (5,))
    assert sampling.seed == (-3) & (2**63 - 1)
    assert (request.priority, request.cache_salt) == (4, "s")


async def test_top_p_zero_is_greedy(aggregated):
    await aggregated.complete(top_p=0)
    sampling = aggregated.workers[0].requests[0].sampling
    assert (sampling.top_k, sampling.top_p) == (1, 1.0)
