"""The load that ``trtllm-serve`` tells, in both of its ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tokenmill.errors import ProtocolError
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.trtllm.metrics import IterationStats, read_prometheus
from tokenmill.testing.engine_client import EngineClient
from tokenmill.testing.trtllm_double.options import Quirks

from .conftest import DoubledEngine


def row(iteration: int, **fields: object) -> dict[str, object]:
    blocks = {"maxNumBlocks": 100, "freeNumBlocks": 75, "usedNumBlocks": 25, "tokensPerBlock": 32}
    return {
        "iter": iteration,
        "timestamp": "now",
        "numActiveRequests": 3,
        "numQueuedRequests": 2,
        "kvCacheStats": {**blocks, "reusedBlocks": 4, "missedBlocks": 6, "cacheHitRate": 0.4},
        "inflightBatchingStats": {"numCtxTokens": 50, "numGenRequests": 2, "numPausedRequests": 1},
        **fields,
    }


def test_iterations_add_up() -> None:
    stats = IterationStats()
    assert stats.read(msgspec.json.encode([row(1), row(2, numActiveRequests=5)]))
    assert stats.gauges() == EngineGauges(
        running=5,
        waiting=2,
        kv_used=0.25,
        prefix_hit_tokens=128,
        prefix_query_tokens=320,
        prompt_tokens=228,
        preemptions=2,
        kv_blocks=100,
        block_tokens=32,
    )
    assert not stats.read(b"[]")
    assert stats.gauges().running == 5


def test_ranks_are_summed() -> None:
    stats = IterationStats()
    stats.read(msgspec.json.encode([row(1, attentionDpRank=0), row(1, attentionDpRank=1)]))
    gauges = stats.gauges()
    assert (gauges.running, gauges.kv_blocks, gauges.kv_used) == (6, 200, 0.25)


def test_a_row_may_tell_little() -> None:
    stats = IterationStats()
    assert stats.read(b'[{"iter": 1, "kvCacheStats": null}]')
    assert stats.gauges() == EngineGauges()


def test_no_list_is_refused() -> None:
    with pytest.raises(ProtocolError, match="/metrics"):
        IterationStats().read(b"<html>")


def test_prometheus_text() -> None:
    text = (
        "# HELP trtllm_num_requests_running Requests\n"
        'trtllm_num_requests_running{model_name="m"} 3.0\n'
        'trtllm_num_requests_waiting{model_name="m"} 2.0\n'
        'trtllm_kv_cache_utilization{model_name="m"} 0.25\n'
        'trtllm_kv_cache_tokens_per_block{model_name="m"} 32.0\n'
        'trtllm_kv_cache_reused_blocks_total{model_name="m"} 4.0\n'
        'trtllm_kv_cache_missed_blocks_total{model_name="m"} 6.0\n'
        "python_gc_objects_collected_total 1.0\n"
    )
    gauges = read_prometheus(text)
    assert gauges == EngineGauges(
        running=3, waiting=2, kv_used=0.25, prefix_hit_tokens=128, prefix_query_tokens=320, block_tokens=32
    )
    assert read_prometheus("python_info 1.0\n") is None


async def test_a_server_that_tells_prometheus_alone(checkpoint: Path) -> None:
    async with EngineClient(DoubledEngine(checkpoint, quirks=Quirks(prometheus=True))) as client:
        assert (client.info.kv_blocks, client.info.block_tokens) == (256, 16)
        prompt = list(range(20, 90))
        await client.generate(prompt)
        await client.generate(prompt)
        async with asyncio.timeout(30):
            while client.engine.metrics().prefix_hit_tokens_total != 64:
                await asyncio.sleep(0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.serve.engines.trtllm.server.ASK_TIMEOUT_S", 0.2)
    monkeypatch.setattr("tokenmill.serve.engines.remote.served_engine.PATIENCE_S", 0.5)


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_holds_its_load_back_is_alive_while_it_is_healthy(checkpoint: Path) -> None:
    engine = DoubledEngine(checkpoint, quirks=Quirks(mute=True))
    async with EngineClient(engine) as client:
        assert client.info.kv_blocks == 256  # from the events
        async with asyncio.timeout(60):
            while engine.double.looks < 10:
                await asyncio.sleep(0.02)
            assert len(await client.generate(list(range(20, 60)))) == 16
            engine.double.healthy = False
            assert "has not answered" in await engine.failure()
