"""The engine around a server that looks like vLLM: launched or attached to, watched, its ranks chosen."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.waiting import until

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError
from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed, Finished, FinishReason
from tokenmill.protocol.kv_events import BlocksStored
from tokenmill.serve.engines.remote import served_engine
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.options import Parallelism
from tokenmill.serve.engines.vllm.engine import VllmEngine
from tokenmill.serve.engines.vllm.plan import VllmOptions
from tokenmill.testing.engine_client import EngineClient, finished, hand_over

FAKE = f"{sys.executable} {Path(__file__).with_name('fake_vllm.py')}"
BLOCK = 16

pytestmark = pytest.mark.processes


def engine(run_dir: Path | str = "", env: Mapping[str, str] | None = None, **fields: Any) -> VllmEngine:
    options = {
        "model": "/models/m",
        "model_name": "m",
        "role": Role.BOTH,
        "engine_command": "" if "attach" in fields else FAKE,
        # Names of blocks are Python's hashes, which must not matter.
        "engine_env": {"PYTHONHASHSEED": "7", **(env or {})},
        "run_dir": str(run_dir),
        "block_tokens": BLOCK,
        **fields,
    }
    return VllmEngine(VllmOptions(**options), SystemClock())


def output(prompt: list[int], count: int) -> list[int]:
    return [(sum(prompt) + index) % 1000 for index in range(count)]


def url_of(client: EngineClient) -> str:
    return client.engine._client.base_url  # type: ignore[attr-defined]


async def ask(client: EngineClient, path: str) -> Any:
    http = HttpClient(url_of(client))
    try:
        return msgspec.json.decode((await http.request("GET", path, timeout_s=10)).body)
    finally:
        await http.close()


def stored(client: EngineClient) -> list[int]:
    events = [event for told in client.outputs for event in told.kv_events]
    return [name for event in events if isinstance(event, BlocksStored) for name in event.hashes]


async def test_a_launched_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompt = list(range(50))
    async with EngineClient(engine(tmp_path)) as client:
        assert (client.info.engine, client.info.model) == ("vllm 0.0.fake", "m")
        assert (client.info.block_tokens, client.info.kv_blocks, client.info.max_model_len) == (16, 64, 512)
        assert await client.generate(prompt, max_tokens=3) == output(prompt, 3)
        await until(lambda: stored(client))
        assert stored(client) == block_hashes(prompt, BLOCK)
        (seen,) = await ask(client, "/seen")
        assert "x-data-parallel-rank" not in seen["headers"]
    assert "[vllm both] INFO serving" in capfd.readouterr().err


async def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    broken = engine(tmp_path, {"FAKE_START_ERROR": "no memory left"})
    with pytest.raises(ConfigError, match=r"exit status 1: .*ValueError: no memory left"):
        await broken.start(lambda _: None)


async def test_death_is_seen_at_once(tmp_path: Path) -> None:
    async with EngineClient(engine(tmp_path, {"FAKE_PACE_S": "0.05"})) as client:
        _, answer = client.submit([1, 2, 3], max_tokens=500)
        await answer.progress.wait()
        os.killpg(client.engine._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            assert "SIGKILL" in await client.engine.failure()
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable


async def test_a_cancelled_request_is_aborted(tmp_path: Path) -> None:
    async with EngineClient(engine(tmp_path, {"FAKE_PACE_S": "0.02"})) as client:
        request_id, answer = client.submit([1, 2, 3], max_tokens=500)
        await answer.progress.wait()
        client.engine.cancel(request_id)
        await finished(answer)
        assert answer.reason is FinishReason.CANCELLED
        await until(lambda: not client.engine.metrics().running)
        (seen,) = await ask(client, "/seen")
        assert not seen["ended"]


async def test_replicas_do_not_collide(tmp_path: Path) -> None:
    clients = [EngineClient(engine(tmp_path)) for _ in range(4)]
    try:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        assert len({url_of(client) for client in clients}) == 4
        plans = [await ask(client, "/options") for client in clients]
        assert len({plan["kv_events_config"] for plan in plans}) == 4
    finally:
        for client in clients:
            await client.__aexit__()


async def test_a_cache_is_handed_over_unread(tmp_path: Path) -> None:
    prompt = list(range(40))
    async with (
        EngineClient(engine(tmp_path, role=Role.PREFILL)) as prefill,
        EngineClient(engine(tmp_path, role=Role.DECODE)) as decode,
    ):
        tokens, _, rest = await hand_over(prefill, decode, prompt, max_tokens=4)
        assert tokens == output(prompt, 4)
        assert isinstance(rest.end, Finished)
        ports = (await ask(prefill, "/options"))["port"]
        (seen,) = await ask(decode, "/seen")
        assert seen["body"]["kv_transfer_params"] == {"opaque": [1, 2], "of": ports}
        assert prefill.engine.metrics().handoffs_out_total == decode.engine.metrics().handoffs_in_total == 1


@pytest.mark.parametrize("attached", [False, True], ids=["launched", "attached"])
async def test_a_request_goes_to_the_rank_that_has_its_prefix(tmp_path: Path, attached: bool) -> None:
    launched = engine(tmp_path, parallel=Parallelism(dp=2))
    async with EngineClient(launched) as owner:
        client = EngineClient(engine(attach=url_of(owner))) if attached else owner
        if attached:
            await client.__aenter__()
        try:
            groups = [[group] * 10 * BLOCK for group in range(1, 5)]
            for tail in range(3):
                for prefix in groups:
                    prompt = [*prefix, tail, 7]
                    assert await client.generate(prompt, max_tokens=2) == output(prompt, 2)
                    # What it stored is known before the next one is asked.
                    await until(lambda: set(block_hashes(prompt, BLOCK)) <= set(stored(client)))  # noqa: B023
            ranks: dict[int, set[int]] = {}
            for seen in await ask(owner, "/seen"):
                ranks.setdefault(seen["body"]["prompt"][0], set()).add(seen["rank"])
            assert all(len(used) == 1 for used in ranks.values()), "each group stays on its rank"
            assert set().union(*ranks.values()) == {0, 1}, "both are used"
            assert client.info.kv_blocks == 2 * 64
        finally:
            if attached:
                await client.__aexit__()


async def test_what_an_attached_server_does_not_tell(tmp_path: Path) -> None:
    """Some routes are missing: it serves all the same, and says what it could not learn."""
    silent = {"FAKE_SILENT": "kv_event_sources,version,metrics"}
    async with (
        EngineClient(engine(tmp_path, silent)) as owner,
        EngineClient(engine(attach=url_of(owner))) as client,
    ):
        facts = client.engine._facts  # type: ignore[attr-defined]
        assert [told.split(":")[0] for told in facts.unknown] == ["KV blocks", "block size", "KV events"]
        assert await client.generate([1, 2, 3], max_tokens=2) == [6, 7]


async def test_an_attached_server_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_engine, "PATIENCE_S", 0.5)
    owner = EngineClient(engine(tmp_path))
    await owner.__aenter__()
    try:
        async with EngineClient(engine(attach=url_of(owner))) as client:
            await owner.__aexit__()
            async with asyncio.timeout(30):
                assert "has not answered" in await client.engine.failure()
    finally:
        await owner.__aexit__()


async def test_the_one_model_of_an_attached_server(tmp_path: Path) -> None:
    """It may have another name there than clients know it by."""
    async with (
        EngineClient(engine(tmp_path)) as owner,
        EngineClient(engine(attach=url_of(owner), model_name="another", model="another")) as client,
    ):
        assert client.info.model == "another"
        await client.generate([1, 2, 3], max_tokens=1)
        (seen,) = await ask(owner, "/seen")
        assert seen["body"]["model"] == "m"
