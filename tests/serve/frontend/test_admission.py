"""Requests in front of busy workers: who waits, who goes first, who is refused and how."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from tokenmill.protocol.ids import Role
from tokenmill.protocol.metrics import StepMetrics

from .conftest import REPLY, reply
from .http_client import exchange, read_answer, request_bytes

LONG = "The quick brown fox jumps over the lazy dog. " * 4
FULL = StepMetrics(kv_blocks_used=1024, kv_blocks_total=1024)
EMPTY = StepMetrics(kv_blocks_total=1024)


def admitting(plant):
    return plant.server.handler._service.models.first.plant


async def busy_worker(plant, name="b1", script=None, **options):
    worker = await plant.worker(name, script, **options)
    await make_busy(plant, worker)
    return worker


async def make_busy(plant, worker) -> None:
    await plant.until(lambda: worker._subscribers)
    worker.report(FULL)
    await plant.until(lambda: admitting(plant).admission.room.is_busy(worker.worker_id))


@asynccontextmanager
async def asked(plant, prompt="abc", headers=(), **fields):
    """A completion that is under way; yields a reader."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.port)
    try:
        body = {"prompt": prompt, "max_tokens": 64, **fields}
        writer.write(request_bytes("POST", "/v1/completions", body, headers))
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def queued(plant, count: int) -> None:
    await plant.until(lambda: admitting(plant).stats().queued == count)


async def health(plant) -> dict:
    return (await plant.ask("GET", "/health")).json()["admission"]


def prompts(worker) -> list[str]:
    return [bytes(request.prompt[-3:]).decode() for request in worker.requests]


async def test_a_request_waits_for_a_busy_worker(plant):
    worker = await busy_worker(plant)
    async with asked(plant) as reader:
        await queued(plant, 1)
        assert worker.requests == []
        state = await health(plant)
        assert (state["queued"], state["busy_workers"], state["open_workers"]) == (1, 1, 0)
        worker.report(EMPTY)
        async with asyncio.timeout(10):
            answer = await read_answer(reader)
    assert answer.json()["choices"][0]["text"] == REPLY
    assert (await health(plant))["queued"] == 0


async def test_nobody_waits_while_a_worker_has_room(plant):
    busy = await busy_worker(plant)
    other = await plant.worker("b2")
    for _ in range(4):
        assert (await plant.complete()).status == 200
    assert (len(busy.requests), len(other.requests)) == (0, 4)
    assert (await health(plant))["queued_total"] == 0


async def test_a_worker_that_comes_takes_those_who_wait(plant):
    await busy_worker(plant)
    async with asked(plant) as reader:
        await queued(plant, 1)
        await plant.worker("b2")
        async with asyncio.timeout(10):
            assert (await read_answer(reader)).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_429_with_a_time_to_come_back(make_plant, stream):
    async with make_plant(admission_max_queued=1) as plant:
        worker = await busy_worker(plant)
        async with asked(plant) as reader:
            await queued(plant, 1)
            answer = await plant.complete(stream=stream)
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
            worker.report(EMPTY)
            async with asyncio.timeout(10):
                assert (await read_answer(reader)).status == 200
        assert (await health(plant))["refused_total"] == {"queue_full": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_small_tenant_gets_the_place_of_one_who_fills_the_queue(make_plant, stream):
    async with make_plant(admission_max_queued=2) as plant:
        worker = await busy_worker(plant)
        big, small = [("x-tenant-id", "big")], [("x-tenant-id", "small")]
        async with asked(plant, headers=big) as kept, asked(plant, headers=big, stream=stream) as evicted:
            await queued(plant, 2)
            async with asked(plant, headers=small) as reader, asyncio.timeout(10):
                answer = await read_answer(evicted)
                assert answer.status == 429
                assert int(answer.headers["retry-after"]) >= 1
                worker.report(EMPTY)
                assert [(await read_answer(one)).status for one in (kept, reader)] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waited_too_long_is_503_with_a_time_to_come_back(make_plant, stream):
    async with make_plant(admission_max_wait_s=0.1) as plant:
        worker = await busy_worker(plant)
        answer = await plant.complete(stream=stream)
        assert answer.status == 503
        assert answer.json()["error"]["code"] == "queue_timeout"
        assert int(answer.headers["retry-after"]) >= 1
        assert worker.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_of_its_own_is_504(plant, stream):
    await busy_worker(plant)
    body = {"prompt": "abc", "stream": stream}
    answer = await plant.post("/v1/completions", body, [("x-request-deadline-ms", "100")])
    assert answer.status == 504
    assert int(answer.headers["retry-after"]) >= 1
    assert (await health(plant))["refused_total"] == {"deadline_passed": 1}


async def test_a_deadline_ends_what_is_being_generated(plant):
    worker = await plant.worker("b1")
    worker.mute = True
    answer = await plant.post("/v1/completions", {"prompt": "abc"}, [("x-request-deadline-ms", "100")])
    assert answer.status == 504
    await plant.until(lambda: len(worker.cancelled) == 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-priority", "high"),
        ("x-request-priority", "101"),
        ("x-request-priority", "9" * 400),
        ("x-request-priority", ""),
        ("x-request-deadline-ms", "soon"),
        ("x-request-deadline-ms", "0"),
        ("x-request-deadline-ms", "-5"),
        ("x-request-deadline-ms", "nan"),
        ("x-request-deadline-ms", "1e300"),
        ("x-tenant-id", "t" * 300),
        ("x-session-id", "s" * 300),
    ],
)
async def test_bad_headers_are_named(aggregated, name, value):
    answer = await aggregated.post("/v1/completions", {"prompt": "abc"}, [(name, value)])
    assert answer.status == 400
    assert answer.json()["error"]["param"] == name


