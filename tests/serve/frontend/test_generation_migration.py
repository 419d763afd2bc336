"""What a client sees while its workers die, freeze, break and are full: nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from tokenmill.errors import WorkerLost
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed
from tokenmill.protocol.metrics import StepMetrics

from .conftest import reply
from .freezing import Frozen
from .http_client import read_answer, request_bytes

LONG = "The quick brown fox jumps over the lazy dog. " * 4
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def asking(plant, **fields):
    """A chat whose answer is read by the test."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.port)
    try:
        writer.write(request_bytes("POST", "/v1/chat/completions", {**CHAT, **fields}))
        async with asyncio.timeout(20):
            yield reader
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def patient(make_plant):
    """A frontend that waits long for workers, so that a slow machine fails no test."""
    async with make_plant(worker_wait_s=20.0) as plant:
        yield plant


async def answered_over_a_loss(plant, text, lose_after, **fields):
    """The answer to a chat whose first worker is lost after so many tokens."""
    first = await plant.worker("b1", reply(text), pace_s=0.0005)
    first.lose_after = lose_after
    async with asking(plant, **fields) as reader:
        await plant.until(lambda: first.requests)
        second = await plant.worker("b2", reply(text))
        answer = await read_answer(reader)
    assert second.requests, "the first worker was not lost in time"
    return answer, second


def finish_of(answer):
    """The finish reason of a stream of one choice."""
    reasons = [event["choices"][0]["finish_reason"] for event in answer.events if event != "[DONE]"]
    return reasons[-1]


async def metric(plant, name):
    """All values of a metric, by labels."""
    text = (await plant.ask("GET", "/metrics")).body.decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
    return {labels.removeprefix(name): float(value) for labels, value in lines}


@pytest.mark.parametrize("lose_after", [6, 7, 8, 9])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_may_begin_before_the_seam_and_end_behind_it(patient, lose_after, stream):
    answer, _ = await answered_over_a_loss(
        patient, "before STOP after", lose_after, stop=["STOP"], stream=stream
    )
    if stream:
        assert (answer.text, finish_of(answer)) == ("before ", "stop")
    else:
        choice = answer.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("before ", "stop")
        assert answer.json()["usage"]["completion_tokens"] == len("before STOP")


@pytest.mark.parametrize("lose_after", [1, 2, 3])
async def test_half_a_character_waits_for_its_other_half_from_the_next_worker(patient, lose_after):
    answer, second = await answered_over_a_loss(patient, "wörld", lose_after, stream=True)
    assert answer.text == "wörld"
    assert len(second.requests[0].output) == lose_after


async def test_log_probabilities_and_usage_continue(patient):
    answer, second = await answered_over_a_loss(patient, LONG, 20, logprobs=True, top_logprobs=2)
    undisturbed = (await patient.chat(logprobs=True, top_logprobs=2)).json()
    assert len(second.requests[0].output) == 20
    assert answer.json()["choices"] == undisturbed["choices"]
    assert answer.json()["usage"]["completion_tokens"] == undisturbed["usage"]["completion_tokens"]


async def test_each_choice_moves_by_itself(patient):
    first = await patient.worker("b1", reply(LONG), pace_s=0.0005)
    second = await patient.worker("b2", reply(LONG), pace_s=0.002)
    async with asking(patient, n=4, seed=1) as reader:
        await patient.until(lambda: len(first.requests) == len(second.requests) == 2)
        first.lose_after = 20
        answer = (await read_answer(reader)).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [LONG] * 4
    assert answer["usage"]["completion_tokens"] == 4 * (len(LONG) + 1)
    moved = [request for request in second.requests if request.output]
    assert sorted(request.request_id[-4:] for request in moved) == sorted(
        f"{request.request_id[-2:]}.1" for request in first.requests
    )


async def test_scores_of_the_prompt_are_delivered_once(patient):
    first = await patient.worker("b1", reply(LONG), pace_s=0.0005)
    first.lose_after = 20
    asked = asyncio.create_task(patient.complete(echo=True, logprobs=1, max_tokens=300))
    await patient.until(lambda: first.requests)
    second = await patient.worker("b2", reply(LONG))
    answer = (await asked).json()
    (replayed,) = second.requests
    assert replayed.sampling.prompt_logprobs is None
    undisturbed = (await patient.complete(echo=True, logprobs=1, max_tokens=300)).json()
    assert answer["choices"] == undisturbed["choices"]


async def test_a_frozen_worker_is_replaced_and_what_it_says_later_is_not_heard(make_plant):
    async with make_plant(migration_stall_timeout_s=0.4, worker_wait_s=20.0) as plant:
        first = await plant.worker("b1", reply(LONG), pace_s=0.002)
        async with asking(plant, stream=True) as reader:
            await plant.until(lambda: first._said > 5)
            frozen = Frozen(first)
            second = await plant.worker("b2", reply(LONG), pace_s=0.002)
            await plant.until(lambda: second.requests)
            assert not plant.knows("b1")
            frozen.thaw()
            answer = await read_answer(reader)
        (replayed,) = second.requests
        assert len(replayed.output) > 5
        assert (answer.text, finish_of(answer)) == (LONG, "stop")
        assert await metric(plant, "tokenmill_migrations_total") == {'{phase="decode",reason="stalled"}': 1.0}


