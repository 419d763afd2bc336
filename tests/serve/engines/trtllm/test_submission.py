"""What becomes of requests at a TensorRT-LLM server, well and badly, over real sockets to the double."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.waiting import until

from tokenmill.errors import ConfigError
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, HandoffLost
from tokenmill.serve.engines.trtllm.wire import KvOffer
from tokenmill.testing.engine_client import Answer, EngineClient, finished, hand_over
from tokenmill.testing.trtllm_double.faults import Faults, How
from tokenmill.testing.trtllm_double.options import EngineOptions, Quirks, TransceiverOptions

from .conftest import DoubledEngine, engine_options

PROMPT = list(range(20, 60))


def double(client: EngineClient) -> DoubledEngine:
    assert isinstance(client.engine, DoubledEngine)
    return client.engine


def kinds(client: EngineClient) -> dict[str, int]:
    return double(client).double.completions.record.kinds


def spoil(client: EngineClient, how: How, only: str = "") -> None:
    # A request on a kept connection that breaks without a byte is sent once more.
    completions = 2 if how == "hang_up" else 1
    double(client).double.completions.faults = Faults(completions=completions, how=how, only=only)


def losses(answer: Answer) -> list[str]:
    return [item.reason for item in answer.items if isinstance(item, HandoffLost)]


@pytest.fixture
def prefill(checkpoint: Path) -> EngineClient:
    return EngineClient(DoubledEngine(checkpoint, Role.PREFILL))


@pytest.fixture
def decode(checkpoint: Path) -> EngineClient:
    return EngineClient(DoubledEngine(checkpoint, Role.DECODE))


@pytest.fixture
def both(checkpoint: Path) -> EngineClient:
    return EngineClient(DoubledEngine(checkpoint))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("error", "engine"),
        ("crash", "engine"),
        ("stream_error", "engine"),
        ("late_error", "engine"),
        ("hang_up", "receiver_lost"),
        ("garbage", "engine"),
        ("silent_end", "engine"),
        ("wrong_first", "other_token"),
        ("uncounted", "other_token"),
        ("cancelled", "engine"),
    ],
)
async def test_a_decode_that_fails_is_computed_here(
    prefill: EngineClient, decode: EngineClient, how: How, reason: str
) -> None:
    async with prefill, decode:
        expected = await decode.generate(PROMPT)
        spoil(decode, how, "generation_only")
        tokens, first, rest = await hand_over(prefill, decode, PROMPT)
        assert tokens == expected
        assert first.reason is FinishReason.HANDOFF
        assert losses(rest) == [reason]
        assert rest.first_index == 1
        assert decode.engine.metrics().handoffs_failed_total == 1
        assert kinds(decode)["plain"] == 3  # the trial at the start, ``expected``, and this one


async def test_a_good_handoff_says_so(prefill: EngineClient, decode: EngineClient) -> None:
    async with prefill, decode:
        _, _, rest = await hand_over(prefill, decode, PROMPT)
        assert losses(rest) == []
        assert (kinds(prefill), kinds(decode)) == (
            {"plain": 1, "context_only": 1},
            {"plain": 1, "generation_only": 1},
        )
        assert prefill.engine.metrics().handoffs_out_total == 1
        assert decode.engine.metrics().handoffs_in_total == 1
        await until(lambda: double(prefill).double.completions.record.caches_given == 1)


async def test_sampled_tokens_go_on_from_the_first_one(prefill: EngineClient, decode: EngineClient) -> None:
    """The told first token stays, whether the cache comes or not."""
    async with prefill, decode:
        whole = await decode.generate(PROMPT, temperature=1.0, seed=5)
        assert (await hand_over(prefill, decode, PROMPT, temperature=1.0, seed=5))[0] == whole
        spoil(decode, "stream_error", "generation_only")
        assert (await hand_over(prefill, decode, PROMPT, temperature=1.0, seed=5))[0] == whole


async def test_a_cache_that_is_not_there_any_more(prefill: EngineClient, decode: EngineClient) -> None:
    async with prefill, decode:
        expected = await decode.generate(PROMPT)
        double(prefill).double.completions.faults = Faults(forgets_caches=True)
        tokens, _, rest = await hand_over(prefill, decode, PROMPT)
        assert (tokens, losses(rest)) == (expected, ["lease_expired"])


async def test_a_cache_is_given_once(prefill: EngineClient, decode: EngineClient) -> None:
    async with prefill, decode:
        tokens, first, _ = await hand_over(prefill, decode, PROMPT)
        again, _, rest = await hand_over(prefill, decode, PROMPT, handoff=first.offered.result())
        assert (again, losses(rest)) == (tokens, ["lease_expired"])


async def test_a_cache_whose_time_is_over_is_freed(checkpoint: Path, decode: EngineClient) -> None:
    options = engine_options(Role.PREFILL)
    options.cache_transceiver_config = TransceiverOptions(backend="NIXL", kv_transfer_timeout_ms=1)
    prefill = EngineClient(DoubledEngine(checkpoint, Role.PREFILL, options=options))
    async with prefill, decode:
        expected = await decode.generate(PROMPT)
        _, first = prefill.submit(PROMPT, role=Role.PREFILL)
        await finished(first)
        await until(lambda: double(prefill).double.completions.record.caches_expired == 1)
        _, rest = decode.submit(PROMPT, role=Role.DECODE, handoff=first.offered.result())
        await finished(rest)
        assert (first.tokens + rest.tokens, losses(rest)) == (expected, ["lease_expired"])
        await until(lambda: prefill.engine.metrics().kv_blocks_used == 0)


async def test_a_prefill_server_that_is_gone(prefill: EngineClient, decode: EngineClient) -> None:
    async with decode:
        expected = await decode.generate(PROMPT)
        async with prefill:
            _, first = prefill.submit(PROMPT, role=Role.PREFILL)
            await finished(first)
        _, rest = decode.submit(PROMPT, role=Role.DECODE, handoff=first.offered.result())
        await finished(rest)
        assert (first.tokens + rest.tokens, losses(rest)) == (expected, ["sender_lost"])


async def test_a_handoff_of_another_make(decode: EngineClient) -> None:
    async with decode:
        expected = await decode.generate(PROMPT)
        for handoff in (Handoff("vllm", b"{}", 40), Handoff("trtllm", b"nothing", 40)):
            _, rest = decode.submit(PROMPT, role=Role.DECODE, handoff=handoff)
            await finished(rest)
            assert (rest.tokens, rest.first_index, losses(rest)) == (expected, 0, ["unreadable"])


async def test_an_answer_that_breaks_off_can_be_taken_up_elsewhere(
    prefill: EngineClient, decode: EngineClient
) -> None:
    async with prefill, decode:
        spoil(decode, "break", "generation_only")
        _, _, rest = await hand_over(prefill, decode, PROMPT)
        assert isinstance(rest.end, Failed)
        assert rest.end.retryable
        assert rest.tokens


@pytest.mark.parametrize("how", ["error", "crash", "hang_up"])
async def test_a_prefill_that_fails_may_be_tried_elsewhere(prefill: EngineClient, how: How) -> None:
    async with prefill:
        spoil(prefill, how)
        _, answer = prefill.submit(PROMPT, role=Role.PREFILL)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable


async def test_a_server_that_hands_nothing_over_is_told_as_such(checkpoint: Path) -> None:
    """Attached to as prefill worker, but started without a cache transceiver."""
    async with EngineClient(
        DoubledEngine(checkpoint, Role.PREFILL, options=engine_options(Role.BOTH))
    ) as prefill:
        _, answer = prefill.submit(PROMPT, role=Role.PREFILL)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable
        assert "cache_transceiver_config" in answer.end.message


@pytest.mark.parametrize(
    ("how", "retryable"),
    [("error", False), ("crash", True), ("hang_up", True), ("break", True), ("silent_end", True)],
)
async def test_an_aggregated_request_that_fails(both: EngineClient, how: How, retryable: bool) -> None:
    async with both:
        spoil(both, how)
        _, answer = both.submit(PROMPT)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable is retryable
        assert len(await both.generate(PROMPT)) == 16


async def test_all_sampling_parameters_go_along(both: EngineClient) -> None:
    asked = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.8,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "seed": 7,
        "ignore_eos": True,
    }
    async with both:
        await both.generate(
            PROMPT,
            output=[11, 12],
            max_tokens=9,
            min_tokens=4,
            logit_bias={9: -1.5},
            stop_token_ids=(8,),
            **asked,
        )
        last = double(both).double.completions.record.last
    assert {name: last[name] for name in asked} == asked
    assert last["prompt"] == [*PROMPT, 11, 12]
    assert (last["max_tokens"], last["min_tokens"]) == (7, 2)
    assert (last["logit_bias"], last["stop_token_ids"]) == ({"9": -1.5}, [8])
    assert (last["detokenize"], last["include_stop_str_in_output"]) == (False, True)
    assert "disaggregated_params" not in last


async def test_what_the_server_does_not_know_is_refused_by_name(both: EngineClient) -> None:
    async with both:
        request = GenerateRequest(
            request_id=RequestId("salted"),
            prompt=PROMPT,
            sampling=Sampling(max_tokens=4),
            cache_salt="tenant",
        )
        answer = both.answers[request.request_id] = Answer(0)
        both.engine.submit(request)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert (answer.end.status, answer.end.retryable) == (400, False)
        assert "cache_salt" in answer.end.message


@pytest.mark.parametrize(("hides", "shown"), [(False, [256]), (True, [])])
async def test_the_end_of_sequence_is_told_by_some_samplers_alone(
    checkpoint: Path, hides: bool, shown: list[int]
) -> None:
    quirks = Quirks(end_at=3, hides_end=hides)
    async with EngineClient(DoubledEngine(checkpoint, quirks=quirks)) as client:
        _, answer = client.submit(PROMPT, ignore_eos=False)
        await finished(answer)
        assert answer.reason is FinishReason.STOP
        assert answer.tokens[3:] == shown
        assert isinstance(answer.end, Finished)
        assert answer.end.stop_token == (256 if shown else None)


async def test_a_first_token_that_ends_it_is_not_handed_over(checkpoint: Path) -> None:
    async with EngineClient(DoubledEngine(checkpoint, Role.PREFILL, quirks=Quirks(end_at=0))) as prefill:
        _, answer = prefill.submit(PROMPT, role=Role.PREFILL, ignore_eos=False)
        await finished(answer)
        assert (answer.reason, answer.tokens) == (FinishReason.STOP, [256])
        assert answer.offered.cancelled()


async def test_cancelling_is_seen_by_the_server(both: EngineClient) -> None:
    async with both:
        request_id, answer = both.submit(PROMPT, max_tokens=3000)
        await asyncio.wait_for(answer.progress.wait(), 30)
        both.engine.cancel(request_id)
        await finished(answer)
        assert answer.reason is FinishReason.CANCELLED
        await until(lambda: double(both).double.completions.record.aborted == 1)


async def test_a_server_that_sends_text_alone_is_refused(checkpoint: Path) -> None:
    engine = DoubledEngine(checkpoint, quirks=Quirks(text_only=True))
    with pytest.raises(ConfigError, match="token ids"):
        await engine.start(lambda _: None)
    await engine.stop()


async def test_ids_of_our_own_where_the_server_takes_them(checkpoint: Path) -> None:
    """They lie beyond those that servers give themselves, so that two prefill servers do not collide."""
    asked = [(old, silent) for old in (False, True) for silent in (False, True)]
    for old, silent in asked:
        engine = DoubledEngine(checkpoint, Role.PREFILL, quirks=Quirks(old=old, no_openapi=silent))
        unknown = ["disagg_request_id", "no_such_field"] if old else ["no_such_field"]
        words = [f"disaggregated_params.{name}: Extra inputs are not permitted" for name in unknown]
        engine.violations = ["; ".join(words)] if silent else []
        async with EngineClient(engine) as prefill:
            _, answer = prefill.submit(PROMPT, role=Role.PREFILL)
            await finished(answer)
            params = msgspec.json.decode(answer.offered.result().descriptor, type=KvOffer).params
        assert params["request_type"] == "generation_only"
        shared = params.get("disagg_request_id")
        assert shared is None if old else isinstance(shared, int) and 1 << 40 <= shared < 1 << 63


async def test_two_prefill_servers_do_not_mix_their_caches(checkpoint: Path, decode: EngineClient) -> None:
    prompts = [[seed + 8, *PROMPT] for seed in range(6)]
    givers = [EngineClient(DoubledEngine(checkpoint, Role.PREFILL)) for _ in range(2)]
    async with givers[0], givers[1], decode:
        alone = [await decode.generate(prompt) for prompt in prompts]
        pairs = [(givers[index % 2], prompt) for index, prompt in enumerate(prompts)]
        results = await asyncio.gather(*(hand_over(giver, decode, prompt) for giver, prompt in pairs))
        assert [tokens for tokens, _, _ in results] == alone
        assert decode.engine.metrics().handoffs_failed_total == 0


def test_the_options_of_a_double_are_those_of_the_engine() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kv_cache_config": {"block_tokens": 16}}, EngineOptions)