async def test_a_header_goes_before_the_field(aggregated):
    headers = [("x-request-priority", "-7")]
    await aggregated.post("/v1/completions", {"prompt": "abc", "priority": 4}, headers)
    await aggregated.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, headers)
    assert [request.priority for request in aggregated.workers[0].requests] == [-7, -7]


async def test_higher_priorities_overtake(plant):
    worker = await busy_worker(plant)
    async with asked(plant, "low", [("x-request-priority", "-1")]) as low:
        await queued(plant, 1)
        async with asked(plant, "mid") as mid:
            await queued(plant, 2)
            async with asked(plant, "top", [("x-request-priority", "9")]) as top, asyncio.timeout(10):
                await queued(plant, 3)
                worker.report(EMPTY)
                for reader in (top, mid, low):
                    assert (await read_answer(reader)).status == 200
    assert prompts(worker) == ["top", "mid", "low"]


@pytest.mark.parametrize("header", ["x-tenant-id", "X-Customer"])
async def test_tenants_take_turns(make_plant, header):
    async with make_plant(admission_tenant_header=header) as plant:
        worker = await busy_worker(plant)
        readers = []
        async with asyncio.timeout(20):
            async with asyncio.TaskGroup() as group:
                for index, tenant in enumerate("aaaaaabb"):
                    prompt = f"{tenant}0{index}"
                    body = {"prompt": prompt, "max_tokens": 4}
                    headers = [(header, tenant)]
                    ask = exchange(plant.port, "POST", "/v1/completions", body, headers)
                    readers.append(group.create_task(ask))
                    await queued(plant, index + 1)
                worker.report(EMPTY)
        assert all(task.result().status == 200 for task in readers)
        assert [prompt[0] for prompt in prompts(worker)] == ["a", "b", "a", "b", "a", "a", "a", "a"]


async def test_cancelled_while_queued_leaves_no_trace(plant):
    worker = await busy_worker(plant)
    async with asked(plant):
        await queued(plant, 1)
    await queued(plant, 0)
    worker.report(EMPTY)
    assert (await plant.complete()).status == 200
    assert len(worker.requests) == 1
    queue = admitting(plant)
    assert not queue._queued
    assert queue._timer is None
    queue.admission.validate()


async def test_who_lost_a_worker_goes_before_who_is_new(plant):
    first = await plant.worker("b1", reply(LONG), pace_s=0.001)
    first.lose_after = 20
    async with asked(plant, "old", stream=True) as old, asyncio.timeout(20):
        await old.readuntil(b"data: ")
        second = await busy_worker(plant, "b2", reply(LONG))
        # The first goes while it is the only one with room; new ones wait as soon as it is gone.
        await plant.until(lambda: not plant.knows("b1"))
        await queued(plant, 1)
        async with asked(plant, "new", [("x-request-priority", "100")]) as new:
            await queued(plant, 2)
            second.report(EMPTY)
            await old.readuntil(b"0\r\n\r\n")
            assert (await read_answer(new)).status == 200
    assert prompts(second) == ["old", "new"]


