"""What a request becomes at an SGLang server, and what its answers mean, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.serve.engines.books import Books, request

from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import (
    Failed,
    Finished,
    FinishReason,
    Offered,
    PromptScored,
    TokenLogprobs,
    Tokens,
)
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.sglang.launch import MODES
from tokenmill.serve.engines.sglang.server import ServerFacts
from tokenmill.serve.engines.sglang.submission import Submission
from tokenmill.serve.engines.sglang.wire import Pairing
from tokenmill.testing.connections import Request
from tokenmill.testing.sglang_double.http import HangUp, HttpServer, Reply

LENGTH = {"type": "length", "length": 4}
PAIRING = Pairing("10.0.0.1", 8998, 77)


def content(ids: list[int], total: int, reason: object = None, **meta: object) -> bytes:
    info = {"id": "r|", "finish_reason": reason, "completion_tokens": total, "cached_tokens": 2, **meta}
    return msgspec.json.encode({"text": "x", "output_ids": ids, "meta_info": info})


Answer = list[bytes] | bytes | tuple[int, bytes] | None
"""Events of a stream, a whole answer, one with a status; None: the connection is closed without an answer."""


@asynccontextmanager
async def sglang(*script: Answer) -> AsyncIterator[tuple[HttpClient, list[tuple[str, dict]]]]:
    asked: list[tuple[str, dict]] = []
    left = list(script)

    async def events(answer: list[bytes]) -> AsyncIterator[bytes]:
        for payload in answer:
            yield payload

    async def handle(request: Request) -> Reply:
        asked.append((request.path, msgspec.json.decode(request.body)))
        if request.path == "/abort_request":
            return Reply()
        answer = left.pop(0)
        if answer is None:
            raise HangUp
        if isinstance(answer, list):
            return Reply(events=events(answer))
        return Reply(answer[0], answer[1]) if isinstance(answer, tuple) else Reply(body=answer)

    server = HttpServer(handle)
    client = HttpClient(f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}")
    try:
        yield client, asked
    finally:
        await client.close()
        await server.stop()


def facts(role: Role = Role.BOTH, ranks: int = 1) -> ServerFacts:
    return ServerFacts(
        model="m", model_path="m", version="0.5.23", mode=MODES[role], max_model_len=100, block_tokens=16,
        kv_blocks=10, bootstrap_port=8998, kv_dtype="auto", has_metrics=True, sources=(), eos_token_ids=(2,),
        ranks=ranks,
    )  # fmt: skip


def handoff() -> Handoff:
    return Handoff("sglang", msgspec.json.encode(PAIRING), 3)


async def run(asked: GenerateRequest, *script: Answer, at: Role | None = None) -> tuple[Books, list[dict]]:
    """Submit to a server of the request's role, or ``at``; returns the books and the bodies it got."""
    books = Books()
    async with sglang(*script) as (client, got):
        role = at or asked.role
        Submission(asked, client, facts(role), books, bootstrap_host="10.0.0.1").start()
        await books.end()
    return books, [body for path, body in got if path == "/generate"]


@pytest.mark.parametrize("incremental", [True, False])
async def test_a_stream(incremental: bool) -> None:
    """Servers send what is new, or all so far."""
    whole = [11, 12, 13, 14]
    told = [(0, 1, None), (1, 3, None), (3, 4, LENGTH)]
    pieces = [content(whole[start if incremental else 0 : end], end, reason) for start, end, reason in told]
    books, (body,) = await run(request(), [*pieces, b"[DONE]"])
    assert books.items == [
        Tokens(0, [11]),
        Tokens(1, [12, 13]),
        Finished(3, [14], FinishReason.LENGTH, cached_tokens=2),
    ]
    assert books.notes == ["progressed"]
    assert (body["input_ids"], body["stream"]) == ([5, 6, 7], True)
    assert body["sampling_params"]["max_new_tokens"] == 4
    assert "bootstrap_room" not in body


async def test_no_id_begins_another() -> None:
    """SGLang aborts all whose id begins with the one it is given."""
    _, (body,) = await run(request(), [content([1], 1, LENGTH), b"[DONE]"])
    assert body["rid"] == "r|"


async def test_a_stop_token_is_named() -> None:
    pieces = [content([11], 1), content([2], 2, {"type": "stop", "matched": 2}), b"[DONE]"]
    books, _ = await run(request(), pieces)
    assert books.items[-1] == Finished(1, [2], FinishReason.STOP, stop_token=2, cached_tokens=2)


