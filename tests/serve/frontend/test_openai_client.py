"""What users' programs see: the ``openai`` package against our server."""

from __future__ import annotations

import openai
import pytest

from tokenmill.protocol.items import Failed

from .conftest import REPLY


@pytest.fixture
async def client(disaggregated):
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{disaggregated.port}/v1", api_key="none", max_retries=0
    ) as made:
        yield made


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def test_chat(client):
    answer = await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].logprobs.content[0].token == "H"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_streamed_chat(client):
    stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(REPLY.encode()) + 1


async def test_completions(client):
    answer = await client.completions.create(model="tiny", prompt=["ab", "c"], max_tokens=4, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hell", "Hell"]
    assert answer.choices[1].logprobs.text_offset == [0, 1, 2, 3]
    stream = await client.completions.create(model="tiny", prompt="ab", max_tokens=4, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hell"


async def test_models(client):
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_errors_have_their_classes(client, disaggregated):
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(**CHAT, temperature=5)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(**{**CHAT, "model": "other"})
    disaggregated.workers[0].fail = Failed(429, "queue_full", "full", retryable=False)
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(**CHAT)
