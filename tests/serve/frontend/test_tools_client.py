"""Tools as users' programs use them: the ``openai`` package against our server, around and around."""

from __future__ import annotations

import json

import openai
import pytest

from .tool_models import tokens_of, write_tool_model

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "days": [1, 2]}}\n</tool_call>'
ANSWER = "Rain in Bern."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
]
ASKED = {"role": "user", "content": "hi"}


@pytest.fixture
async def client(make_plant, tmp_path):
    """A model that calls the tool, and answers once it has its result."""
    folder = write_tool_model(tmp_path / "m", "hermes")
    result = b"sun"

    def script(request):
        return tokens_of(ANSWER if result in bytes(t for t in request.prompt if t < 256) else CALL)

    async with make_plant(model=str(folder)) as plant:
        await plant.worker("b1", script, pace_s=0.0005)
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{plant.port}/v1", api_key="none", max_retries=0
        ) as made:
            yield made


def result_of(call) -> dict:
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Bern", "days": [1, 2]}
    return {"role": "tool", "tool_call_id": call.id, "content": "sun"}


async def test_a_turn_with_a_tool(client):
    first = await client.chat.completions.create(model="m", messages=[ASKED], tools=TOOLS)
    message = first.choices[0].message
    assert (message.content, first.choices[0].finish_reason) == (None, "tool_calls")
    messages = [ASKED, message, *(result_of(call) for call in message.tool_calls)]
    second = await client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == (ANSWER, "stop")


async def test_a_streamed_turn_with_a_tool(client):
    seen = []
    async with client.chat.completions.stream(model="m", messages=[ASKED], tools=TOOLS) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                seen.append(event.arguments_delta)
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert final.choices[0].finish_reason == "tool_calls"
    assert call.function.parsed_arguments == {"city": "Bern", "days": [1, 2]}
    assert "".join(seen) == call.function.arguments
    assert len(seen) > 5
    messages = [ASKED, final.choices[0].message.model_dump(exclude_none=True), result_of(call)]
    async with client.chat.completions.stream(model="m", messages=messages, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


async def test_what_an_engine_cannot_do_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="m", messages=[ASKED], tools=TOOLS, tool_choice="required")
    assert bad.value.param == "tool_choice"