@pytest.mark.parametrize("spoken", [False, True])
async def test_a_frozen_prefill_worker_is_not_waited_for(make_plant, spoken):
    """``spoken``: it has given its token, and nobody knows whether the cache has arrived."""
    settings = {"migration_stall_timeout_s": 0.4, "router_prefill": "remote"}
    async with make_plant(**settings, worker_wait_s=20.0) as plant:
        prefill = await plant.worker("p1", reply(LONG), role=Role.PREFILL, pace_s=0.0 if spoken else 9.0)
        decode = await plant.worker("d1", reply(LONG), role=Role.DECODE)
        play = decode._play

        def play_unless_it_fetches(stream, items):
            if stream.call.request.role is not Role.DECODE:
                play(stream, items)

        decode._play = play_unless_it_fetches
        async with asking(plant, stream=True) as reader:
            await plant.until(lambda: decode.requests)
            Frozen(prefill)
            answer = await read_answer(reader)
        assert answer.text == LONG
        assert len(decode.cancelled) == 1
        again = decode.requests[-1]
        assert (again.role, len(again.output)) == (Role.BOTH, 1 if spoken else 0)
        phase = "decode" if spoken else "prefill"
        assert await metric(plant, "tokenmill_migrations_total") == {
            f'{{phase="{phase}",reason="stalled"}}': 1.0
        }


async def test_an_engine_that_stands_still_is_left_and_comes_back_with_its_next_step(make_plant):
    async with make_plant(migration_step_timeout_s=0.05, worker_wait_s=20.0) as plant:
        stuck = await plant.worker("b1", reply(LONG))
        stuck.mute = True
        async with asking(plant) as reader:
            await plant.until(lambda: stuck.requests)
            other = await plant.worker("b2", reply(LONG))
            for _ in range(400):
                stuck.report(StepMetrics(step=5, running=1))
                await asyncio.sleep(0.01)
                if other.requests:
                    break
            answer = (await read_answer(reader)).json()
        assert answer["choices"][0]["message"]["content"] == LONG
        assert await metric(plant, "tokenmill_migrations_total") == {
            '{phase="prefill",reason="stalled"}': 1.0
        }
        await plant.until(lambda: stuck._subscribers)
        stuck.report(StepMetrics(step=5, running=1))
        stuck.report(StepMetrics(step=6, running=1))
        await plant.until(lambda: plant.knows("b1"))


async def test_the_only_worker_may_have_it_again_when_it_is_back(make_plant):
    async with make_plant(worker_wait_s=0.3) as plant:
        worker = await plant.worker("b1", reply(LONG), pace_s=0.001)
        async with asking(plant, stream=True) as reader:
            await plant.until(lambda: worker._said > 5)
            for connection in tuple(worker._server._connections):
                connection.link.fail(WorkerLost("the network"))
            answer = await read_answer(reader)
        assert (answer.text, finish_of(answer)) == (LONG, "stop")
        assert len(worker.requests) == 2


async def test_what_is_too_long_ends_with_an_error_that_names_the_limit(make_plant):
    async with make_plant(migration_max_tokens=20) as plant:
        worker = await plant.worker("b1", reply(LONG), pace_s=0.001)
        worker.lose_after = 25
        answer = await plant.chat(stream=True)
        assert answer.text == LONG[:25]
        assert answer.events[-1]["error"]["code"] == "worker_lost"
        assert "migration.max_tokens" in answer.events[-1]["error"]["message"]
        assert await metric(plant, "tokenmill_migration_failures_total") == {'{reason="too_long"}': 1.0}


async def test_migration_can_be_switched_off(make_plant):
    async with make_plant(migration_max_attempts=1) as plant:
        worker = await plant.worker("b1", reply(LONG), pace_s=0.001)
        worker.lose_after = 5
        answer = await plant.chat(stream=True)
        assert answer.text == LONG[:5]
        assert "migration.max_attempts" in answer.events[-1]["error"]["message"]
        assert await metric(plant, "tokenmill_migration_failures_total") == {'{reason="attempts"}': 1.0}


async def test_nobody_else_is_an_error_that_says_so(plant):
    worker = await plant.worker("b1", reply(LONG), pace_s=0.001)
    worker.lose_after = 10
    answer = await plant.chat(stream=True)
    assert answer.text == LONG[:10]
    error = answer.events[-1]["error"]
    assert error["code"] == "worker_lost"
    assert "no other worker" in error["message"]
    assert await metric(plant, "tokenmill_migration_failures_total") == {'{reason="no_worker"}': 1.0}


async def test_a_failure_that_another_worker_may_not_have(patient):
    worker = await patient.worker("b1", reply(LONG))
    worker.fail = Failed(500, "step_failed", "a step failed", retryable=True)
    async with asking(patient) as reader:
        await patient.until(lambda: worker.requests)
        await patient.worker("b2", reply(LONG))
        answer = (await read_answer(reader)).json()
    assert answer["choices"][0]["message"]["content"] == LONG
    assert await metric(patient, "tokenmill_migrations_total") == {'{phase="prefill",reason="failed"}': 1.0}
    replayed = await metric(patient, "tokenmill_migration_replayed_tokens_total")
    assert list(replayed.values()) == [float(answer["usage"]["prompt_tokens"])]
