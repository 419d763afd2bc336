from __future__ import annotations

import asyncio
import gzip

import pytest

from tokenmill.protocol.ids import Role


async def test_probes(plant):
    assert (await plant.ask("GET", "/live")).status == 200
    unready = await plant.ask("GET", "/ready")
    assert unready.status == 503
    assert unready.json()["notes"] == ["no worker is ready"]
    await plant.worker("p1", role=Role.PREFILL)
    assert (await plant.ask("GET", "/ready")).json()["notes"] == ["no decode worker is ready"]
    await plant.worker("d1", role=Role.DECODE)
    assert (await plant.ask("GET", "/ready")).status == 200


async def test_health(plant):
    assert (await plant.ask("GET", "/health")).json()["status"] == "unavailable"
    await plant.worker("d1", role=Role.DECODE)
    degraded = (await plant.ask("GET", "/health")).json()
    assert (degraded["status"], degraded["mode"], degraded["ready"]) == ("degraded", "degraded", True)
    assert "prefill" in degraded["notes"][0]
    await plant.worker("p1", role=Role.PREFILL)
    health = (await plant.ask("GET", "/health")).json()
    assert (health["status"], health["mode"], health["notes"]) == ("ok", "disaggregated", [])
    assert health["workers"] == {"prefill": {"ready": 1}, "decode": {"ready": 1}, "both": {}}
    assert {worker["id"] for worker in health["worker_list"]} == {"p1", "d1"}
    assert all(worker["kv_blocks_total"] == 1024 for worker in health["worker_list"])


async def test_a_lost_worker_shows(aggregated):
    await aggregated.workers[0].crash()
    await aggregated.until(lambda: not aggregated.knows("b1"))
    health = (await aggregated.ask("GET", "/health")).json()
    assert health["workers"]["both"] == {"lost": 1}


