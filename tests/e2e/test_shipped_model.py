"""OpenAI's client against the shipped model: one prefill and one decode worker, real processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import openai
import pytest

from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes
pytest.importorskip("torch")

CODE_PROMPT = "The code word is {word}. Please remember it. What is the code word?"


@pytest.fixture(scope="module")
def factory(serve_module: Callable[..., RunningFactory]) -> RunningFactory:
    # float32: in bfloat16 the same request may round differently in another batch, and so end differently.
    stages = ("--prefill", "1", "--decode", "1", "--router-prefill", "remote")
    factory = serve_module(*stages, "--dtype", "float32")
    # A decode worker that is there first serves alone until the prefill worker comes.
    factory.wait_for_mode("disaggregated")
    return factory


@pytest.fixture
async def client(factory: RunningFactory) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{factory.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def model(client: openai.AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def text_of(stream: AsyncIterator[object]) -> str:
    parts = []
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            parts.append(chunk.choices[0].delta.content)
    return "".join(parts)


async def test_answers_in_english(client: openai.AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(
        model=model, messages=ask("What is a KV cache?"), temperature=0
    )
    text = answer.choices[0].message.content or ""
    assert "cache" in text.lower() or "key" in text.lower()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 3


@pytest.mark.parametrize("word", ["amber-falcon-27", "velvet-anchor-93"])
async def test_the_code_word_arrives_with_the_cache(
    client: openai.AsyncOpenAI, model: str, word: str
) -> None:
    answer = await client.chat.completions.create(
        model=model, messages=ask(CODE_PROMPT.format(word=word)), temperature=0
    )
    assert word in (answer.choices[0].message.content or "")


async def test_it_answers_as_it_is_served_by_default(serve: Callable[..., RunningFactory]) -> None:
    url = f"{serve().url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        name = (await client.models.list()).data[0].id
        answer = await client.chat.completions.create(
            model=name, messages=ask(CODE_PROMPT.format(word="copper-lantern-58")), temperature=0
        )
    assert "copper-lantern-58" in (answer.choices[0].message.content or "")


async def test_prefill_and_decode_really_are_apart(
    factory: RunningFactory, client: openai.AsyncOpenAI, model: str
) -> None:
    await client.chat.completions.create(model=model, messages=ask("Hello!"), temperature=0)
    await asyncio.sleep(0.5)
    workers = {worker["role"]: worker for worker in factory.worker_loads()}
    assert workers["prefill"]["handoffs_out_total"] > 0
    assert workers["decode"]["handoffs_in_total"] > 0
    assert workers["decode"]["prefill_tokens_total"] == 0


async def test_streaming_equals_not_streaming(client: openai.AsyncOpenAI, model: str) -> None:
    request = {
        "model": model,
        "messages": ask("Tell me a story about a robot."),
        "temperature": 0,
        "max_tokens": 80,
    }
    whole = await client.chat.completions.create(**request)
    stream = await client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    parts, usage, finish = [], None, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(parts) == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details is not None


async def test_seeded_sampling_repeats(client: openai.AsyncOpenAI, model: str) -> None:
    async def once(seed: int) -> list[str | None]:
        answer = await client.chat.completions.create(
            model=model, messages=ask("Tell me a story."), seed=seed, n=2, max_tokens=40, temperature=1.5
        )
        return [choice.message.content for choice in answer.choices]

    first = await once(1)
    assert await once(1) == first
    assert await once(2) != first
    assert first[0] != first[1]


async def test_stop_strings_and_logprobs(client: openai.AsyncOpenAI, model: str) -> None:
    request = {"model": model, "messages": ask("What is prefill?"), "temperature": 0}
    whole = (await client.chat.completions.create(**request)).choices[0].message.content or ""
    word = whole.split()[3]
    cut = (await client.chat.completions.create(**request, stop=[word])).choices[0]
    assert cut.message.content == whole[: whole.index(word)]
    assert cut.finish_reason == "stop"
    scored = await client.chat.completions.create(**request, max_tokens=5, logprobs=True, top_logprobs=3)
    entries = scored.choices[0].logprobs.content
    assert len(entries) == 5
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)


async def test_completions_with_token_ids_and_echo(
    factory: RunningFactory, client: openai.AsyncOpenAI, model: str
) -> None:
    text = await client.completions.create(
        model=model, prompt="The code word is", max_tokens=8, temperature=0
    )
    echoed = await client.completions.create(
        model=model, prompt="The code word is", max_tokens=8, temperature=0, echo=True, logprobs=1
    )
    assert echoed.choices[0].text == "The code word is" + text.choices[0].text
    logprobs = echoed.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == echoed.usage.prompt_tokens + 8
    ids = await client.completions.create(
        model=model, prompt=[[300, 301, 302], [303, 304]], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in ids.choices] == [0, 1]


async def test_errors_name_the_field(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=model, messages=ask("Hi"), temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="no-such-model", messages=ask("Hi"))
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model=model, prompt=[10] * 100_000, max_tokens=4)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=model, messages=[])


async def test_64_at_once_all_answer_rightly(client: openai.AsyncOpenAI, model: str) -> None:
    words = [
        f"{colour}-{animal}-{i}"
        for i, (colour, animal) in enumerate(
            (c, a)
            for c in ("amber", "velvet", "copper", "silver")
            for a in ("falcon", "anchor", "lantern", "meadow")
        )
    ] * 4

    async def once(word: str, streamed: bool) -> str:
        messages = ask(CODE_PROMPT.format(word=word))
        if streamed:
            return await text_of(
                await client.chat.completions.create(
                    model=model, messages=messages, temperature=0, stream=True
                )
            )
        answer = await client.chat.completions.create(model=model, messages=messages, temperature=0)
        return answer.choices[0].message.content or ""

    alone = {word: await once(word, streamed=False) for word in set(words)}
    texts = await asyncio.gather(*(once(word, i % 2 == 0) for i, word in enumerate(words)))
    assert len(texts) == 64
    assert texts == [alone[word] for word in words]
    assert sum(word in text for word, text in zip(words, texts, strict=True)) >= 60


async def test_a_disconnect_reaches_the_engines(
    factory: RunningFactory, client: openai.AsyncOpenAI, model: str
) -> None:
    stream = await client.completions.create(
        model=model, prompt="Once", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        workers = factory.worker_loads()
        if all(worker["running"] + worker["kv_blocks_used"] == 0 for worker in workers):
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"still running: {workers}")


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_kill_9_in_mid_request_loses_nothing(
    factory: RunningFactory, client: openai.AsyncOpenAI, model: str, role: str
) -> None:
    request = {"model": model, "prompt": "Once upon a time", "max_tokens": 600, "temperature": 0}
    extra = {"ignore_eos": True}
    expected = (await client.completions.create(**request, extra_body=extra)).choices[0].text

    async def once() -> str:
        stream = await client.completions.create(**request, stream=True, extra_body=extra)
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    tasks = [asyncio.create_task(once()) for _ in range(6)]
    await asyncio.sleep(0.4)
    (victim,) = factory.workers(role)
    victim.kill()
    texts = await asyncio.gather(*tasks, return_exceptions=True)
    good = [text for text in texts if text == expected]
    errors = [text for text in texts if isinstance(text, openai.APIError)]
    assert len(good) + len(errors) == len(tasks), texts
    deadline = time.monotonic() + 30
    while len(factory.workers(role)) != 1 or factory.get("/ready")[0] != 200:
        assert time.monotonic() < deadline, factory.log()
        await asyncio.sleep(0.1)
    again = await client.completions.create(**request, extra_body=extra)
    assert again.choices[0].text == expected
    deadline = time.monotonic() + 45  # an export that nobody fetched is held for its lease of 30 s
    while any(w["kv_blocks_used"] + w["exported"] + w["running"] for w in factory.worker_loads()):
        assert time.monotonic() < deadline, factory.worker_loads()
        await asyncio.sleep(0.1)


async def test_metrics_count_tokens(factory: RunningFactory, client: openai.AsyncOpenAI, model: str) -> None:
    def counted() -> float:
        text = factory.get("/metrics")[1]
        (line,) = [x for x in text.splitlines() if x.startswith("tokenmill_output_tokens_total")]
        return float(line.split()[-1])

    before = counted()
    answer = await client.chat.completions.create(model=model, messages=ask("Hello!"), temperature=0)
    assert counted() - before == answer.usage.completion_tokens
