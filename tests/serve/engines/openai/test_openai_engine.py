"""The engine of text against real sockets: what is sent, what comes back, what goes wrong."""

from __future__ import annotations

import asyncio
import json

import pytest

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError, WorkerLost
from tokenmill.protocol.card import Speech
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed
from tokenmill.protocol.metrics import Circuit
from tokenmill.protocol.text import TextFinished
from tokenmill.serve.engines.openai.engine import OpenAiArguments, OpenAiEngine, OpenAiOptions
from tokenmill.serve.engines.opening import open_engine
from tokenmill.spec.process import WorkerConfig

from .conftest import DONE, USAGE, Server, attached, delta, serving

QUICK = OpenAiArguments(
    breaker_failures=2, breaker_open_s=0.2, breaker_longest_s=0.4, idle_timeout_s=0.3, answer_timeout_s=0.3
)


async def test_a_streamed_answer_comes_piece_by_piece_with_usage(server: Server):
    async with attached(server, api_key="sk-1") as client:
        end = await client.ask(temperature=0.5, tools=[{"type": "function"}])
        assert isinstance(end, TextFinished)
        assert client.text("r") == "Hello"
        assert (end.index, end.reason) == (2, "stop")
        usage = end.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (7, 4, 2)
        assert json.loads(usage.told) == USAGE
        metrics = client.engine.metrics()
        assert (metrics.running, metrics.decode_tokens_total, metrics.prefix_hit_tokens_total) == (0, 2, 4)
    listed, asked = server.asked
    assert (listed.method, listed.path) == ("GET", "/v1/models")
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == "Bearer sk-1"
    assert asked.body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [],
        "temperature": 0.5,
        "tools": [{"type": "function"}],
    }


async def test_a_whole_answer_comes_as_it_is(server: Server):
    choices = [{"index": 0, "message": {"content": "hi", "tool_calls": [1]}, "finish_reason": "tool_calls"}]
    server.answer = {"choices": choices, "usage": USAGE, "id": "x"}
    async with attached(server, path="/v1/") as client:
        end = await client.ask(stream=False)
    assert isinstance(end, TextFinished)
    assert json.loads(end.pieces[0]) == choices
    assert end.reason == "tool_calls"
    assert "stream_options" not in server.asked[-1].body
    assert server.asked[-1].path == "/v1/chat/completions"


async def test_all_choices_come_on_one_stream(server: Server):
    server.events = [delta("a"), delta("b", index=1), delta("", "stop", 1), delta("", "length"), DONE]
    async with attached(server) as client:
        end = await client.ask(n=2)
    assert isinstance(end, TextFinished)
    assert (end.reason, end.usage) == ("length", None)
    assert server.asked[-1].body["n"] == 2


async def test_the_servers_own_model_name_context_and_sole_model_are_found(server: Server):
    server.models = [{"id": "vendor/large", "max_model_len": 4096}, {"id": "llama3:latest"}]
    async with attached(server, model="vendor/large", model_name="large") as client:
        assert (client.info.model, client.info.max_model_len) == ("large", 4096)
        assert (client.info.speaks, client.info.offers, client.info.transports) == (Speech.TEXT, [], [])
        await client.ask()
        assert server.asked[-1].body["model"] == "vendor/large"
    async with attached(server, model_name="llama3") as client:
        await client.ask()
        assert server.asked[-1].body["model"] == "llama3:latest"
    server.models = [{"id": "gguf", "meta": {"n_ctx_train": 8192}}]
    async with attached(server, model_name="mine", max_model_len=1000) as client:
        assert client.info.max_model_len == 1000
        await client.ask()
        assert server.asked[-1].body["model"] == "gguf"


async def test_without_a_name_every_listed_model_is_offered(server: Server):
    server.models = [{"id": "a"}, {"id": "b"}]
    async with attached(server, model_name="") as client:
        assert (client.info.model, client.info.offers) == ("*", ["a", "b"])
        await client.ask(model="b")
        assert server.asked[-1].body["model"] == "b"
        missing = await client.ask("other", model="c")
    assert isinstance(missing, Failed)
    assert (missing.status, missing.code, missing.retryable) == (404, "model_not_found", True)


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        ([{"id": "a"}, {"id": "b"}], {"model_name": "c"}, "model.name: .* has no 'c'; it has a, b"),
        ([{"id": "a"}], {"model": "c"}, "model.path: .* has no 'c'; it has a"),
        (None, {"model_name": "*"}, "lists no models; name the one that you mean"),
    ],
)
async def test_a_model_that_is_not_there_is_named_with_those_that_are(server, models, options, words):
    server.models = models
    with pytest.raises(ConfigError, match=words):
        async with attached(server, **options):
            pass