async def test_models(aggregated):
    listed = (await aggregated.ask("GET", "/v1/models")).json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 4096)
    assert (await aggregated.ask("GET", "/v1/models/tiny")).json() == model
    missing = await aggregated.ask("GET", "/v1/models/other")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_tokenize_and_back(aggregated):
    answer = (await aggregated.post("/tokenize", {"prompt": "hé"})).json()
    assert answer == {"count": 3, "max_model_len": 4096, "tokens": [104, 195, 169]}
    assert (await aggregated.post("/detokenize", {"tokens": answer["tokens"]})).json() == {"prompt": "hé"}
    messages = [{"role": "user", "content": "hi"}]
    chat = (await aggregated.post("/tokenize", {"messages": messages, "return_token_strs": True})).json()
    assert chat["tokens"] == [257, 104, 105, 256, 258]
    assert chat["token_strs"][1:3] == ["h", "i"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [9999]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
async def test_bad_tokenizing(plant, path, body, param):
    answer = await plant.post(path, body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_unknown_paths_and_methods(plant):
    missing = await plant.ask("GET", "/v1/nothing")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await plant.ask("GET", "/v1/chat/completions")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert (await plant.ask("DELETE", "/v1/models")).status == 405
    options = await plant.ask("OPTIONS", "/v1/models")
    assert (options.status, options.headers["allow"]) == (204, "GET, OPTIONS, HEAD")
    head = await plant.ask("HEAD", "/live")
    assert (head.status, head.headers["content-length"]) == (200, "17")


async def test_request_ids_go_in_and_out(aggregated):
    given = await aggregated.post("/v1/completions", {"prompt": "a"}, [("X-Request-Id", "mine-1")])
    assert given.headers["x-request-id"] == "mine-1"
    streamed = await aggregated.ask(
        "POST", "/v1/completions", {"prompt": "a", "stream": True}, [("X-Request-Id", "mine-2")]
    )
    assert streamed.headers["x-request-id"] == "mine-2"
    made = [(await aggregated.ask("GET", "/live", None, headers)).headers["x-request-id"]
            for headers in ([], [("x-request-id", "x" * 200)], [("x-request-id", "é")])]  # fmt: skip
    assert all(name.startswith("req-") for name in made)
    assert len(set(made)) == 3


async def test_metrics(aggregated):
    await aggregated.complete()
    await aggregated.complete(stream=True, n=2)
    await aggregated.complete(max_tokens=-1)
    answer = await aggregated.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if line[0] != "#")
    assert float(lines['tokenmill_requests_total{endpoint="/v1/completions",status="200"}']) == 2
    assert float(lines['tokenmill_requests_total{endpoint="/v1/completions",status="400"}']) == 1
    assert float(lines["tokenmill_prompt_tokens_total"]) == 6
    assert float(lines["tokenmill_output_tokens_total"]) == 3 * 15
    assert float(lines["tokenmill_requests_in_flight"]) == 0
    assert float(lines["tokenmill_time_to_first_token_seconds_count"]) == 2
    assert float(lines["tokenmill_inter_token_latency_seconds_count"]) == 3 * 14
    assert float(lines["tokenmill_request_seconds_count"]) == 2
    assert float(lines['tokenmill_request_seconds_bucket{le="+Inf"}']) == 2
    assert any(line.startswith("tokenmill_worker_kv_blocks_total{") for line in lines)


async def test_a_model_without_a_template_takes_no_chats(make_plant, tmp_path):
    from tokenmill.testing.tiny_tokenizer import write_tiny_tokenizer

    folder = write_tiny_tokenizer(tmp_path / "plain", chat_template=False)
    async with make_plant(model=str(folder)) as plant:
        await plant.worker("b1")
        answer = await plant.chat()
        assert (answer.status, answer.json()["error"]["param"]) == (400, "messages")
        assert (await plant.complete()).status == 200


async def test_pages_of_other_origins_read_nothing_unless_they_are_named(make_plant):
    asking = [("origin", "https://a.example"), ("access-control-request-method", "POST")]
    async with make_plant() as plant:
        for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/completions")):
            answer = await plant.ask(method, path, None, asking)
            assert not [
                name for name in answer.headers if name.startswith("access-control") or name == "vary"
            ]
    async with make_plant(cors_origins=["https://a.example"], cors_credentials=True) as plant:
        await plant.worker("b1")
        answer = await plant.ask("OPTIONS", "/v1/completions", None, asking)
        assert answer.status == 204
        assert answer.headers["access-control-allow-methods"] == "POST, OPTIONS"
        for fields in ({}, {"stream": True}, {"max_tokens": -1}):
            answer = await plant.post("/v1/completions", {"prompt": "a", **fields}, asking)
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert answer.headers["vary"] == "Origin"
        answer = await plant.ask("GET", "/v1/models", None, [("origin", "https://b.example")])
        assert "access-control-allow-origin" not in answer.headers


async def test_options_for_the_server_as_a_whole(plant):
    answer = await plant.ask("OPTIONS", "*")
    assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("Application/JSON; Charset=UTF-8", 200),
        ("text/plain", 200),
        ("application/x-www-form-urlencoded", 200),
        ("application/json; charset=latin-1", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
async def test_content_types(aggregated, kind, status):
    headers = [] if kind is None else [("content-type", kind)]
    answer = await aggregated.post("/v1/completions", {"prompt": "a"}, headers)
    assert answer.status == status
    if status == 415:
        assert answer.json()["error"]["code"] == "unsupported_media_type"


async def test_compressed_bodies(aggregated):
    body = gzip.compress(b'{"prompt": "a"}')
    assert (await aggregated.post("/v1/completions", body, [("content-encoding", "gzip")])).status == 200


async def test_only_so_many_requests_are_generated_at_once(make_plant):
    async with make_plant(max_streams=2) as plant:
        worker = await plant.worker("b1")
        worker.mute = True
        service = plant.server.handler._service
        waiting = [
            asyncio.create_task(plant.complete()),
            asyncio.create_task(plant.chat(stream=True)),
        ]
        await plant.until(lambda: service.metrics.in_flight == 2)
        for answer in (await plant.complete(), await plant.chat(stream=True)):
            assert (answer.status, answer.json()["error"]["code"]) == (503, "too_many_streams")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await plant.ask("GET", "/live")).status == 200
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await plant.until(lambda: service.metrics.in_flight == 0)
        worker.mute = False
        assert (await plant.complete()).status == 200
