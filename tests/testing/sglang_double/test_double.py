"""The SGLang double itself: made-up tokens, pages, pairs, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from tests.waiting import until

from tokenmill.testing.sglang_double import DoubleSettings, SglangDouble
from tokenmill.testing.sglang_double.contract import Params
from tokenmill.testing.sglang_double.pages import Pages
from tokenmill.testing.sglang_double.tokens import is_end, next_token, ranked

PROMPT = list(range(20, 70))


# Tokens -------------------------------------------------------------------------------------------------


def one(ids: list[int], eos: int = -1, made: int = 0, **params: object) -> int:
    return next_token(ids, made, Params(**params), 1000, eos)[0]  # type: ignore[arg-type]


def test_a_token_depends_on_every_one_before_it() -> None:
    told = {one([*PROMPT[:at], 999, *PROMPT[at + 1 :]], temperature=0.0) for at in range(len(PROMPT))}
    assert len(told) > len(PROMPT) * 0.9
    assert one(PROMPT, temperature=0.0) == one(PROMPT, temperature=0.0) == ranked(PROMPT, 1000)[0][0]


def test_the_draw_depends_on_seed_and_position() -> None:
    drawn = {one(PROMPT, sampling_seed=seed) for seed in range(50)}
    assert 1 < len(drawn) <= 8
    assert one(PROMPT, sampling_seed=3, top_k=1) == ranked(PROMPT, 1000)[0][0]
    assert one(PROMPT, sampling_seed=3, made=5) == one(PROMPT, sampling_seed=3)


def test_bias_and_least_length() -> None:
    assert one(PROMPT, temperature=0.0, logit_bias={"17": 50.0}) == 17
    best = ranked(PROMPT, 1000)[0][0]
    params = {"temperature": 0.0, "stop_token_ids": [best], "min_new_tokens": 2}
    assert one(PROMPT, made=1, **params) != best
    assert one(PROMPT, made=2, **params) == best
    assert is_end(best, 3, Params(**params), -1)  # type: ignore[arg-type]
    assert is_end(2, 1, Params(), 2)
    assert not is_end(2, 1, Params(ignore_eos=True), 2)


def test_some_texts_end() -> None:
    ends = [one([*PROMPT, last], eos=2, temperature=0.0) == 2 for last in range(600)]
    assert 0 < sum(ends) < 60


# Pages --------------------------------------------------------------------------------------------------


def kinds(pages: Pages) -> list[object]:
    told, pages.events = pages.events, []
    return [event["type"] for event in told]


def test_pages_are_shared_evicted_and_told() -> None:
    pages = Pages(4, 16, keep=True)
    names: list[int] = []
    pages.hold(names)
    assert pages.fill(names, PROMPT, "")
    assert (len(names), pages.held, kinds(pages)) == (3, 4, ["BlockStored"] * 3)
    pages.release(names)
    assert pages.held == 0
    assert pages.matched([*PROMPT, 1], "") == names
    assert pages.matched(PROMPT[:48], "") == names[:2], "the last token is always computed"
    assert pages.matched([*PROMPT, 1], "other") == []
    assert pages.has_room(64, [])
    assert not pages.has_room(65, [])
    other: list[int] = []
    pages.hold(other)
    assert pages.fill(other, [9, *PROMPT], "")
    told = kinds(pages)
    assert (told.count("BlockStored"), told.count("BlockRemoved") >= 1) == (3, True)
    assert len(pages.matched([*PROMPT, 1], "")) < 3


def test_a_decode_server_keeps_nothing() -> None:
    pages = Pages(8, 16, keep=False)
    names: list[int] = []
    pages.hold(names)
    pages.fill(names, PROMPT, "")
    pages.release(names)
    assert pages.matched([*PROMPT, 1], "") == []
    assert kinds(pages) == []


# Servers ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(**fields: object) -> AsyncIterator[tuple[SglangDouble, aiohttp.ClientSession]]:
    values: dict[str, object] = {"bootstrap_port": 0, "bootstrap_timeout_s": 10.0, "step_s": 0.0005, **fields}
    double = SglangDouble(DoubleSettings(**values))  # type: ignore[arg-type]
    await double.start()
    session = aiohttp.ClientSession(double.url)
    try:
        yield double, session
    finally:
        await session.close()
        await double.close()


def body(rid: str = "r", count: int = 8, **fields: object) -> dict[str, object]:
    params = {"max_new_tokens": count, "temperature": 0.0}
    return {"rid": rid, "input_ids": PROMPT, "sampling_params": params, **fields}


async def generate(session: aiohttp.ClientSession, fields: dict[str, object]) -> tuple[int, dict]:
    async with session.post("/generate", json=fields) as answer:
        return answer.status, await answer.json(content_type=None)


def pairing(double: SglangDouble, room: int) -> dict[str, object]:
    port = double.settings.bootstrap_port
    return {"bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": room}


async def test_a_pair_gives_what_one_server_gives() -> None:
    async with running() as (_, alone):
        status, expected = await generate(alone, body())
    assert (status, len(expected["output_ids"])) == (200, 8)
    async with running(mode="prefill") as (giver, prefill), running(mode="decode") as (_, decode):
        pair = pairing(giver, 7)
        (_, first), (_, rest) = await asyncio.gather(
            generate(prefill, body(**pair)), generate(decode, body(**pair))
        )
        assert first["output_ids"] == expected["output_ids"][:1]
        assert first["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
        assert rest["output_ids"] == expected["output_ids"]


async def test_a_prefill_waits_for_its_decode_side() -> None:
    async with running(mode="prefill", bootstrap_timeout_s=0.2) as (giver, prefill):
        status, answer = await generate(prefill, body(**pairing(giver, 7)))
        assert (status, "timed out" in answer["message"]) == (500, True)
        assert giver.scheduler.counts.computed == 0


async def test_a_room_is_for_one_request() -> None:
    async with running(mode="prefill") as (giver, prefill):
        pair = pairing(giver, 7)
        first = asyncio.create_task(generate(prefill, body("a", **pair)))
        await until(lambda: giver.journal.generate)
        status, answer = await generate(prefill, body("b", **pair))
        assert (status, "is in use" in answer["message"]) == (500, True)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_who_hangs_up_is_aborted() -> None:
    async with running() as (double, session):
        async with session.post("/generate", json=body(count=5000, stream=True)) as answer:
            await answer.content.readline()
        await until(lambda: double.journal.disconnected == ["r"])
        await until(lambda: not double.scheduler.work and not double.scheduler.pages.held)


async def test_an_abort_takes_all_whose_id_begins_so() -> None:
    async with running() as (double, session):
        tasks = [asyncio.create_task(generate(session, body(rid, count=5000))) for rid in ("a", "a.1", "b")]
        await until(lambda: len(double.scheduler.running) == 3)
        async with session.post("/abort_request", json={"rid": "a"}) as answer:
            assert answer.status == 200
        for task in tasks[:2]:
            assert (await task)[1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(double.scheduler.running) == 1
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)


@pytest.mark.parametrize("incremental", [True, False])
async def test_streams(incremental: bool) -> None:
    async with running(incremental=incremental) as (_, session):
        fields = body(stream=True, return_logprob=True, top_logprobs_num=2)
        async with session.post("/generate", json=fields) as answer:
            text = await answer.text()
        _, whole = await generate(session, body("w"))
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    told = [msgspec.json.decode(event) for event in events]
    ids = [event["output_ids"] for event in told]
    joined = [token for part in ids for token in part] if incremental else ids[-1]
    assert joined == whole["output_ids"]
    for event in told:
        meta = event["meta_info"]
        assert (
            len(meta["output_token_logprobs"]) == len(event["output_ids"]) == len(meta["output_top_logprobs"])
        )
        assert [entry[1] for entry in meta["output_token_logprobs"]] == event["output_ids"]


async def test_too_little_room_pushes_sequences_out() -> None:
    async with running(page_size=16, max_total_tokens=16 * 10) as (double, session):
        _, alone = await generate(session, body("alone", count=40))
        answers = await asyncio.gather(*(generate(session, body(f"{n}", count=40)) for n in range(3)))
        assert all(answer["output_ids"] == alone["output_ids"] for _, answer in answers)
        other = [{**body(f"o{n}", count=60), "input_ids": [n + 8, *PROMPT]} for n in range(3)]
        await asyncio.gather(*(generate(session, fields) for fields in other))
        assert double.scheduler.counts.retracted > 0
        assert double.scheduler.pages.held == 0