async def test_a_server_that_lists_nothing_is_taken_at_its_word(server: Server):
    server.models = None
    async with attached(server) as client:
        assert isinstance(await client.ask(), TextFinished)
        assert server.asked[-1].body["model"] == "m"


async def test_a_refused_key_is_said_at_the_start_and_not_shown():
    async with serving(Server()) as server:
        server.serve = refuse(server)
        with pytest.raises(ConfigError, match=r"attach_key: .* refuses it .*bad key \*\*\*") as caught:
            async with attached(server, api_key="sk-secret"):
                pass
        assert "sk-secret" not in caught.value.message


def refuse(server: Server):
    async def serve(reader, writer):
        asked = await server._read(reader)
        key = asked.headers["authorization"].removeprefix("Bearer ")
        server._whole(writer, 401, {"error": {"message": f"bad key {key}"}})

    return serve


async def test_a_server_that_is_not_there_is_waited_for_and_then_given_up():
    async with serving(Server()) as gone:
        pass
    with pytest.raises(WorkerLost, match="cannot connect"):
        async with attached(gone):
            pass


async def test_an_address_with_a_key_in_it_is_refused():
    with pytest.raises(ConfigError, match="put the key into attach_key"):
        OpenAiEngine(OpenAiOptions(attach="https://user:key@host/v1"), SystemClock())


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "too hot", "code": None}}, (400, "upstream_refused", "too hot", False)),
        (422, {"error": "no such field"}, (422, "upstream_refused", "no such field", False)),
        (401, {"error": {"message": "key"}}, (502, "upstream_unauthorized", "key", True)),
        (404, {"error": {"message": "gone"}}, (502, "upstream_not_found", "gone", True)),
        (429, {"error": {"message": "slow down"}}, (429, "upstream_overloaded", "slow down", True)),
        (500, b"<html>oops</html>", (502, "upstream_failed", "<html>oops</html>", True)),
    ],
)
async def test_errors_say_whose_fault_it_is(server: Server, status, body, expected):
    server.status, server.answer = status, body
    async with attached(server) as client:
        end = await client.ask()
    assert isinstance(end, Failed)
    assert (end.status, end.code, end.retryable) == (expected[0], expected[1], expected[3])
    assert expected[2] in end.message


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([delta("Hel"), {"error": {"message": "out of memory", "code": 503}}], "out of memory"),
        ([delta("Hel"), "nonsense{"], "cannot be read"),
        ([delta("Hel")], "in the middle"),
        ([delta("Hel"), DONE], "in the middle"),
        ([], "is empty"),
    ],
)
async def test_half_an_answer_is_never_taken_for_a_whole_one(server: Server, events, words):
    server.events = events
    async with attached(server) as client:
        end = await client.ask()
    assert isinstance(end, Failed)
    assert words in end.message
    assert (end.status, end.retryable) == (502, True)


async def test_a_broken_connection_ends_the_answer(server: Server):
    server.events, server.cut = [delta("Hel")], True
    async with attached(server) as client:
        end = await client.ask()
        assert client.text("r") == "Hel"
    assert isinstance(end, Failed)
    assert end.code == "upstream_lost"


async def test_a_cancel_reaches_the_server(server: Server):
    server.gate = asyncio.Event()
    async with attached(server) as client:
        client.send("r")
        await client.until(lambda: bool(client.items["r"]))
        client.engine.cancel(RequestId("r"))
        end = await client.end_of("r")
        assert isinstance(end, Failed)
        assert end.code == "cancelled"
        await client.until(lambda: server.gone == 1)
        assert client.engine.metrics().circuit is Circuit.CLOSED
        client.engine.cancel(RequestId("unknown"))


