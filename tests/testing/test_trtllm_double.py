"""The TensorRT-LLM double refuses what the engine's protocol does not allow, and keeps its order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from tokenmill.clock import SystemClock
from tokenmill.serve.engines.remote.http_client import HttpClient, HttpReply
from tokenmill.testing.trtllm_double.options import CacheOptions, EngineOptions, Quirks, TransceiverOptions
from tokenmill.testing.trtllm_double.server import TrtllmDouble

PROMPT = list(range(20, 60))


def made(
    quirks: Quirks | None = None, *, kv_timeout_ms: int | None = None, prefills: bool = True
) -> TrtllmDouble:
    config = TransceiverOptions(backend="DEFAULT", kv_transfer_timeout_ms=kv_timeout_ms)
    options = EngineOptions(
        disable_overlap_scheduler=prefills,
        enable_iter_perf_stats=True,
        cache_transceiver_config=config,
        kv_cache_config=CacheOptions(tokens_per_block=16, event_buffer_max_size=100),
    )
    return TrtllmDouble(SystemClock(), "org/name", options, quirks)


@pytest.fixture
async def double() -> AsyncIterator[TrtllmDouble]:
    running = made()
    await running.start()
    yield running
    await running.stop()


async def ask(double: TrtllmDouble, **fields: object) -> HttpReply:
    client = HttpClient(double.url)
    body = {"model": "org/name", "prompt": PROMPT, "max_tokens": 4, "detokenize": False, "temperature": 0}
    try:
        data = msgspec.json.encode({**body, **fields})
        return await client.request("POST", "/v1/completions", body=data, timeout_s=30)
    finally:
        await client.close()


def choice(reply: HttpReply) -> dict[str, object]:
    assert reply.status == 200, reply.body
    found: dict[str, object] = msgspec.json.decode(reply.body)["choices"][0]
    return found


async def prefilled(double: TrtllmDouble, **params: object) -> dict[str, object]:
    answer = choice(await ask(double, disaggregated_params={"request_type": "context_only", **params}))
    told = answer["disaggregated_params"]
    assert isinstance(told, dict)
    return {name: value for name, value in told.items() if value is not None} | {
        "request_type": "generation_only"
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"top_k": None}, "top_k"),
        ({"temperature": "hot"}, "temperature"),
        ({"return_token_ids": True}, "Extra inputs"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"stream_options": {"include_usage": True}}, "stream is true"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"suffix": "x"}, "suffix"),
        ({"disaggregated_params": {}}, "request type"),
        ({"disaggregated_params": {"request_type": "prefill"}}, "request type"),
        ({"disaggregated_params": {"request_type": "context_only", "opaque_state": ""}}, "opaque_state"),
        (
            {"disaggregated_params": {"request_type": "context_only", "first_gen_tokens": [1]}},
            "state of a prefill",
        ),
        ({"disaggregated_params": {"request_type": "generation_only"}}, "first_gen_tokens"),
    ],
)
async def test_fields_that_are_wrong(double: TrtllmDouble, fields: dict[str, object], words: str) -> None:
    reply = await ask(double, **fields)
    assert reply.status == 400
    assert words in reply.body.decode()
    assert len(double.completions.record.violations) == 1


async def test_a_missing_model(double: TrtllmDouble) -> None:
    client = HttpClient(double.url)
    reply = await client.request("POST", "/v1/completions", body=b'{"prompt": [1]}', timeout_s=30)
    await client.close()
    assert (reply.status, "Field required" in reply.body.decode()) == (400, True)


@pytest.mark.parametrize("missing", ["first_gen_tokens", "ctx_request_id", "encoded_opaque_state"])
async def test_a_decode_without_what_the_prefill_told(double: TrtllmDouble, missing: str) -> None:
    params = await prefilled(double)
    del params[missing]
    reply = await ask(double, disaggregated_params=params)
    assert (reply.status, missing in reply.body.decode()) == (400, True)


async def test_a_decode_continues_its_prefill_once(double: TrtllmDouble) -> None:
    whole = choice(await ask(double))["token_ids"]
    params = await prefilled(double)
    assert isinstance(whole, list)
    assert params["first_gen_tokens"] == whole[:1]
    assert choice(await ask(double, disaggregated_params=params))["token_ids"] == whole
    again = await ask(double, disaggregated_params=params)
    assert (again.status, "expired" in again.body.decode()) == (400, True)


async def test_a_decode_before_its_prefill(double: TrtllmDouble) -> None:
    params = await prefilled(double)
    reply = await ask(double, disaggregated_params={**params, "ctx_request_id": 99})
    assert reply.status == 400


async def test_another_cache_gives_other_tokens(double: TrtllmDouble) -> None:
    whole = choice(await ask(double))["token_ids"]
    foreign = choice(
        await ask(double, prompt=[9, *PROMPT[1:]], disaggregated_params={"request_type": "context_only"})
    )
    params = foreign["disaggregated_params"]
    assert isinstance(params, dict)
    told = choice(await ask(double, disaggregated_params={**params, "request_type": "generation_only"}))[
        "token_ids"
    ]
    assert isinstance(told, list)
    assert told != whole


async def test_a_cache_of_another_length_does_not_fit(double: TrtllmDouble) -> None:
    params = await prefilled(double)
    reply = await ask(double, prompt=PROMPT[1:], disaggregated_params=params)
    assert (reply.status, "40 tokens" in reply.body.decode()) == (400, True)


async def test_ids_given_from_outside(double: TrtllmDouble) -> None:
    refused = await ask(double, disaggregated_params={"request_type": "context_only", "disagg_request_id": 5})
    assert refused.status == 400
    params = await prefilled(double, disagg_request_id=1 << 50)
    wrong = await ask(double, disaggregated_params={**params, "disagg_request_id": (1 << 50) + 1})
    assert wrong.status == 400
    unnamed = await ask(double, disaggregated_params=params)
    assert unnamed.status == 400
    good = await ask(double, disaggregated_params={**params, "disagg_request_id": 1 << 50})
    assert good.status == 200


async def test_an_old_server_knows_no_ids_from_outside() -> None:
    old = made(Quirks(old=True))
    await old.start()
    refused = await ask(
        old, disaggregated_params={"request_type": "context_only", "disagg_request_id": 1 << 50}
    )
    assert (refused.status, "disagg_request_id" in refused.body.decode()) == (400, True)
    await old.stop()


async def test_a_prefill_for_others_with_an_overlapping_scheduler() -> None:
    overlapping = made(prefills=False)
    await overlapping.start()
    reply = await ask(overlapping, disaggregated_params={"request_type": "context_only"})
    assert (reply.status, "overlap" in reply.body.decode()) == (400, True)
    await overlapping.stop()


async def test_a_cache_that_nobody_wants_is_freed() -> None:
    double = made(kv_timeout_ms=1)
    await double.start()
    params = await prefilled(double)
    async with asyncio.timeout(30):
        while double.completions.record.caches_expired == 0:
            await asyncio.sleep(0.01)
    assert (await ask(double, disaggregated_params=params)).status == 400
    await double.stop()


async def test_text_unless_token_ids_are_asked_for(double: TrtllmDouble) -> None:
    answer = choice(await ask(double, detokenize=True))
    assert answer["token_ids"] is None
    assert answer["text"]


async def test_too_long_a_prompt(double: TrtllmDouble) -> None:
    assert (await ask(double, prompt=[9] * 5000)).status == 400


async def test_another_model_is_noted(double: TrtllmDouble) -> None:
    assert (await ask(double, model="other")).status == 200
    assert "other" in double.completions.record.violations[0]