async def test_a_replay_continues_where_it_was_cut() -> None:
    asked = request(output=[11, 12], min_tokens=3)
    books, (body,) = await run(asked, [content([13], 1), content([14], 2, LENGTH), b"[DONE]"])
    params = body["sampling_params"]
    assert (body["input_ids"], params["max_new_tokens"], params["min_new_tokens"]) == (
        [5, 6, 7, 11, 12],
        2,
        1,
    )
    assert books.items == [Tokens(2, [13]), Finished(3, [14], FinishReason.LENGTH, cached_tokens=2)]


async def test_all_sampling_parameters_go_along() -> None:
    asked = request(
        temperature=0.5,
        top_k=3,
        top_p=0.8,
        min_p=0.1,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias={9: -1.5},
        stop_token_ids=(8, 9),
        ignore_eos=True,
        logprobs=2,
        cache_salt="tenant",
        seed=2**63 + 5,
    )
    scores = {"output_token_logprobs": [[-1.0, 1, None]], "output_top_logprobs": [[[-1.0, 1, None]]]}
    _, (body,) = await run(asked, [content([1], 1, LENGTH, **scores), b"[DONE]"])
    assert body["sampling_params"] == {
        "max_new_tokens": 4,
        "min_new_tokens": 0,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.8,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "sampling_seed": 5,
        "skip_special_tokens": False,
        "logit_bias": {"9": -1.5},
        "stop_token_ids": [8, 9],
    }
    assert (body["return_logprob"], body["top_logprobs_num"]) == (True, 2)
    assert (body["cache_salt"], body["extra_key"]) == ("tenant", "tenant")
    _, (plain,) = await run(request(), [content([1], 1, LENGTH), b"[DONE]"])
    assert plain["sampling_params"]["top_k"] == -1
    assert not {"return_logprob", "cache_salt"} & set(plain)


@pytest.mark.parametrize("incremental", [True, False])
async def test_log_probabilities(incremental: bool) -> None:
    entries = [[-0.5, 11, None], [-3.0, 12, None]]
    tops = [[[-0.5, 11, None], [-1.0, 4, None]], [[-2.0, 5, None], [-0.1, 6, None]]]
    first = content([11], 1, output_token_logprobs=entries[:1], output_top_logprobs=tops[:1])
    start = 1 if incremental else 0
    second = content(
        [11, 12][start:], 2, LENGTH, output_token_logprobs=entries[start:], output_top_logprobs=tops[start:]
    )
    books, _ = await run(request(logprobs=2), [first, second, b"[DONE]"])
    told, end = books.items
    assert isinstance(told, Tokens)
    assert isinstance(end, Finished)
    assert told.logprobs == [TokenLogprobs(-0.5, [(11, -0.5), (4, -1.0)])]
    assert end.logprobs == [TokenLogprobs(-3.0, [(6, -0.1), (5, -2.0)])]


def scored(tokens: list[int]) -> bytes:
    prompt = [[None, 5, None], [-1.0, 6, None], [-2.0, 7, None]]
    tops = [None, [[-0.5, 9, None]], [[-2.0, 7, None]]]
    return content(tokens, len(tokens), LENGTH, input_token_logprobs=prompt, input_top_logprobs=tops)


SCORES = PromptScored([None, TokenLogprobs(-1.0, [(9, -0.5)]), TokenLogprobs(-2.0, [(7, -2.0)])])


async def test_prompt_log_probabilities_come_whole() -> None:
    books, (body,) = await run(request(prompt_logprobs=1), scored([11, 12]))
    assert (body["stream"], body["return_logprob"], body["logprob_start_len"]) == (False, True, 0)
    assert books.items == [SCORES, Finished(0, [11, 12], FinishReason.LENGTH, cached_tokens=2)]


async def test_a_prefill_is_offered_before_it_is_computed() -> None:
    books, (body,) = await run(request(Role.PREFILL), content([11], 1, LENGTH))
    offered, end = books.items
    assert isinstance(offered, Offered)
    assert offered.handoff.early
    assert (offered.handoff.transport, offered.handoff.prompt_tokens) == ("sglang", 3)
    pairing = msgspec.json.decode(offered.handoff.descriptor, type=Pairing)
    assert (pairing.host, pairing.port) == ("10.0.0.1", 8998)
    assert pairing == Pairing(body["bootstrap_host"], body["bootstrap_port"], body["bootstrap_room"])
    assert 0 < pairing.room < 2**63
    assert end == Finished(0, [], FinishReason.HANDOFF, cached_tokens=2)
    assert books.notes == ["out"]


