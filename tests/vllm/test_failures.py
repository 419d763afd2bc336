"""Handoffs that fail in the ways that real servers fail: the decode server computes the prompt itself."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import msgspec
import pytest

from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import HandoffLost
from tokenmill.serve.engines.vllm.wire import KvOffer
from tokenmill.testing.engine_client import EngineClient, finished

from .plants import Plant, greedy, launched, prompts
from .test_handover import served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LEASE_S = 4


async def offered(prefill: EngineClient, prompt: list[int]) -> Handoff:
    _, answer = prefill.submit(prompt, role=Role.PREFILL)
    await finished(answer)
    return answer.offered.result()


def altered(handoff: Handoff, **params: object) -> Handoff:
    """The same handoff with other parameters of vLLM's."""
    offer = msgspec.json.decode(handoff.descriptor, type=KvOffer)
    changed = msgspec.structs.replace(offer, params={**offer.params, **params})
    return msgspec.structs.replace(handoff, descriptor=msgspec.json.encode(changed))


async def losses(decode: EngineClient, prompt: list[int], handoff: Handoff, whole: list[int]) -> list[str]:
    """Decode, which must give ``whole``. Returns the reasons for which the cache did not come."""
    _, answer = decode.submit(prompt, role=Role.DECODE, handoff=handoff)
    await finished(answer)
    assert answer.first_index is not None
    assert answer.tokens == whole[answer.first_index :], answer.items
    return [item.reason for item in answer.items if isinstance(item, HandoffLost)]


async def test_what_fails_is_computed_by_the_decode_server(vllm_python, checkpoint, tmp_path) -> None:
    model, other = checkpoint("llama"), checkpoint("llama", "another")
    prefill = EngineClient(launched(vllm_python, model, Role.PREFILL, tmp_path / "p", lease_s=LEASE_S))
    decode = EngineClient(launched(vllm_python, model, Role.DECODE, tmp_path / "d", lease_s=LEASE_S))
    misfit = EngineClient(launched(vllm_python, other, Role.PREFILL, tmp_path / "m", lease_s=LEASE_S))
    asked = prompts(6, "losses", (333,))
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(each) for each in (prefill, decode, misfit)))
        well, unknown, stranger, foreign, kept, dead = [
            (prompt, await prefill.generate(prompt)) for prompt in asked
        ]

        async def lost(case: tuple[list[int], list[int]], **params: object) -> list[str]:
            return await losses(decode, case[0], altered(await offered(prefill, case[0]), **params), case[1])

        assert await lost(well) == []
        assert await lost(unknown, remote_engine_id="nobody", remote_port=1) == ["unreachable"]
        assert await lost(stranger, remote_engine_id="another") == ["mismatch"]

        misfits = await offered(misfit, foreign[0])
        first = msgspec.json.decode(misfits.descriptor, type=KvOffer).first_token
        continued = await prefill.generate(foreign[0], output=[first])
        assert await losses(decode, foreign[0], misfits, [first, *continued]) == ["mismatch"]

        late = await offered(prefill, kept[0])
        await asyncio.sleep(LEASE_S)
        assert await losses(decode, kept[0], late, kept[1]) == ["lease_expired"]

        orphan = await offered(prefill, dead[0])
        os.killpg(prefill.engine._child.pid, signal.SIGKILL)
        assert "SIGKILL" in await prefill.engine.failure()
        assert await losses(decode, dead[0], orphan, dead[1]) == ["unreachable"]
        assert decode.engine.metrics().handoffs_failed_total == 5


MISFIT = {"prefill": 1, "decode": 1, "prefill_args": {"dtype": "bfloat16"}}


@pytest.mark.parametrize("plant", [pytest.param(MISFIT, id="misfit")], indirect=True)
def test_the_reason_is_told(plant: Plant) -> None:
    """The two servers' caches differ in their numbers' format, which they see when they first meet."""
    bodies = [greedy(prompt) for prompt in prompts(4, "told")]
    clients = asyncio.run(served(plant, bodies, "told"))
    assert [client.error for client in clients] == [None] * len(clients)
    (decode,) = plant.servers("decode")
    for client, body in zip(clients, bodies, strict=True):
        first, *rest = client.tokens
        after = {**body, "prompt": [*body["prompt"], first], "max_tokens": len(rest), "cache_salt": "alone"}
        assert rest == decode.tokens(after)
        (attempt,) = plant.explain(client.name)["attempts"]
        assert attempt["handoff_failed"]["reason"] == "mismatch"
        assert "hash mismatch" in attempt["handoff_failed"]["error"]
    metrics = plant.factory.get("/metrics")[1]
    assert f'tokenmill_handoffs_lost_total{{reason="mismatch"}} {float(len(clients))}' in metrics
