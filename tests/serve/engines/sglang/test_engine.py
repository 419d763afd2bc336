"""The engine over doubles: attaching, launching, KV events, trouble."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest
from tests.waiting import until

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError
from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, HandoffLost
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from tokenmill.serve.engines.opening import open_engine
from tokenmill.serve.engines.sglang import engine as engine_module
from tokenmill.serve.engines.sglang.engine import SglangEngine
from tokenmill.serve.engines.sglang.launch import SglangOptions
from tokenmill.spec.process import WorkerConfig
from tokenmill.testing.engine_client import Answer, EngineClient, finished, hand_over
from tokenmill.testing.sglang_double import SglangDouble
from tokenmill.testing.sglang_double.mishaps import Kind, Mishap

from .doubles import MODEL, NAME, DoubledEngine, events, settings

PROMPT = list(range(100, 150))


def told(client: EngineClient) -> list[KvEvent]:
    return [event for output in client.outputs for event in output.kv_events]


def stored(client: EngineClient) -> set[int]:
    """Names of the blocks that are cached, as far as the events tell."""
    names: set[int] = set()
    for event in told(client):
        if isinstance(event, BlocksStored):
            names |= set(event.hashes)
        elif isinstance(event, BlocksRemoved):
            names -= set(event.hashes)
        elif isinstance(event, CacheCleared):
            names.clear()
    return names


async def heard(client: EngineClient) -> None:
    """Wait until events come: a subscriber misses what is published before the publisher knows of it, and
    asks for that when it hears the first."""
    for number in range(300):
        await client.generate([300 + number] * 20, max_tokens=1)
        if told(client):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no events came")


# Attaching ----------------------------------------------------------------------------------------------


async def attach(double: SglangDouble, **fields: object) -> str:
    """Attach to a double and return the message of the ConfigError that comes of it."""
    await double.start()
    values: dict[str, object] = {"model": MODEL, "model_name": NAME, "role": Role.BOTH, "attach": double.url}
    engine = SglangEngine(SglangOptions(**{**values, **fields}), SystemClock())  # type: ignore[arg-type]
    try:
        with pytest.raises(ConfigError) as caught:
            await engine.start(lambda _: None)
    finally:
        await double.close()
    return caught.value.message


async def test_what_is_learned_of_a_server() -> None:
    async with EngineClient(DoubledEngine(Role.PREFILL, max_total_tokens=1600)) as client:
        info = client.info
        assert info.engine == "sglang 0.5.23"
        assert (info.block_tokens, info.kv_blocks, info.max_model_len) == (16, 100, 8192)
        assert (info.vocab_size, info.eos_token_ids) == (1024, [2])
        assert (info.transports, info.early_handoff, info.alone) == (["sglang"], True, False)


async def test_a_server_of_another_role_is_refused() -> None:
    message = await attach(SglangDouble(settings(Role.DECODE)), role=Role.PREFILL)
    assert "--disaggregation-mode decode, but role prefill needs prefill" in message


async def test_a_server_that_wants_a_key() -> None:
    assert "attach_key" in await attach(SglangDouble(settings(api_key="secret")))
    double = SglangDouble(settings(api_key="secret"))
    await double.start()
    options = SglangOptions(model=MODEL, model_name=NAME, role=Role.BOTH, attach=double.url, api_key="secret")
    async with EngineClient(SglangEngine(options, SystemClock())) as client:
        assert len(await client.generate(PROMPT)) == 16
    await double.close()


async def test_a_server_that_tells_little_serves() -> None:
    engine = DoubledEngine(enable_metrics=False, incremental=False, page_size=1)
    async with EngineClient(engine) as client:
        first = await client.generate(PROMPT)
        assert engine.engine._facts is not None
        unknown = " ".join(engine.engine._facts.unknown)
    assert all(word in unknown for word in ("metrics", "KV events", "--page-size 16"))
    async with EngineClient(DoubledEngine()) as client:
        assert await client.generate(PROMPT) == first


async def test_it_waits_for_a_server_that_is_not_up_yet() -> None:
    engine = DoubledEngine()
    engine.double.mishaps.plan(Mishap(kind=Kind.UNHEALTHY, times=2))
    async with EngineClient(engine) as client:
        assert len(await client.generate(PROMPT)) == 16


def test_memory_is_counted_otherwise() -> None:
    with pytest.raises(ConfigError, match="mem_fraction_static"):
        open_engine(WorkerConfig(engine="sglang", kv_memory_mb=1), None, SystemClock())


# Requests -----------------------------------------------------------------------------------------------


async def test_nothing_is_sent_that_the_protocol_does_not_know() -> None:
    prefill, decode = DoubledEngine(Role.PREFILL), DoubledEngine(Role.DECODE)
    async with EngineClient(prefill) as giver, EngineClient(decode) as taker:
        every = {
            "temperature": 0.7,
            "top_k": 5,
            "top_p": 0.9,
            "min_p": 0.01,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "repetition_penalty": 1.2,
            "logit_bias": {17: 2.0},
            "logprobs": 3,
            "stop_token_ids": (9,),
            "min_tokens": 2,
            "seed": 2**63 - 1,
        }
        tokens, _, _ = await hand_over(giver, taker, PROMPT, **every)
        assert len(tokens) <= 16
        async with EngineClient(DoubledEngine()) as one:
            assert await one.generate(PROMPT, **every) == tokens
    assert prefill.double.journal.refused == decode.double.journal.refused == []


async def test_a_grammar_that_sglang_has_not_is_refused() -> None:
    engine = DoubledEngine()
    async with EngineClient(engine) as client:
        assert "response_format" in client.info.constraints
        _, bad = client.submit(PROMPT, constraints={"response_format": {"type": "xml"}})
        _, good = client.submit(PROMPT, constraints={"response_format": {"type": "json_object"}})
        await finished(bad, good)
        assert isinstance(bad.end, Failed)
        assert (bad.end.status, bad.end.retryable) == (400, False)
        (asked,) = engine.double.journal.generate
        assert asked["sampling_params"]["json_schema"] == '{"type": "object"}'  # type: ignore[index]


async def test_a_cancelled_request_is_aborted_on_both_sides() -> None:
    prefill, decode = DoubledEngine(Role.PREFILL), DoubledEngine(Role.DECODE)
    async with EngineClient(prefill) as giver, EngineClient(decode) as taker:
        waiting_id, waiting = giver.submit(PROMPT, role=Role.PREFILL)  # nobody comes for it
        request_id, first = giver.submit(PROMPT, role=Role.PREFILL, max_tokens=5000)
        handoff = await asyncio.wait_for(asyncio.shield(first.offered), 30)
        taker_id, rest = taker.submit(PROMPT, role=Role.DECODE, handoff=handoff, max_tokens=5000)
        await asyncio.wait_for(rest.progress.wait(), 30)
        giver.engine.cancel(waiting_id)
        giver.engine.cancel(request_id)
        taker.engine.cancel(taker_id)
        await finished(waiting, first, rest)
        await until(lambda: f"{waiting_id}|" in prefill.double.journal.aborted)
        await until(lambda: decode.double.journal.aborted == [f"{taker_id}|"])
        await until(lambda: not decode.double.scheduler.work and not decode.double.scheduler.pages.held)


async def test_aborting_one_request_spares_those_whose_id_begins_like_it() -> None:
    engine = DoubledEngine()
    async with EngineClient(engine) as client:
        _, one = client.submit(PROMPT, request_id="r", max_tokens=5000)
        _, ten = client.submit(PROMPT, request_id="r.1", max_tokens=300)
        await asyncio.wait_for(one.progress.wait(), 30)
        client.engine.cancel(RequestId("r"))
        await finished(one, ten)
        assert len(ten.tokens) == 300
        assert engine.double.journal.aborted == ["r|"]


TROUBLE = [
    (Mishap(kind=Kind.REFUSE, status=503), "made to fail"),
    (Mishap(kind=Kind.HANG_UP, after=3), "the connection to the engine broke"),
    (Mishap(kind=Kind.ABORT, status=500, after=3), "made to fail"),
    (Mishap(kind=Kind.GARBAGE, after=3), "cannot be read"),
    (Mishap(kind=Kind.SKIP_TOKEN, after=3), "skipped tokens"),
]


@pytest.mark.parametrize(("mishap", "message"), TROUBLE, ids=[mishap.kind.value for mishap, _ in TROUBLE])
async def test_trouble_ends_in_what_may_be_retried(mishap: Mishap, message: str) -> None:
    engine = DoubledEngine()
    async with EngineClient(engine) as client:
        whole = await client.generate(PROMPT)
        engine.double.mishaps.plan(msgspec.structs.replace(mishap))
        _, answer = client.submit(PROMPT)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable
        assert message in answer.end.message
        assert answer.tokens == whole[: len(answer.tokens)]
        assert await client.generate(PROMPT) == whole


async def test_a_full_queue_is_another_workers_chance() -> None:
    engine = DoubledEngine(max_queued_requests=1, max_running_requests=1)
    async with EngineClient(engine) as client:
        answers = [client.submit(PROMPT, max_tokens=400)[1] for _ in range(4)]
        await finished(*answers)
        ends = [answer.end for answer in answers]
        full = [end for end in ends if isinstance(end, Failed)]
        assert full
        assert all((end.status, end.retryable) == (503, True) for end in full)


# Pairs --------------------------------------------------------------------------------------------------


async def test_a_transfer_that_fails_is_told_with_the_reason() -> None:
    prefill, decode = DoubledEngine(Role.PREFILL), DoubledEngine(Role.DECODE)
    async with EngineClient(prefill) as giver, EngineClient(decode) as taker:
        prefill.double.mishaps.plan(Mishap(kind=Kind.FAIL_TRANSFER))
        tokens, first, rest = await hand_over(giver, taker, PROMPT)
        assert tokens == []
        for answer in (first, rest):
            lost = next(item for item in answer.items if isinstance(item, HandoffLost))
            assert lost.reason == "transfer"
            assert isinstance(answer.end, Failed)
            assert answer.end.code == "handoff_failed"
        assert giver.engine.metrics().handoffs_failed_total == 1
        assert taker.engine.metrics().handoffs_failed_total == 1
        again, _, _ = await hand_over(giver, taker, PROMPT)
        assert len(again) == 16


async def test_a_dead_prefill_server_is_noticed_by_the_decode_side() -> None:
    prefill = DoubledEngine(Role.PREFILL)
    async with EngineClient(DoubledEngine(Role.DECODE)) as taker:
        async with EngineClient(prefill) as giver:
            _, first = giver.submit(PROMPT, role=Role.PREFILL)
            handoff = await asyncio.wait_for(asyncio.shield(first.offered), 30)
        _, rest = taker.submit(PROMPT, role=Role.DECODE, handoff=handoff)
        await finished(rest)
        assert isinstance(rest.end, Failed)
        assert (rest.end.code, rest.end.retryable) == ("handoff_failed", True)
        assert isinstance(rest.items[0], HandoffLost)
        assert rest.items[0].reason == "sender_lost"


async def test_sides_give_up_on_each_other() -> None:
    prefill = DoubledEngine(Role.PREFILL, bootstrap_timeout_s=0.3)
    async with EngineClient(prefill) as giver, EngineClient(DoubledEngine(Role.DECODE)) as taker:
        _, alone = giver.submit(PROMPT, role=Role.PREFILL)
        await finished(alone)
        assert isinstance(alone.end, Failed)
        assert "timed out" in alone.end.message
        assert giver.engine.metrics().handoffs_failed_total == 1
        assert len((await hand_over(giver, taker, PROMPT))[0]) == 16


async def test_another_cache_shows_in_the_tokens() -> None:
    prefill = DoubledEngine(Role.PREFILL)
    async with EngineClient(prefill) as giver, EngineClient(DoubledEngine(Role.DECODE)) as taker:
        right, _, _ = await hand_over(giver, taker, PROMPT)
        prefill.double.mishaps.plan(Mishap(kind=Kind.OTHER_CACHE))
        wrong, _, _ = await hand_over(giver, taker, PROMPT)
        assert wrong[1:] != right[1:]


# KV events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [True, False], ids=["maps", "arrays"])
async def test_what_is_cached_is_told_in_our_names(tmp_path: Path, tagged: bool) -> None:
    engine = DoubledEngine(**publishing(tmp_path), tagged_events=tagged)
    async with EngineClient(engine) as client:
        await heard(client)
        tokens = await client.generate(PROMPT, max_tokens=20)
        full = [*PROMPT, *tokens][: 69 // 16 * 16]
        await until(lambda: set(block_hashes(full, 16)) <= stored(client))
        engine.double.scheduler.pages.clear()
        await client.generate([7 + 100] * 40)
        await until(lambda: any(isinstance(event, CacheCleared) for event in told(client)))


async def test_a_salt_keeps_names_apart(tmp_path: Path) -> None:
    engine = DoubledEngine(**publishing(tmp_path))
    async with EngineClient(engine) as client:
        await heard(client)
        await client.generate(PROMPT)
        plain = block_hashes(PROMPT, 16)
        await until(lambda: set(plain) <= stored(client))
        sampling = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
        own = RequestId("salted")
        client.answers[own] = Answer(0)
        client.engine.submit(
            GenerateRequest(request_id=own, prompt=PROMPT, sampling=sampling, cache_salt="tenant")
        )
        await finished(client.answers[own])
        await until(lambda: set(block_hashes(PROMPT, 16, "tenant")) <= stored(client))


@pytest.mark.parametrize("kind", [Kind.LOSE_EVENTS, Kind.FORGET_EVENTS])
async def test_lost_events_are_fetched_or_forgotten(tmp_path: Path, kind: Kind) -> None:
    engine = DoubledEngine(**publishing(tmp_path))
    async with EngineClient(engine) as client:
        await heard(client)
        await client.generate(PROMPT, max_tokens=1)
        await until(lambda: set(block_hashes(PROMPT, 16)) <= stored(client))
        engine.double.mishaps.plan(Mishap(kind=kind))
        lost, seen = [210] * 50, [220] * 50
        await client.generate(lost, max_tokens=1)
        await client.generate(seen, max_tokens=1)
        await until(lambda: set(block_hashes(seen, 16)) <= stored(client))
        known = stored(client)
        assert (set(block_hashes(lost, 16)) <= known) is (kind is Kind.LOSE_EVENTS)
        assert any(isinstance(event, CacheCleared) for event in told(client)) is (kind is Kind.FORGET_EVENTS)


def publishing(folder: Path) -> dict[str, object]:
    config = events(folder)
    return {"events": config, "events_text": msgspec.json.encode(config).decode()}


# Watching -----------------------------------------------------------------------------------------------


def launched(**fields: object) -> SglangOptions:
    values: dict[str, object] = {
        "model": MODEL,
        "model_name": NAME,
        "role": Role.BOTH,
        "engine_command": f"{sys.executable} -m tokenmill.testing.sglang_double",
        "start_timeout_s": 60.0,
    }
    return SglangOptions(**{**values, **fields})  # type: ignore[arg-type]


async def test_a_launched_server(tmp_path: Path) -> None:
    engine = SglangEngine(launched(run_dir=str(tmp_path), kv_blocks=64), SystemClock())
    async with EngineClient(engine) as client:
        assert (client.info.kv_blocks, client.info.block_tokens) == (64, 16)
        await heard(client)
        await client.generate(PROMPT, max_tokens=1)
        await until(lambda: set(block_hashes(PROMPT, 16)) <= stored(client))


async def test_a_launched_server_that_dies_is_missed_at_once() -> None:
    engine = SglangEngine(launched(), SystemClock())
    async with EngineClient(engine) as client:
        _, answer = client.submit(PROMPT, max_tokens=5000)
        await asyncio.wait_for(answer.progress.wait(), 30)
        assert engine._child is not None
        assert engine._child._process is not None
        engine._child._process.kill()
        assert "SIGKILL" in await asyncio.wait_for(engine.failure(), 30)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable


async def test_a_server_that_does_not_start_says_why() -> None:
    engine = SglangEngine(launched(engine_args={"no_such_option": "1"}), SystemClock())
    with pytest.raises(ConfigError, match="unrecognized arguments: --no-such-option"):
        await engine.start(lambda _: None)


async def test_a_server_that_makes_no_tokens_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "HEALTH_INTERVAL_S", 0.02)
    monkeypatch.setattr(engine_module, "HEALTH_PATIENCE_S", 0.2)
    engine = DoubledEngine()
    async with EngineClient(engine):
        engine.double.mishaps.plan(Mishap(kind=Kind.UNHEALTHY, times=10**6))
        assert "/health_generate" in await asyncio.wait_for(engine.failure(), 30)