async def test_all_choices_of_a_request_come_through(plant):
    worker = await busy_worker(plant)
    async with asked(plant, n=3, temperature=1.0) as reader:
        await queued(plant, 3)
        worker.report(EMPTY)
        async with asyncio.timeout(10):
            choices = (await read_answer(reader)).json()["choices"]
    assert [choice["text"] for choice in choices] == [REPLY] * 3


async def test_a_request_of_many_choices_is_refused_as_a_whole(make_plant):
    async with make_plant(admission_max_queued=2) as plant:
        worker = await busy_worker(plant)
        answer = await plant.complete(n=4, stream=True)
        assert answer.status == 429
        await queued(plant, 0)
        worker.report(EMPTY)
        assert (await plant.complete()).status == 200
        assert len(worker.requests) == 1


async def test_a_busy_decode_worker_holds_requests_back(plant):
    prefill = await plant.worker("p1", role=Role.PREFILL)
    decode = await busy_worker(plant, "d1", role=Role.DECODE)
    async with asked(plant) as reader:
        await queued(plant, 1)
        assert prefill.requests == []
        decode.report(EMPTY)
        async with asyncio.timeout(10):
            assert (await read_answer(reader)).json()["choices"][0]["text"] == REPLY


async def test_a_busy_pair_has_its_turn_when_the_prefill_worker_has_room(plant):
    prefill = await busy_worker(plant, "p1", role=Role.PREFILL)
    decode = await plant.worker("d1", role=Role.DECODE)
    async with asked(plant) as reader, asyncio.timeout(10):
        await plant.until(lambda: decode.requests or admitting(plant).stats().queued)
        prefill.report(EMPTY)
        decode.report(EMPTY)
        assert (await read_answer(reader)).json()["choices"][0]["text"] == REPLY


async def test_what_was_sent_makes_a_worker_busy_before_it_reports(make_plant):
    async with make_plant(admission_busy_prefill_tokens=5) as plant:
        worker = await plant.worker("b1")
        worker.mute = True
        async with asked(plant, "abcdef"), asked(plant, "ghijkl"):
            await queued(plant, 1)
            assert len(worker.requests) == 1


async def test_a_first_token_makes_room_before_the_next_report(make_plant):
    async with make_plant(admission_busy_prefill_tokens=5) as plant:
        worker = await plant.worker("b1", reply(LONG), pace_s=0.01)
        async with (
            asked(plant, "abcdef", stream=True),
            asked(plant, "ghijkl", stream=True),
            asyncio.timeout(10),
        ):
            await plant.until(lambda: len(worker.requests) == 2)


async def test_without_admission_requests_wait_at_workers(make_plant):
    async with make_plant(admission_enabled=False) as plant:
        worker = await plant.worker("b1")
        await plant.until(lambda: worker._subscribers)
        worker.report(FULL)
        assert (await plant.complete()).status == 200


async def test_the_queue_is_in_the_metrics(make_plant):
    async with make_plant(admission_max_wait_s=0.05) as plant:
        worker = await busy_worker(plant)
        assert (await plant.complete()).status == 503
        async with asked(plant) as reader:
            await plant.until(lambda: admitting(plant).queued_total == 2)
            worker.report(EMPTY)
            async with asyncio.timeout(10):
                await read_answer(reader)
        text = (await plant.ask("GET", "/metrics")).body.decode()
    assert 'tokenmill_admission_refused_total{reason="waited_too_long"}' in text
    assert "tokenmill_admission_queued_total 2.0" in text
    assert "tokenmill_admission_queue_sequences 0.0" in text
    assert 'tokenmill_admission_wait_seconds_bucket{le="+Inf"}' in text
    assert "tokenmill_admission_queue_tokens 0.0" in text


async def test_bad_settings_are_refused_by_name(make_plant):
    from tokenmill.errors import ConfigError

    for settings in ({"admission_max_queued": 0}, {"admission_tenant_weights": {"a": 0.0}}):
        with pytest.raises(ConfigError) as caught:
            async with make_plant(**settings):
                pass
        assert caught.value.param in settings
