"""Tools of chats: what the model is told, what the engine is made to do, and what clients get."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager

import pytest

from tokenmill.errors import ConfigError

from .conftest import reply
from .tool_models import tokens_of, write_tool_model

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
SHAPED = {"constraints": ["response_format", "structured_outputs"]}


@pytest.fixture
def tools_plant(make_plant, tmp_path):
    """A frontend whose model says ``text``."""

    @asynccontextmanager
    async def make(text: str, *, shows: str = "hermes", special=(), card=None, pace_s=0.0, **settings):
        folder = write_tool_model(tmp_path / "m", shows, special)
        async with make_plant(model=str(folder), **settings) as plant:
            output = tokens_of(text, special)
            await plant.worker("b1", lambda request: output, card=card, pace_s=pace_s)
            yield plant

    return make


def prompt(plant) -> str:
    names = {257: "<user>", 258: "<assistant>", 256: "<end>", 259: "<system>"}
    return "".join(names.get(token) or chr(token) for token in plant.workers[0].requests[-1].prompt)


def gathered(answer) -> list[dict]:
    """Streamed choices as messages, with their finish reasons; checks what OpenAI's clients rely on."""
    found: dict[int, dict] = {}
    for event in answer.events[:-1]:
        for choice in event["choices"]:
            at = found.setdefault(choice["index"], {"content": "", "calls": [], "finish_reason": None})
            assert at["finish_reason"] is None
            at["finish_reason"] = choice["finish_reason"]
            delta = choice["delta"]
            at["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls", []):
                if call["index"] == len(at["calls"]):
                    assert call["type"] == "function"
                    assert call["function"]["arguments"] == ""
                    at["calls"].append({"id": call["id"], **call["function"]})
                else:
                    assert set(call) == {"index", "function"}
                    assert call["index"] == len(at["calls"]) - 1
                    at["calls"][-1]["arguments"] += call["function"]["arguments"]
    return [found[index] for index in sorted(found)]


def whole(answer) -> list[dict]:
    """Choices of an answer that is not streamed, in the same form."""
    found = []
    for choice in answer.json()["choices"]:
        message = choice["message"]
        assert (message["role"], message["refusal"]) == ("assistant", None)
        calls = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", [])]
        assert all(call["type"] == "function" for call in message.get("tool_calls", []))
        assert "tool_calls" not in message or message["content"] != ""
        finish = choice["finish_reason"]
        found.append({"content": message["content"] or "", "calls": calls, "finish_reason": finish})
    return found


async def ask(plant, stream: bool, **fields) -> list[dict]:
    answer = await plant.chat(stream=stream, **fields)
    assert answer.status == 200, answer.body
    return gathered(answer) if stream else whole(answer)


STREAM = pytest.mark.parametrize("stream", [False, True])


@STREAM
async def test_calls_come_as_calls(tools_plant, stream):
    async with tools_plant(f"Let me see.\n{CALL}\n{CALL}") as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS, parallel_tool_calls=True)
        assert prompt(plant) == "T2:weather|<user>hi<end><assistant>"
    assert choice["content"] == "Let me see."
    assert choice["finish_reason"] == "tool_calls"
    assert [(call["name"], call["arguments"]) for call in choice["calls"]] == [
        ("weather", '{"city": "Bern"}')
    ] * 2
    ids = {call["id"] for call in choice["calls"]}
    assert len(ids) == 2
    assert all(re.fullmatch("call_[A-Za-z0-9]{24}", each) for each in ids)


async def test_content_is_null_where_there_are_only_calls(tools_plant):
    async with tools_plant(CALL) as plant:
        body = (await plant.chat(tools=TOOLS)).json()
    message = body["choices"][0]["message"]
    assert message["content"] is None
    assert body["usage"]["completion_tokens"] == len(CALL) + 1


async def test_arguments_stream_as_they_are_made(tools_plant):
    async with tools_plant(CALL, pace_s=0.001) as plant:
        answer = await plant.chat(tools=TOOLS, stream=True, stream_options={"include_usage": True})
    deltas = [event["choices"][0]["delta"] for event in answer.events[:-2]]
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert pieces[0]["function"] == {"name": "weather", "arguments": ""}
    assert [piece["function"]["arguments"] for piece in pieces[1:]] == list('{"city": "Bern"}')
    assert answer.events[-2]["usage"]["completion_tokens"] == len(CALL) + 1


@STREAM
async def test_each_choice_is_read_apart(tools_plant, stream):
    async with tools_plant(CALL) as plant:
        choices = await ask(plant, stream, tools=TOOLS, n=3)
    assert len({choice["calls"][0]["id"] for choice in choices}) == 3
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls"] * 3