async def test_a_prefill_need_not_tell_the_token_that_the_decode_side_has() -> None:
    books, _ = await run(request(Role.PREFILL), content([], 0, LENGTH))
    assert books.items[1:] == [Finished(0, [], FinishReason.HANDOFF, cached_tokens=2)]


async def test_rooms_differ() -> None:
    rooms = [
        (await run(request(Role.PREFILL), content([11], 1, LENGTH)))[1][0]["bootstrap_room"] for _ in range(3)
    ]
    assert len(set(rooms)) == 3


@pytest.mark.parametrize(
    ("token", "fields", "reason"),
    [
        (11, {}, FinishReason.LENGTH),
        (2, {}, FinishReason.STOP),
        (2, {"ignore_eos": True}, FinishReason.LENGTH),
        (9, {"stop_token_ids": (9,)}, FinishReason.STOP),
        (9, {"stop_token_ids": (9,), "min_tokens": 2}, FinishReason.LENGTH),
    ],
)
async def test_a_prefill_of_one_token_is_for_nobody(token: int, fields: dict, reason: FinishReason) -> None:
    """A prefill server says length whatever the token is."""
    books, (body,) = await run(request(Role.PREFILL, max_tokens=1, **fields), content([token], 1, LENGTH))
    assert body["bootstrap_host"] == "2.2.2.2"
    stop = token if reason is FinishReason.STOP else None
    assert books.items == [Finished(0, [token], reason, stop_token=stop, cached_tokens=2)]


async def test_a_prompt_is_scored_before_it_is_offered() -> None:
    asked = request(Role.PREFILL, prompt_logprobs=1)
    books, (first, second) = await run(asked, scored([11]), content([11], 1, LENGTH))
    assert (first["bootstrap_host"], second["bootstrap_host"]) == ("2.2.2.2", "10.0.0.1")
    assert "logprob_start_len" not in second
    assert books.items[0] == SCORES
    assert isinstance(books.items[1], Offered)
    assert books.items[2] == Finished(0, [], FinishReason.HANDOFF, cached_tokens=2)


@pytest.mark.parametrize("role", [Role.BOTH, Role.PREFILL])
async def test_a_rank_is_named_or_is_the_rooms_remainder(role: Role) -> None:
    whole = content([11], 1, LENGTH)
    for rank in range(3):
        books = Books()
        async with sglang([whole, b"[DONE]"] if role is Role.BOTH else whole) as (client, got):
            Submission(request(role), client, facts(role, ranks=3), books, rank=rank).start()
            await books.end()
        ((_, body),) = got
        if role is Role.BOTH:
            assert body["routed_dp_rank"] == rank
        else:
            assert "routed_dp_rank" not in body
            assert 0 < body["bootstrap_room"] < 2**63
            assert body["bootstrap_room"] % 3 == rank


async def test_a_grammar_goes_along() -> None:
    asked = request(constraints={"structured_outputs": {"regex": "a+"}})
    _, (body,) = await run(asked, [content([1], 1, LENGTH), b"[DONE]"])
    assert body["sampling_params"]["regex"] == "a+"


async def test_a_decode_goes_to_the_same_room() -> None:
    asked = request(Role.DECODE, handoff=handoff())
    books, (body,) = await run(asked, [content([11], 1), content([12], 2, LENGTH), b"[DONE]"])
    assert Pairing(body["bootstrap_host"], body["bootstrap_port"], body["bootstrap_room"]) == PAIRING
    assert books.items == [Tokens(0, [11]), Finished(1, [12], FinishReason.LENGTH, cached_tokens=2)]
    assert books.notes == ["progressed", "in"]


def aborted(message: str, status: int | None) -> bytes:
    reason = {"type": "abort", "message": message, "status_code": status, "err_type": None}
    return content([], 0, reason)


LOSSES = [
    ("Decode handshake failed for request rank=0", "bootstrap"),
    ("Decode transfer failed for request rank=0", "transfer"),
    ("Request 7 timed out after 300s in KVPoll.WaitingForInput", "timeout"),
    ("Prefill server is healthy before, but now it is down.", "sender_lost"),
    ("Metadata corruption detected - bootstrap_room mismatch", "transfer"),
    ("something else", "engine"),
]


@pytest.mark.parametrize(("message", "reason"), LOSSES)
async def test_a_decode_whose_cache_does_not_come_says_why(message: str, reason: str) -> None:
    asked = request(Role.DECODE, handoff=handoff())
    books, _ = await run(asked, [aborted(message, 500), b"[DONE]"])
    assert books.notes == [f"failed: {reason}: {message}"]
    assert books.items == [Failed(503, "handoff_failed", message, retryable=True)]


