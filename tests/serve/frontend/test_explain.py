from __future__ import annotations

import asyncio
import json

import pytest

from tokenmill.clock import VirtualClock
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.errors import NotFound, NoWorker
from tokenmill.protocol.ids import Role
from tokenmill.serve.frontend.explain import ExplainStore
from tokenmill.serve.frontend.http.messages import Request

from .conftest import reply

LONG = "The quick brown fox jumps over the lazy dog. " * 4
SECRET = "swordfish"


async def explained(plant, name):
    answer = await plant.ask("GET", f"/v1/explain/{name}")
    assert answer.status == 200, answer.body
    return answer.json()


def in_order(timeline, *names):
    """The timeline has these names, in this order, none before its elder."""
    assert [name for name in timeline if name in names] == list(names)
    assert list(timeline.values()) == sorted(timeline.values())


async def test_both_ids_tell_the_same_and_nothing_of_what_was_said(aggregated):
    body = {"messages": [{"role": "user", "content": SECRET}], "seed": 3}
    answer = await aggregated.post("/v1/chat/completions", body, [("x-request-id", "mine/1")])
    told = await explained(aggregated, "mine%2F1")
    assert told == await explained(aggregated, answer.json()["id"])
    assert told == await explained(aggregated, "mine/1")
    assert SECRET not in json.dumps(told)
    assert (told["request_id"], told["id"]) == ("mine/1", answer.json()["id"])
    assert (told["endpoint"], told["state"], told["status"]) == ("/v1/chat/completions", "ended", "200")
    usage = answer.json()["usage"]
    assert told["tokens"] == {"prompt": usage["prompt_tokens"], "output": usage["completion_tokens"]}
    in_order(told["timeline_ms"], "received", "tokenized", "finished")
    assert told["timeline_ms"]["received"] == 0
    assert told["started"].endswith("+00:00")


async def test_an_attempt_has_its_candidates_with_every_term(plant):
    for name in ("b1", "b2"):
        await plant.worker(name)
    await plant.chat()
    answer = await plant.chat()
    told = await explained(plant, answer.headers["x-request-id"])
    (choice,) = told["choices"]
    assert choice["finish_reason"] == "stop"
    (attempt,) = choice["attempts"]
    in_order(attempt["timeline_ms"], "asked", "routed", "sent", "first_token")
    assert attempt["moved"] is None
    assert attempt["prefill_worker"] is None
    candidates = {each["worker"]: each for each in attempt["candidates"]}
    assert candidates.keys() == {"b1", "b2"}
    assert candidates[attempt["decode_worker"]]["chosen"] == "both"
    for candidate in candidates.values():
        terms = dict(candidate["cost"])
        assert terms.pop("total_ms") == pytest.approx(sum(terms.values()))
        assert candidate["cached_tokens"].keys() == {"device", "host", "disk"}
        assert candidate["load"]
    assert told["routing"]["policy"]
    assert told["routing"]["weights"]["prefill"] == RouterSettings().weights.prefill


async def test_a_handoff_has_its_ways_and_its_times(make_plant):
    async with make_plant(router_prefill="remote") as plant:
        await plant.worker("p1", role=Role.PREFILL)
        await plant.worker("d1", role=Role.DECODE)
        answer = await plant.chat(stream=True)
        told = await explained(plant, answer.headers["x-request-id"])
        (attempt,) = told["choices"][0]["attempts"]
        assert (attempt["prefill_worker"], attempt["decode_worker"]) == ("p1", "d1")
        times = attempt["timeline_ms"]
        assert {"sent", "cache_offered", "first_token", "cache_transferred"} < times.keys()
        assert times["sent"] <= times["cache_offered"] <= times["cache_transferred"]
        ways = {way["kind"]: way for way in attempt["ways"]}
        assert ways.keys() == {"local", "remote"}
        assert (ways["remote"]["chosen"], ways["local"]["chosen"]) == (True, False)
        for way in ways.values():
            assert way["terms"].keys() > {"total_ms", "prefill"}


async def test_a_request_that_moved_has_an_attempt_for_each_worker(make_plant):
    async with make_plant(worker_wait_s=20.0) as plant:
        first = await plant.worker("b1", reply(LONG), pace_s=0.0005)
        first.lose_after = 20
        body = {"messages": [{"role": "user", "content": "hi"}]}
        asked = asyncio.create_task(plant.post("/v1/chat/completions", body, [("x-request-id", "moves")]))
        plant_shell = plant.server.handler._service.models.first.plant
        await plant.until(lambda: plant_shell.queued_total)
        waiting = (await explained(plant, "moves"))["choices"][0]["attempts"][1]
        assert waiting["decode_worker"] is None
        in_order(waiting["timeline_ms"], "asked", "queued")
        assert "routed" not in waiting["timeline_ms"]
        await plant.worker("b2", reply(LONG))
        answer = await asked
        told = await explained(plant, "moves")
    lost, last = told["choices"][0]["attempts"]
    prompt_tokens = answer.json()["usage"]["prompt_tokens"]
    error = lost["moved"].pop("error")
    assert "closed" in error
    assert lost["moved"] == {
        "reason": "lost",
        "phase": "decode",
        "from_worker": "b1",
        "replayed_tokens": prompt_tokens + 20,
    }
    assert (lost["decode_worker"], last["decode_worker"]) == ("b1", "b2")
    assert (lost["first_output_position"], last["first_output_position"]) == (0, 20)
    in_order(lost["timeline_ms"], "routed", "sent", "first_token", "moved")
    in_order(last["timeline_ms"], "asked", "queued", "admitted", "routed", "sent", "first_token")
    assert lost["timeline_ms"]["moved"] <= last["timeline_ms"]["asked"]