@STREAM
async def test_one_call_where_one_is_wanted(tools_plant, stream):
    async with tools_plant(CALL * 3) as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS, parallel_tool_calls=False)
    assert len(choice["calls"]) == 1


@STREAM
async def test_text_stays_text(tools_plant, stream):
    async with tools_plant(" Hello <tool_calls>!\n") as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS, tool_choice="auto")
    assert choice == {"content": " Hello <tool_calls>!\n", "calls": [], "finish_reason": "stop"}


@STREAM
async def test_a_broken_call_is_content(tools_plant, stream):
    bad = '<tool_call>{"name": "weather", "arguments": {"city" "Bern"}}</tool_call>'
    async with tools_plant(bad) as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS)
    assert (choice["content"], choice["finish_reason"]) == (bad, "stop")
    # What was streamed before it broke cannot be taken back; it is no JSON.
    assert [call["arguments"] for call in choice["calls"]] == (['{"city" '] if stream else [])


@STREAM
async def test_a_call_may_be_cut_off(tools_plant, stream):
    async with tools_plant(CALL) as plant:
        at = CALL.index("Be")
        (choice,) = await ask(plant, stream, tools=TOOLS, max_tokens=at)
    assert (choice["content"], choice["finish_reason"]) == ("", "length")
    assert [call["arguments"] for call in choice["calls"]] == ['{"city": "']


MARKED = {
    "mistral": (
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}}]',
        ["[TOOL_CALLS]", "[ARGS]"],
        "[A-Za-z0-9]{9}",
    ),
    "hermes": (CALL, ["<tool_call>", "</tool_call>"], "call_.*"),
    "llama3_json": (
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Bern"}}',
        ["<|python_tag|>"],
        "call_.*",
    ),
    "pythonic": ("<|python_start|>[weather(city='Bern')]<|python_end|>", ["<|python_start|>"], "call_.*"),
}


@STREAM
@pytest.mark.parametrize("shows", MARKED)
async def test_marks_may_be_special_tokens(tools_plant, stream, shows):
    text, special, form = MARKED[shows]
    if shows == "pythonic":
        special = ["<|python_start|>", "<|python_end|>"]
    async with tools_plant(text, shows=shows, special=special) as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS)
        (plain,) = await ask(plant, stream)
    assert choice["content"] == ""
    (call,) = choice["calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Bern"})
    assert re.fullmatch(form, call["id"])
    assert not any(mark in plain["content"] for mark in special)


async def test_the_factory_may_name_the_parser(tools_plant, make_plant, tmp_path):
    async with tools_plant(CALL, shows="nothing") as plant:
        (choice,) = await ask(plant, False, tools=TOOLS)
        assert prompt(plant).startswith("T2:weather|")
    assert (choice["content"], choice["calls"]) == (CALL, [])
    async with tools_plant(CALL, shows="nothing", tool_parser="hermes") as plant:
        assert (await ask(plant, False, tools=TOOLS))[0]["calls"]
    async with tools_plant(CALL, tool_parser="none") as plant:
        assert not (await ask(plant, False, tools=TOOLS))[0]["calls"]
    with pytest.raises(ConfigError, match="tool_parser"):
        async with tools_plant(CALL, tool_parser="herms"):
            pass


async def test_each_of_several_models_has_its_parser(make_plant, tmp_path):
    paths = {name: str(write_tool_model(tmp_path / name, "hermes")) for name in ("a", "b")}
    async with make_plant(model="", model_paths=paths, model_tool_parsers={"b": "none"}) as plant:
        formats = {model.name: model.tool_format for model in plant.server.handler._service.models.all}
    assert formats["a"].name == "hermes"
    assert formats["b"] is None


@STREAM
async def test_without_a_choice_to_call_nothing_is_told_or_read(tools_plant, stream):
    async with tools_plant(CALL) as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS, tool_choice="none")
        assert prompt(plant) == "<user>hi<end><assistant>"
    assert (choice["content"], choice["calls"], choice["finish_reason"]) == (CALL, [], "stop")


REQUIRED = '[{"name": "weather", "arguments": {"city": "Bern"}}]'
NAMED = {"type": "function", "function": {"name": "weather"}}


@STREAM
async def test_required_shapes_the_output(tools_plant, stream):
    async with tools_plant(REQUIRED, card=SHAPED) as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS, tool_choice="required")
        (request,) = plant.workers[0].requests
    assert [(call["name"], call["arguments"]) for call in choice["calls"]] == [
        ("weather", '{"city": "Bern"}')
    ]
    assert (choice["content"], choice["finish_reason"]) == ("", "tool_calls")
    shape = request.sampling.constraints["response_format"]
    assert shape["type"] == "json_schema"
    schema = shape["json_schema"]["schema"]
    assert (schema["type"], schema["minItems"], "maxItems" in schema) == ("array", 1, False)
    first, second = schema["items"]["anyOf"]
    assert first["properties"]["name"]["enum"] == ["weather"]
    assert first["properties"]["arguments"] == WEATHER["function"]["parameters"]
    assert second["properties"]["arguments"]["properties"] == {}


