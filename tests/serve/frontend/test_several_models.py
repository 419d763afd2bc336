"""Several models behind one front door: each request goes to its model's workers, and each is counted
apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tokenmill.protocol.ids import Role
from tokenmill.testing.tiny_tokenizer import write_tiny_tokenizer

from .conftest import Plant, reply


@pytest.fixture
async def two(make_plant, tmp_path) -> AsyncIterator[Plant]:
    paths = {name: str(write_tiny_tokenizer(tmp_path / name)) for name in ("alpha", "org/beta")}
    async with make_plant(model="", model_paths=paths) as plant:
        yield plant


async def worker(plant: Plant, name: str, model: str, text: str, **options):
    models = {served.name: served for served in plant.server.handler._service.models.all}
    made = await start(plant, name, model, text, **options)
    links = models[model].workers.links
    await plant.until(lambda: any(link.card.worker_id == name and link.usable for link in links()))
    return made


async def start(plant: Plant, name: str, model: str, text: str, **options):
    from tokenmill.testing.scripted_worker import ScriptedWorker

    made = ScriptedWorker(plant.registry, name, reply(text), card={"model": model}, **options)
    plant.stack.push_async_callback(made.stop)
    await made.start()
    return made


def content(answer) -> str:
    return answer.json()["choices"][0]["message"]["content"]


async def test_each_request_goes_to_its_models_workers(two: Plant):
    first = await worker(two, "a1", "alpha", "I am alpha")
    second = await worker(two, "b1", "org/beta", "I am beta")
    answer = await two.chat(model="alpha")
    assert (content(answer), answer.json()["model"]) == ("I am alpha", "alpha")
    answer = await two.chat(model="org/beta")
    assert (content(answer), answer.json()["model"]) == ("I am beta", "org/beta")
    streamed = await two.complete(model="org/beta", stream=True)
    assert streamed.text == "I am beta"
    assert {event["model"] for event in streamed.events[:-1]} == {"org/beta"}
    assert (len(first.requests), len(second.requests)) == (1, 2)


async def test_models_are_listed_and_others_are_not_found(two: Plant):
    await worker(two, "a1", "alpha", "x", max_model_len=512)
    listed = (await two.ask("GET", "/v1/models")).json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in listed] == [("alpha", 512), ("org/beta", None)]
    assert (await two.ask("GET", "/v1/models/org/beta")).json()["id"] == "org/beta"
    assert (await two.ask("GET", "/v1/models/org%2Fbeta")).json()["id"] == "org/beta"
    missing = await two.chat(model="gamma")
    assert missing.status == 404
    assert missing.json()["error"] == {
        "message": "The model `gamma` does not exist; this server has `alpha`, `org/beta`",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    nameless = await two.chat()
    assert nameless.status == 400
    assert nameless.json()["error"]["message"] == "model is missing; this server has `alpha`, `org/beta`"
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert (await two.post(path, {**body, "model": "gamma"})).status == 404
        assert (await two.post(path, {**body, "model": "alpha"})).status == 200


async def test_a_model_without_workers_takes_nothing_from_the_others(two: Plant):
    await worker(two, "a1", "alpha", "fine")
    assert (await two.ask("GET", "/ready")).status == 200
    refused = await two.chat(model="org/beta")
    assert (refused.status, refused.json()["error"]["code"]) == (503, "no_worker")
    assert content(await two.chat(model="alpha")) == "fine"
    health = (await two.ask("GET", "/health")).json()
    assert (health["status"], health["ready"]) == ("degraded", True)
    assert health["notes"] == ["org/beta: no worker is ready"]
    assert "router" not in health
    assert health["models"]["alpha"]["mode"] == "aggregated"
    assert health["models"]["org/beta"]["ready"] is False
    assert [each["model"] for each in health["worker_list"]] == ["alpha"]
    assert health["workers"]["both"] == {"ready": 1}


async def test_nothing_is_ready_while_no_model_is(two: Plant):
    answer = await two.ask("GET", "/ready")
    assert answer.status == 503
    assert answer.json()["notes"] == ["alpha: no worker is ready", "org/beta: no worker is ready"]
    assert (await two.ask("GET", "/health")).json()["status"] == "unavailable"


async def test_metrics_and_explain_tell_the_models_apart(two: Plant):
    await worker(two, "a1", "alpha", "x")
    await worker(two, "b1", "org/beta", "y")
    request_id = (await two.chat(model="alpha")).headers["x-request-id"]
    text = (await two.ask("GET", "/metrics")).body.decode()
    assert (
        'tokenmill_generations_total{endpoint="/v1/chat/completions",model="alpha",status="200"} 1.0' in text
    )
    assert 'tokenmill_output_tokens_total{model="alpha"} 2.0' in text
    assert 'tokenmill_output_tokens_total{model="org/beta"} 0.0' in text
    assert 'tokenmill_worker_streams{model="org/beta",role="both",state="ready",worker="b1"} 0.0' in text
    assert 'tokenmill_request_seconds_bucket{le="+Inf",model="alpha"} 1.0' in text
    kinds = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    told = (await two.ask("GET", f"/v1/explain/{request_id}")).json()
    assert told["model"] == "alpha"
    assert told["choices"][0]["attempts"][0]["decode_worker"] == "a1"


async def test_a_metric_of_one_model_has_no_label_for_it(make_plant):
    async with make_plant() as plant:
        await plant.worker("w")
        await plant.chat()
        text = (await plant.ask("GET", "/metrics")).body.decode()
    assert "\ntokenmill_prompt_tokens_total " in text
    assert "model=" not in text


async def test_prefill_and_decode_are_paired_within_a_model(two: Plant):
    await worker(two, "ap", "alpha", "from alpha", role=Role.PREFILL)
    await worker(two, "ad", "alpha", "from alpha", role=Role.DECODE)
    await worker(two, "bd", "org/beta", "from beta", role=Role.DECODE)
    answer = await two.chat(model="org/beta")
    told = (await two.ask("GET", f"/v1/explain/{answer.headers['x-request-id']}")).json()
    assert told["choices"][0]["attempts"][0]["prefill_worker"] is None
    assert content(answer) == "from beta"
    answer = await two.chat(model="alpha")
    told = (await two.ask("GET", f"/v1/explain/{answer.headers['x-request-id']}")).json()
    assert told["choices"][0]["attempts"][0]["prefill_worker"] == "ap"


async def test_the_limit_of_streams_is_one_for_all_models(make_plant, tmp_path):
    paths = {name: str(write_tiny_tokenizer(tmp_path / name)) for name in "ab"}
    async with make_plant(model="", model_paths=paths, max_streams=1) as plant:
        held = await worker(plant, "a1", "a", "x")
        held.mute = True
        await worker(plant, "b1", "b", "y")
        service = plant.server.handler._service
        waiting = asyncio.ensure_future(plant.chat(model="a"))
        await plant.until(lambda: service.metrics.in_flight == 1)
        refused = await plant.chat(model="b")
        assert (refused.status, refused.json()["error"]["code"]) == (503, "too_many_streams")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_two_front_doors_share_what_they_routed_of_every_model(make_plant, tmp_path):
    from tokenmill.serve.frontend.wiring import frontend
    from tokenmill.spec.process import FrontendConfig

    paths = {name: str(write_tiny_tokenizer(tmp_path / name)) for name in "ab"}
    async with make_plant(model="", model_paths=paths) as plant:
        config = FrontendConfig(model_paths=paths, port=0)
        async with frontend(config, plant.registry) as other:
            for name in "ab":
                made = await worker(plant, f"{name}1", name, "x")
                made.mute = True
            services = plant.server.handler._service, other.handler._service
            await plant.until(
                lambda: (
                    all(link.connected for service in services for link in service.peers.links())
                    and all(len(list(service.peers.links())) == 1 for service in services)
                )
            )
            theirs = services[1].models.all
            await plant.until(lambda: all(len(model.workers.usable) == 1 for model in theirs))
            await plant.until(
                lambda: all(model.workers.router.send_notes for model in services[0].models.all)
            )
            asked = [asyncio.ensure_future(plant.chat(model=name)) for name in "ab"]
            await plant.until(
                lambda: all(
                    seat.load.sent_sequences == 1
                    for model in theirs
                    for seat in model.workers.router._roster.seats.values()
                )
            )
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