async def test_choices_are_told_one_by_one(aggregated):
    answer = await aggregated.chat(n=3)
    told = await explained(aggregated, answer.json()["id"])
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    tokens = [choice["tokens"]["output"] for choice in told["choices"]]
    assert sum(tokens) == answer.json()["usage"]["completion_tokens"] == told["tokens"]["output"]


async def test_a_running_request_can_be_asked_about(plant):
    worker = await plant.worker("b1")
    worker.mute = True
    asked = asyncio.create_task(
        plant.post("/v1/completions", {"prompt": "abc"}, [("x-request-id", "running")])
    )
    await plant.until(lambda: worker.requests)
    told = await explained(plant, "running")
    assert (told["state"], told["status"]) == ("running", None)
    (attempt,) = told["choices"][0]["attempts"]
    assert "sent" in attempt["timeline_ms"]
    assert "first_token" not in attempt["timeline_ms"]
    asked.cancel()
    await asyncio.wait([asked])
    await plant.until(lambda: worker.cancelled)
    told = await explained(plant, "running")
    assert (told["state"], told["status"]) == ("ended", "499")
    assert told["choices"][0]["finish_reason"] == "cancelled"


async def test_a_failure_says_why(make_plant):
    async with make_plant(migration_max_attempts=1) as plant:
        worker = await plant.worker("b1", reply(LONG))
        worker.lose_after = 5
        answer = await plant.chat()
        assert answer.status == 502
        told = await explained(plant, answer.headers["x-request-id"])
        assert told["status"] == "502"
        (choice,) = told["choices"]
        assert choice["not_moved"] == "attempts"
        assert choice["error"]["code"] == "worker_lost"
        assert choice["error"]["message"] == answer.json()["error"]["message"]


async def test_a_request_that_found_no_worker_is_told_too(plant):
    answer = await plant.chat()
    assert answer.status == 503
    told = await explained(plant, answer.headers["x-request-id"])
    assert (told["state"], told["status"]) == ("ended", "503")
    assert told["error"]["code"] == "no_worker"
    assert told["choices"] == []


async def test_an_unknown_id_is_404_and_names_the_frontend(aggregated):
    answer = await aggregated.ask("GET", "/v1/explain/nobody")
    assert answer.status == 404
    frontend = aggregated.server.handler._service.frontend_id
    assert frontend in answer.json()["error"]["message"]
    assert (await aggregated.post("/v1/explain/nobody", {})).status == 405
    assert (await aggregated.ask("GET", "/v1/explain/")).status == 404


async def test_it_can_be_switched_off(make_plant):
    async with make_plant(explain_requests=0) as plant:
        await plant.worker("b1")
        answer = await plant.chat()
        asked = await plant.ask("GET", f"/v1/explain/{answer.headers['x-request-id']}")
        assert asked.status == 404
        assert "explain_requests" in asked.json()["error"]["message"]


def store(keep) -> ExplainStore:
    return ExplainStore(VirtualClock(), RouterSettings(), keep=keep, frontend="f")


def begin(kept: ExplainStore, request_id: str, answer_id: str):
    request = Request("POST", "/", "", {"x-request-id": request_id}, b"", True, True)
    return kept.begin("/v1/completions", request, answer_id, 0.0, 3)


def test_the_oldest_are_forgotten():
    kept = store(2)
    for number in range(5):
        begin(kept, f"r{number}", f"a{number}")
    assert [kept.tell(name)["id"] for name in ("r3", "a3", "r4", "a4")] == ["a3", "a3", "a4", "a4"]
    for name in ("r2", "a2", "r0"):
        with pytest.raises(NotFound):
            kept.tell(name)
    assert len(kept._by_id) == 4


def test_of_one_id_used_twice_the_later_request_is_told():
    kept = store(2)
    begin(kept, "same", "a0")
    begin(kept, "same", "a1")
    begin(kept, "other", "a2")
    assert kept.tell("same")["id"] == "a1"
    begin(kept, "third", "a3")
    with pytest.raises(NotFound):
        kept.tell("same")


def test_only_the_first_end_counts():
    kept = store(1)
    begin(kept, "r", "a").ended(1.0, "499")
    kept.failed("r", "503", NoWorker("nobody"))
    kept.failed("unknown", "503", NoWorker("nobody"))
    assert (kept.tell("r")["status"], kept.tell("r")["error"]) == ("499", None)