@STREAM
async def test_a_named_function_is_called(tools_plant, stream):
    async with tools_plant('{"city": "Bern"}', card={"constraints": ["structured_outputs"]}) as plant:
        (choice,) = await ask(plant, stream, tools=TOOLS, tool_choice=NAMED)
        (request,) = plant.workers[0].requests
    assert [(call["name"], call["arguments"]) for call in choice["calls"]] == [
        ("weather", '{"city": "Bern"}')
    ]
    assert choice["finish_reason"] == "tool_calls"
    assert request.sampling.constraints == {"structured_outputs": {"json": WEATHER["function"]["parameters"]}}


async def test_a_response_format_does_not_shape_calls(tools_plant):
    answer_shape = {"type": "json_object"}
    async with tools_plant(REQUIRED, card=SHAPED) as plant:
        await ask(plant, False, tools=TOOLS, tool_choice="required", response_format=answer_shape,
                  parallel_tool_calls=False)  # fmt: skip
        await ask(plant, False, tools=TOOLS, response_format=answer_shape)
        first, second = plant.workers[0].requests
    assert first.sampling.constraints["response_format"]["json_schema"]["schema"]["maxItems"] == 1
    assert second.sampling.constraints == {"response_format": answer_shape}


BAD = [
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tools": ["x"]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [WEATHER, {"type": "function", "function": {"name": ""}}]}, "tools[1].function.name"),
    ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "x", "parameters": [1]}}]},
        "tools[0].function.parameters",
    ),
    ({"tools": [TIME] * 513}, "tools"),
    ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),  # this engine cannot be made to
    ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": 5}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED}, "tool_choice"),
    ({"functions": [{"name": "x"}]}, "functions"),
    ({"function_call": {"name": "x"}}, "function_call"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ({"chat_template_kwargs": {"tools": []}, "tools": TOOLS}, "chat_template_kwargs.tools"),
    ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages[0].tool_calls[0].function"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": 5}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[json.dumps(fields)[:60] for fields, _ in BAD])
async def test_bad_fields_are_named(aggregated, fields, param):
    answer = await aggregated.chat(**fields)
    error = answer.json()["error"]
    assert (answer.status, error["param"]) == (400, param), error
    assert param in error["message"]
    assert not aggregated.workers[0].requests


async def test_a_call_and_a_shape_exclude_each_other(tools_plant):
    async with tools_plant("", card=SHAPED) as plant:
        answer = await plant.chat(tools=TOOLS, tool_choice="required", structured_outputs={"choice": ["a"]})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "structured_outputs")


async def test_calls_and_their_results_reach_the_model(tools_plant):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"a": "é"}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]},
    ]
    async with tools_plant("Sun.") as plant:
        await ask(plant, False, tools=TOOLS, messages=messages)
        assert prompt(plant).encode("latin-1").decode() == (
            "T2:weather|<user>hi<end><assistant>(weather é)<end><|tool|>sun<end><assistant>"
        )
        body = {"messages": messages, "tools": TOOLS}
        tokens = (await plant.post("/tokenize", body)).json()["tokens"]
        assert tokens == plant.workers[0].requests[-1].prompt


async def test_every_token_is_told_of_where_they_are_asked_for(tools_plant):
    async with tools_plant(CALL) as plant:
        answer = await plant.chat(tools=TOOLS, stream=True, logprobs=True, return_token_ids=True)
    choices = [event["choices"][0] for event in answer.events[:-1]]
    told = [token for choice in choices for token in choice.get("token_ids", [])]
    assert told == list(CALL.encode())
    scored = [
        entry["token"] for choice in choices[1:] for entry in (choice["logprobs"] or {}).get("content", [])
    ]
    assert "".join(scored) == CALL
    (choice,) = gathered(answer)
    assert choice["calls"][0]["arguments"] == '{"city": "Bern"}'


async def test_stop_strings_come_before_calls(tools_plant):
    async with tools_plant("So: " + CALL) as plant:
        (choice,) = await ask(plant, True, tools=TOOLS, stop="<tool_call>")
    assert choice == {"content": "So: ", "calls": [], "finish_reason": "stop"}


async def test_a_chat_without_tools_is_not_read(make_plant, tmp_path):
    folder = write_tool_model(tmp_path / "m", "hermes")
    async with make_plant(model=str(folder)) as plant:
        await plant.worker("b1", reply(CALL))
        assert await ask(plant, True) == [{"content": CALL, "calls": [], "finish_reason": "stop"}]
