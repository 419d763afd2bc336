"""Workers that come, go, fail and die while clients are served."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from tokenmill.protocol.card import WorkerState
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed
from tokenmill.protocol.metrics import StepMetrics

from .conftest import REPLY, reply
from .http_client import read_answer, request_bytes

LONG = "The quick brown fox jumps over the lazy dog. " * 4
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def asking(plant, **fields):
    """A request whose answer is read by the test."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.port)
    try:
        writer.write(request_bytes("POST", "/v1/chat/completions", {**CHAT, **fields}))
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_worker_lost_in_mid_stream_is_replaced_without_gap_or_double(plant):
    first = await plant.worker("b1", reply(LONG), pace_s=0.001)
    first.lose_after = 30
    async with asking(plant, stream=True, seed=3) as (reader, _):
        head = await reader.readuntil(b"data: ")
        assert b"200 OK" in head
        second = await plant.worker("b2", reply(LONG), pace_s=0.001)
        rest = await reader.readuntil(b"0\r\n\r\n")
    assert rest.count(b"[DONE]") == 1
    answer = b"".join(
        part.split(b'"content":')[1].split(b"}")[0].strip(b'"')
        for part in rest.split(b"data: ")
        if b'"content":' in part
    )
    assert answer.decode() == LONG
    (replayed,) = second.requests
    assert len(replayed.output) == 30
    assert replayed.sampling.seed == first.requests[0].sampling.seed == 3


@pytest.mark.parametrize("dying", ["p1", "d1"])
@pytest.mark.parametrize("after", [0, 1, 5])
async def test_either_side_of_a_disaggregated_pair_may_die(plant, dying, after):
    pair = {
        "p1": await plant.worker("p1", reply(LONG), role=Role.PREFILL, pace_s=0.001),
        "d1": await plant.worker("d1", reply(LONG), role=Role.DECODE, pace_s=0.001),
    }
    pair[dying].lose_after = after
    async with asking(plant) as (reader, _):
        await plant.until(lambda: pair["p1"].requests)
        await plant.worker("p2", reply(LONG), role=Role.PREFILL)
        await plant.worker("d2", reply(LONG), role=Role.DECODE)
        body = (await read_answer(reader)).json()
    assert body["choices"][0]["message"]["content"] == LONG


async def test_a_decode_worker_that_could_not_fetch_says_everything_again(plant):
    await plant.worker("p1", reply(LONG), role=Role.PREFILL)
    decode = await plant.worker("d1", reply(LONG), role=Role.DECODE, pace_s=0.001)
    decode.refetch = True
    assert (await plant.chat(stream=True)).text == LONG


async def test_losses_come_to_an_end(make_plant):
    async with make_plant(worker_wait_s=3.0) as plant:
        workers = [await plant.worker(f"b{index}", reply(LONG)) for index in range(4)]
        for worker in workers:
            worker.lose_after = 3
        answer = await plant.chat()
        assert answer.status == 502
        assert answer.json()["error"]["code"] == "worker_lost"
        assert sum(len(worker.requests) for worker in workers) == 3


async def test_an_error_in_mid_stream_is_an_event(plant):
    worker = await plant.worker("b1", reply(LONG), pace_s=0.001)
    worker.lose_after = 10
    answer = await plant.chat(stream=True)
    assert answer.status == 200
    assert answer.events[-1]["error"]["code"] in ("worker_lost", "no_worker")
    assert answer.text == LONG[:10]


async def test_a_retryable_failure_goes_to_another_worker(plant):
    worker = await plant.worker("b1")
    worker.fail = Failed(429, "queue_full", "the queue is full", retryable=True)
    full = await plant.chat()
    assert full.status == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["type"] == "rate_limit_error"
    other = await plant.worker("b2")
    for _ in range(3):
        assert (await plant.chat()).status == 200
    assert len(other.requests) == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "code"), [(400, "context_length_exceeded"), (422, "x"), (500, "boom")])
async def test_a_final_failure_keeps_its_status(plant, stream, status, code):
    worker = await plant.worker("b1")
    worker.fail = Failed(status, code, "this cannot be done")
    answer = await plant.chat(stream=stream)
    assert answer.status == status
    assert answer.json()["error"]["message"] == "this cannot be done"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_at_the_worker(plant, stream):
    worker = await plant.worker("b1", reply(LONG), pace_s=0.01)
    async with asking(plant, stream=stream, n=2):
        await plant.until(lambda: len(worker.requests) == 2)
    await plant.until(lambda: len(worker.cancelled) == 2)
    assert plant.server.handler._service.metrics.in_flight == 0


async def test_a_client_that_leaves_a_running_stream_cancels_both_sides(plant):
    prefill = await plant.worker("p1", reply(LONG), role=Role.PREFILL)
    decode = await plant.worker("d1", reply(LONG), role=Role.DECODE, pace_s=0.01)
    async with asking(plant, stream=True) as (reader, _):
        await reader.readuntil(b"content")
        await plant.until(lambda: decode.requests)
    await plant.until(lambda: len(decode.cancelled) == 1)
    assert not prefill.cancelled


async def test_no_worker_is_503_after_the_wait(plant):
    answer = await plant.chat()
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "no_worker"
    assert "retry-after" in answer.headers


