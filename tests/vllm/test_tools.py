"""A real server made to call functions: random weights give calls that fit their schemas."""

from __future__ import annotations

import json
import urllib.request

import pytest

from .plants import Plant

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

# Random weights may like blanks without end, where blanks are allowed.
COMPACT = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
PLANT = {"both": 1, "every_args": {"structured_outputs_config": COMPACT}}

UNIT = {"type": "string", "enum": ["celsius", "kelvin"]}
WEATHER = {
    "type": "object",
    "properties": {"unit": {"$ref": "#/$defs/Unit"}, "now": {"type": "boolean"}},
    "required": ["unit", "now"],
    "additionalProperties": False,
    "$defs": {"Unit": UNIT},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "time"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}


def chat(plant: Plant, **fields) -> dict:
    """The choice of a chat; where it is streamed, put together."""
    body = {"messages": [{"role": "user", "content": "say"}], "tools": TOOLS, "max_tokens": 200, **fields}
    url = f"{plant.factory.url}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read().decode()
    if not fields.get("stream"):
        (choice,) = json.loads(text)["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert choice["message"]["content"] is None
        return {**call["function"], "finish_reason": choice["finish_reason"]}
    found = {"name": "", "arguments": ""}
    for line in text.split("\n\n"):
        data = line.removeprefix("data: ")
        if not data or data == "[DONE]":
            continue
        (choice,) = json.loads(data)["choices"]
        found["finish_reason"] = choice["finish_reason"]
        for call in choice["delta"].get("tool_calls", []):
            assert call["index"] == 0
            for name, piece in call["function"].items():
                found[name] += piece
    return found


def check(call: dict) -> None:
    assert call["finish_reason"] == "tool_calls"
    arguments = json.loads(call["arguments"])
    if call["name"] == "time":
        assert arguments == {}
        return
    assert call["name"] == "weather"
    assert set(arguments) == {"unit", "now"}
    assert arguments["unit"] in UNIT["enum"]
    assert isinstance(arguments["now"], bool)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_that_must_be_fit_their_schemas(plant: Plant, stream: bool) -> None:
    for seed in range(4):
        fields = {"stream": stream, "seed": seed, "temperature": 1.0}
        check(chat(plant, tool_choice="required", parallel_tool_calls=False, **fields))
        call = chat(plant, tool_choice=NAMED, **fields)
        assert call["name"] == "weather"
        check(call)


def test_calls_that_may_be_leave_the_model_free(plant: Plant) -> None:
    body = {"messages": [{"role": "user", "content": "say"}], "tools": TOOLS, "max_tokens": 8}
    url = f"{plant.factory.url}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        (choice,) = json.load(answer)["choices"]
    assert choice["finish_reason"] in ("length", "stop")
    assert choice["message"]["content"]