async def test_more_than_the_server_may_have_wait_here_and_then_are_refused(server: Server):
    server.gate = asyncio.Event()
    async with attached(server, max_sequences=2, max_waiting=2) as client:
        for name in "abcde":
            client.send(name)
        metrics = client.engine.metrics()
        assert (metrics.running, metrics.waiting) == (2, 2)
        refused = await client.end_of("e")
        assert isinstance(refused, Failed)
        assert (refused.status, refused.retryable) == (429, True)
        client.engine.cancel(RequestId("c"))
        assert isinstance(await client.end_of("c"), Failed)
        server.gate.set()
        for name in "abd":
            assert isinstance(await client.end_of(name), TextFinished)


async def test_a_silent_server_is_given_up(server: Server):
    server.mute = True
    async with attached(server, arguments=QUICK) as client:
        client.send("s")
        client.send("w", stream=False)
        for name in "sw":
            end = await client.end_of(name)
            assert isinstance(end, Failed)
            assert (end.status, end.code, end.retryable) == (504, "upstream_silent", True)
        await client.until(lambda: server.gone == 2)


async def test_the_circuit_opens_is_probed_and_closes_again(server: Server):
    server.status, server.answer = 500, {"error": {"message": "down"}}
    async with attached(server, arguments=QUICK) as client:
        for name in "ab":
            await client.ask(name)
        assert client.engine.metrics().circuit is Circuit.OPEN
        sent = len(server.asked)
        shut = await client.ask("c")
        assert isinstance(shut, Failed)
        assert (shut.status, shut.code, shut.retryable) == (503, "circuit_open", True)
        assert len(server.asked) == sent
        await client.until(lambda: client.engine.metrics().circuit is Circuit.HALF_OPEN)
        server.status = 200
        assert isinstance(await client.ask("d"), TextFinished)
        assert client.engine.metrics().circuit is Circuit.CLOSED


async def test_only_one_probe_is_sent_while_half_open(server: Server):
    server.status, server.answer = 500, b""
    async with attached(server, arguments=QUICK) as client:
        for name in "ab":
            await client.ask(name)
        await client.until(lambda: client.engine.metrics().circuit is Circuit.HALF_OPEN)
        server.status, server.gate = 200, asyncio.Event()
        server.events = [delta("late", "stop")]
        client.send("probe")
        shut = await client.ask("other")
        assert isinstance(shut, Failed)
        assert "is being tried again" in shut.message
        server.gate.set()
        assert isinstance(await client.end_of("probe"), TextFinished)


async def test_a_refused_request_does_not_open_the_circuit(server: Server):
    server.status, server.answer = 400, {"error": {"message": "no"}}
    async with attached(server, arguments=QUICK) as client:
        for number in range(5):
            await client.ask(f"r{number}")
        assert client.engine.metrics().circuit is Circuit.CLOSED


async def test_token_ids_are_refused(server: Server):
    async with attached(server) as client:
        client.items["t"] = []
        client.engine.submit(
            GenerateRequest(request_id=RequestId("t"), prompt=[1], sampling=Sampling(max_tokens=1))
        )
        end = await client.end_of("t")
    assert isinstance(end, Failed)
    assert (end.status, end.code) == (400, "engine_speaks_text")


async def test_a_stop_ends_what_runs_and_what_waits(server: Server):
    server.gate = asyncio.Event()
    async with attached(server, max_sequences=1) as client:
        client.send("a")
        client.send("b")
        await client.until(lambda: bool(client.items["a"]))
    for name in "ab":
        end = client.items[name][-1]
        assert isinstance(end, Failed)
        assert (end.code, end.retryable) == ("engine_stopped", True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "attach: engine openai needs"),
        ({"attach": "http://h", "role": Role.DECODE}, "role: engine openai hands no KV cache over"),
        ({"attach": "ftp://h"}, "is not an address"),
        ({"attach": "http://h", "engine_args": {"idle": "1"}}, "takes idle_timeout_s"),
        ({"attach": "http://h", "engine_args": {"idle_timeout_s": "0"}}, "must be positive"),
        (
            {"attach": "http://h", "attach_key": "env:TOKENMILL_NO_SUCH_KEY"},
            "TOKENMILL_NO_SUCH_KEY is not set",
        ),
    ],
)
async def test_bad_settings_name_the_field(settings, words):
    with pytest.raises(ConfigError, match=words):
        open_engine(WorkerConfig(engine="openai", **settings), None, SystemClock())