async def test_a_worker_that_comes_while_a_request_waits_serves_it(make_plant):
    async with make_plant(worker_wait_s=5.0) as plant, asking(plant) as (reader, _):
        await asyncio.sleep(0.05)
        await plant.worker("b1")
        assert (await read_answer(reader)).json()["choices"][0]["message"]["content"] == REPLY


async def test_a_lone_prefill_worker_serves_nothing(plant):
    await plant.worker("p1", role=Role.PREFILL)
    answer = await plant.chat()
    assert answer.status == 503
    assert "decode" in answer.json()["error"]["message"]


async def test_decode_workers_do_it_all_where_there_is_no_prefill_worker(plant):
    decode = await plant.worker("d1", role=Role.DECODE)
    assert (await plant.chat()).status == 200
    assert decode.requests[0].role is Role.BOTH


@pytest.mark.parametrize("other", [{"transports": ("shm",)}, {"fingerprint": "other"}])
async def test_workers_that_cannot_exchange_caches_are_not_paired(plant, other):
    prefill = await plant.worker("p1", role=Role.PREFILL, **other)
    await plant.worker("d1", role=Role.DECODE)
    assert (await plant.chat()).status == 200
    assert not prefill.requests


async def test_requests_are_spread(plant):
    workers = [await plant.worker(f"b{index}", reply(LONG), pace_s=0.005) for index in range(3)]
    await asyncio.gather(*(plant.chat() for _ in range(9)))
    assert [len(worker.requests) for worker in workers] == [3, 3, 3]


async def test_reported_load_counts(plant):
    busy = await plant.worker("b1")
    idle = await plant.worker("b2")
    busy.report(StepMetrics(running=60, kv_blocks_used=900, kv_blocks_total=1024))
    await plant.until(lambda: any(link.metrics.running for link in links(plant)))
    for _ in range(4):
        await plant.chat()
    assert (len(busy.requests), len(idle.requests)) == (0, 4)


def links(plant):
    return list(plant.server.handler._service.models.first.workers.links())


@pytest.mark.parametrize("how", ["card", "load"])
async def test_a_draining_worker_ends_what_it_has_and_gets_nothing_new(plant, how):
    draining = await plant.worker("b1", reply(LONG), pace_s=0.002)
    async with asking(plant) as (reader, _):
        await plant.until(lambda: draining.requests)
        if how == "card":
            await draining.announce(WorkerState.DRAINING)
        else:
            draining.report(StepMetrics(), draining=True)
        await plant.until(lambda: not plant.knows("b1"))
        other = await plant.worker("b2")
        assert (await plant.chat()).status == 200
        assert (await read_answer(reader)).json()["choices"][0]["message"]["content"] == LONG
    assert (len(draining.requests), len(other.requests)) == (1, 1)


async def test_a_worker_whose_card_is_gone_ends_what_it_has(plant):
    worker = await plant.worker("b1", reply(LONG), pace_s=0.002)
    async with asking(plant) as (reader, _):
        await plant.until(lambda: worker.requests)
        await plant.registry.delete(worker.key)
        assert (await read_answer(reader)).json()["choices"][0]["message"]["content"] == LONG
    await plant.until(lambda: not links(plant))


async def test_a_bad_card_is_passed_over(plant):
    await plant.registry.put("workers/bad", b"{")
    await plant.worker("b1")
    assert (await plant.chat()).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_takes_too_long_is_504(make_plant, stream):
    async with make_plant(request_timeout_s=0.1) as plant:
        worker = await plant.worker("b1")
        worker.mute = True
        answer = await plant.chat(stream=stream)
        assert answer.status == 504
        await plant.until(lambda: len(worker.cancelled) == 1)


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(make_plant):
    async with make_plant(request_timeout_s=0.2) as plant:
        await plant.worker("b1", reply(LONG), pace_s=0.05)
        answer = await plant.chat(stream=True)
        assert answer.events[-1]["error"]["code"] == "deadline_exceeded"


async def test_a_slow_reader_pauses_its_worker_and_loses_nothing(plant):
    worker = await plant.worker("b1", reply(LONG * 3), pace_s=0.001)
    (listening,) = plant.server._server.sockets
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", plant.port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=4096)
    body = {**CHAT, "stream": True, "n": 4, "logprobs": True, "top_logprobs": 2}
    writer.write(request_bytes("POST", "/v1/chat/completions", body))
    (link,) = links(plant)
    await plant.until(lambda: link._connection.statistics().paused_streams == 4)
    assert len(worker.requests) == 4
    async with asyncio.timeout(20):
        answer = await read_answer(reader)
    assert answer.text == LONG * 3
    writer.close()
    await writer.wait_closed()


async def test_cancelled_waiting_leaves_nothing(make_plant):
    async with make_plant(worker_wait_s=5.0) as plant:
        worker = await plant.worker("b1")
        worker.mute = True
        async with asking(plant):
            await plant.until(lambda: worker.requests)
            await worker.crash()
            queue = plant.server.handler._service.models.first.plant
            await plant.until(lambda: queue.stats().queued == 1)
        await plant.until(lambda: queue.stats().queued == 0)