async def test_a_prefill_whose_cache_is_not_fetched_says_why() -> None:
    body = b'{"object": "error", "message": "Prefill bootstrap failed", "type": "500", "code": 500}'
    books, _ = await run(request(Role.PREFILL), (500, body))
    assert books.notes == ["failed: bootstrap: Prefill bootstrap failed"]
    assert isinstance(books.items[0], Offered)
    assert books.items[1:] == [Failed(503, "handoff_failed", "Prefill bootstrap failed", retryable=True)]


@pytest.mark.parametrize("given", [None, Handoff("shm", b"x", 3), Handoff("sglang", b"nowhere", 3)])
async def test_a_handoff_of_another_make(given: Handoff | None) -> None:
    books, bodies = await run(request(Role.DECODE, handoff=given))
    assert not bodies
    assert books.notes[0].startswith("failed: unreadable: the handoff cannot be read")
    (end,) = books.items
    assert isinstance(end, Failed)
    assert (end.code, end.retryable) == ("handoff_failed", True)


@pytest.mark.parametrize("mode", [Role.PREFILL, Role.DECODE])
async def test_a_server_of_a_pair_serves_nobody_alone(mode: Role) -> None:
    books, bodies = await run(request(), at=mode)
    assert not bodies
    (end,) = books.items
    assert isinstance(end, Failed)
    assert (end.code, end.retryable) == ("needs_partner", True)


async def test_a_failure_after_the_first_token_is_no_failed_handoff() -> None:
    asked = request(Role.DECODE, handoff=handoff())
    books, _ = await run(asked, [content([11], 1), aborted("out of memory", 500), b"[DONE]"])
    assert books.items == [Tokens(0, [11]), Failed(500, "engine_failed", "out of memory", retryable=True)]


ERRORS: list[tuple[str, Answer, int, bool]] = [
    ("value", (400, b'{"error": {"message": "too long"}}'), 400, False),
    ("contract", (400, b'{"error": "too long"}'), 400, False),
    ("http", (503, b'{"object": "error", "message": "too long", "type": "503", "code": 503}'), 503, True),
    ("full", (429, b'{"error": {"message": "too long"}}'), 429, True),
    ("no json", (502, b"too long"), 502, True),
    (
        "event",
        [b'{"error": {"message": "too long", "type": "x", "code": 400, "retryable": false}}'],
        400,
        False,
    ),
    ("queue", [aborted("too long", 503)], 503, True),
    ("client", [aborted("too long", None)], 503, True),
]


@pytest.mark.parametrize(("name", "answer", "status", "retryable"), ERRORS, ids=[each[0] for each in ERRORS])
async def test_errors_of_the_server(name: str, answer: Answer, status: int, retryable: bool) -> None:
    books, _ = await run(request(), answer)
    (end,) = books.items
    assert isinstance(end, Failed), name
    assert (end.status, end.message, end.retryable) == (status, "too long", retryable)


BROKEN: list[tuple[str, Answer, str]] = [
    ("cut", [content([11], 1)], "ended too early"),
    ("gap", [content([11], 3)], "skipped tokens"),
    ("no ids", [b'{"text": "a", "meta_info": {"completion_tokens": 1}}'], "token ids"),
    ("no json", [b"{"], "cannot be read"),
    ("closed", None, "broke"),
]


@pytest.mark.parametrize(("name", "answer", "message"), BROKEN, ids=[each[0] for each in BROKEN])
async def test_a_broken_answer_may_be_replayed(name: str, answer: Answer, message: str) -> None:
    books, _ = await run(request(), answer)
    end = books.items[-1]
    assert isinstance(end, Failed), name
    assert end.retryable
    assert message in end.message


async def test_cancelling_hangs_up_and_says_so() -> None:
    books = Books()
    aborts: asyncio.Queue[dict] = asyncio.Queue()
    began = asyncio.Event()

    async def handle(request: Request) -> Reply:
        if request.path == "/abort_request":
            aborts.put_nowait(json.loads(request.body))
            return Reply()
        began.set()
        await asyncio.Event().wait()
        raise HangUp

    server = HttpServer(handle)
    client = HttpClient(f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}")
    try:
        submission = Submission(request(), client, facts(), books)
        submission.start()
        async with asyncio.timeout(10):
            await began.wait()
            submission.cancel()
            submission.cancel()
            assert await aborts.get() == {"rid": "r|"}
    finally:
        await client.close()
        await server.stop()
    assert books.items == [Finished(0, [], FinishReason.CANCELLED)]
    assert aborts.empty()
