"""What a request becomes at a vLLM server, and what its answers mean, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.serve.engines.books import Books, request

from tokenmill.clock import VirtualClock
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
from tokenmill.serve.engines.vllm.submission import Submission
from tokenmill.serve.engines.vllm.wire import KvOffer

PARAMS: dict[str, object] = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_port": 5600}


def piece(tokens: list[int], reason: str | None = None, **fields: object) -> bytes:
    choice = {"index": 0, "text": "", "token_ids": tokens, "finish_reason": reason, **fields}
    return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"


USAGE = (
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def whole(tokens: list[int], reason: str = "length", **fields: object) -> bytes:
    extra = {name: fields.pop(name) for name in ("kv_transfer_params",) if name in fields}
    choice = {"index": 0, "text": "", "token_ids": tokens, "finish_reason": reason, **fields}
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}
    return msgspec.json.encode({"choices": [choice], "usage": usage, **extra})


Script = list[tuple[int, list[bytes]] | None]
"""For each request: status and pieces of the body; None: the connection is closed without an answer."""


@asynccontextmanager
async def vllm(script: Script) -> AsyncIterator[tuple[HttpClient, list[dict[str, object]]]]:
    bodies: list[dict[str, object]] = []
    tasks: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                bodies.append(msgspec.json.decode(await reader.readexactly(length)))
                answer = script[len(bodies) - 1]
                if answer is None:
                    return
                status, pieces = answer
                writer.write(b"HTTP/1.1 %d x\r\ntransfer-encoding: chunked\r\n\r\n" % status)
                for part in pieces:
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = HttpClient(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield client, bodies
    finally:
        await client.close()
        listening.close()
        await asyncio.gather(*(task for task in tasks if task is not None))
        await listening.wait_closed()


LEASE_S = 30.0


def submission(
    asked: GenerateRequest, client: HttpClient, books: Books, *, token_route: bool = False
) -> Submission:
    return Submission(
        asked, client, "m", books, clock=VirtualClock(), lease_s=LEASE_S, token_route=token_route
    )


async def run(
    script: Script, asked: GenerateRequest, *, log: str = "", token_route: bool = False
) -> tuple[Books, list[dict[str, object]]]:
    books = Books(log)
    async with vllm(script) as (client, bodies):
        submission(asked, client, books, token_route=token_route).start()
        await books.end()
    return books, bodies


def handoff(first_token: int = 11, age_s: float = 0.0) -> Handoff:
    offer = KvOffer(PARAMS, first_token, made_at_s=VirtualClock().wall() - age_s, lease_s=LEASE_S)
    return Handoff("vllm", msgspec.json.encode(offer), 3, early=False)


async def test_a_stream() -> None:
    script: Script = [(200, [piece([11]), piece([12, 13]), piece([14], "length"), USAGE, DONE])]
    books, (body,) = await run(script, request())
    assert books.items == [
        Tokens(0, [11]),
        Tokens(1, [12, 13]),
        Finished(3, [14], FinishReason.LENGTH, cached_tokens=2),
    ]
    assert books.notes == ["progressed"]
    assert body["prompt"] == [5, 6, 7]
    assert (body["stream"], body["return_token_ids"], body["max_tokens"]) == (True, True, 4)
    assert "kv_transfer_params" not in body


async def test_a_stop_token_is_named() -> None:
    books, _ = await run([(200, [piece([11]), piece([2], "stop"), DONE])], request())
    assert books.items[-1] == Finished(1, [2], FinishReason.STOP, stop_token=2)


async def test_a_replay_continues_where_it_was_cut() -> None:
    asked = request(output=[11, 12], min_tokens=3)
    books, (body,) = await run([(200, [piece([13]), piece([14], "length"), DONE])], asked)
    assert (body["prompt"], body["max_tokens"], body["min_tokens"]) == ([5, 6, 7, 11, 12], 2, 1)
    assert books.items == [Tokens(2, [13]), Finished(3, [14], FinishReason.LENGTH)]


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
    )
    _, (body,) = await run([(200, [piece([1], "length"), DONE])], asked)
    expected: dict[str, object] = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.8,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"9": -1.5},
        "stop_token_ids": [8, 9],
        "ignore_eos": True,
        "logprobs": 2,
        "cache_salt": "tenant",
        "seed": 7,
    }
    assert {name: body[name] for name in expected} == expected


async def test_constraints_go_along_as_the_client_wrote_them() -> None:
    wanted = {"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a", "b"]}}
    asked = request(constraints=wanted)
    _, (body,) = await run([(200, [piece([1], "length"), DONE])], asked, token_route=True)
    assert {name: body[name] for name in wanted} == wanted
    assert body["prompt"] == [5, 6, 7], "the route for tokens does not take them"


async def test_the_route_for_tokens() -> None:
    scores = {"content": [{"token_id": 11, "logprob": -3.0, "rank": 3, "top_logprobs": [
        {"token_id": 11, "logprob": -3.0}, {"token_id": 4, "logprob": -0.5}, {"token_id": 5, "logprob": -1.0}
    ]}]}  # fmt: skip
    asked = request(output=[9], logprobs=2, logit_bias={9: -1.5}, cache_salt="tenant")
    script: Script = [(200, [piece([11], logprobs=scores), piece([], "length"), DONE])]
    books, (body,) = await run(script, asked, token_route=True)
    assert (body["token_ids"], body["stream"], body["cache_salt"]) == ([5, 6, 7, 9], True, "tenant")
    sampling = body["sampling_params"]
    assert isinstance(sampling, dict)
    expected = {"max_tokens": 3, "seed": 7, "logprobs": 2, "detokenize": False, "logit_bias": {"9": -1.5}}
    assert {name: sampling[name] for name in expected} == expected
    assert books.items[0] == Tokens(1, [11], [TokenLogprobs(-3.0, [(4, -0.5), (5, -1.0)])])


async def test_log_probabilities() -> None:
    scores = {
        "tokens": ["token_id:11"],
        "token_logprobs": [-3.0],
        "top_logprobs": [{"token_id:4": -0.5, "token_id:5": -1.0, "token_id:11": -3.0}],
    }
    script: Script = [(200, [piece([11], logprobs=scores), piece([], "length"), DONE])]
    books, _ = await run(script, request(logprobs=2))
    (first, _end) = books.items
    assert isinstance(first, Tokens)
    assert first.logprobs is not None
    assert first.logprobs[0].logprob == -3.0
    assert first.logprobs[0].top == [(4, -0.5), (5, -1.0)]


async def test_prompt_log_probabilities_come_whole() -> None:
    entry = {"6": {"logprob": -1.0, "rank": 2}, "9": {"logprob": -0.5, "rank": 1}}
    answer = whole([11, 12], prompt_logprobs=[None, entry, {"7": {"logprob": -2.0}}])
    books, (body,) = await run([(200, [answer])], request(prompt_logprobs=1))
    assert body["stream"] is False
    scored, end = books.items
    assert isinstance(scored, PromptScored)
    assert scored.logprobs[0] is None
    assert scored.logprobs[1] is not None
    assert (scored.logprobs[1].logprob, scored.logprobs[1].top) == (-1.0, [(9, -0.5)])
    assert end == Finished(0, [11, 12], FinishReason.LENGTH, cached_tokens=1)


async def test_a_prefill_offers_its_cache() -> None:
    answer = whole([11], kv_transfer_params=PARAMS)
    books, (body,) = await run([(200, [answer])], request(Role.PREFILL))
    assert (body["max_tokens"], body["stream"]) == (1, False)
    asked = body["kv_transfer_params"]
    assert isinstance(asked, dict)
    assert (asked["do_remote_decode"], asked["do_remote_prefill"]) == (True, False)
    assert books.items == [Offered(handoff(), 1), Finished(0, [11], FinishReason.HANDOFF, cached_tokens=1)]
    assert books.notes == ["progressed", "out"]


@pytest.mark.parametrize(("reason", "most"), [("stop", 4), ("length", 1)])
async def test_a_prefill_whose_first_token_is_the_last_offers_nothing(reason: str, most: int) -> None:
    answer = whole([2], reason, kv_transfer_params=PARAMS)
    books, _ = await run([(200, [answer])], request(Role.PREFILL, max_tokens=most))
    (end,) = books.items
    assert isinstance(end, Finished)
    assert end.reason.value == reason


async def test_a_prefill_without_a_connector_says_so() -> None:
    books, _ = await run([(200, [whole([11])])], request(Role.PREFILL))
    (end,) = books.items
    assert isinstance(end, Failed)
    assert end.retryable
    assert "--kv-transfer-config" in end.message


async def test_a_decode_passes_the_parameters_on_unread() -> None:
    asked = request(Role.DECODE, handoff=handoff())
    books, (body,) = await run([(200, [piece([11]), piece([12], "length"), DONE])], asked)
    assert body["kv_transfer_params"] == PARAMS
    assert books.items == [Tokens(0, [11]), Finished(1, [12], FinishReason.LENGTH)]
    assert books.notes == ["progressed", "in"]


FAILED = b'{"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}'

FAILURES: list[tuple[str, tuple[int, list[bytes]] | None, str]] = [
    ("says nothing", (500, [FAILED]), "engine"),
    ("500", (500, [b'{"error": {"message": "NIXL_ERR_REMOTE_DISCONNECT", "code": 500}}']), "unreachable"),
    ("old style", (500, [b'{"object": "error", "message": "gone", "code": 500}']), "engine"),
    (
        "event",
        (200, [b'data: {"error": {"message": "lease expired", "code": 500}}\n\n', DONE]),
        "lease_expired",
    ),
    (
        "event in one read with the end",
        (200, [b'data: {"error": {"message": "lease expired", "code": 500}}\n\n' + DONE]),
        "lease_expired",
    ),
    ("aborted", (200, [DONE]), "engine"),
    ("unknown", (404, [b'{"error": {"message": "no such engine", "code": 404}}']), "engine"),
    ("closed", None, "unreachable"),
]


@pytest.mark.parametrize(("name", "answer", "reason"), FAILURES, ids=[name for name, _, _ in FAILURES])
async def test_a_cache_that_does_not_come_is_computed_here(
    name: str, answer: tuple[int, list[bytes]] | None, reason: str
) -> None:
    asked = request(Role.DECODE, handoff=handoff())
    script: Script = [answer, (200, [piece([12]), piece([13], "length"), DONE])]
    books, bodies = await run(script, asked)
    assert "kv_transfer_params" not in bodies[1], name
    # The client has the prefill side's token already; what follows must follow that one.
    assert (bodies[1]["prompt"], bodies[1]["max_tokens"]) == ([5, 6, 7, 11], 3)
    assert books.items == [Tokens(1, [12]), Finished(2, [13], FinishReason.LENGTH)]
    assert books.notes[1].startswith(f"failed: {reason}: ")


async def test_a_full_server_is_not_asked_for_more() -> None:
    asked = request(Role.DECODE, handoff=handoff())
    books, bodies = await run([(429, [b'{"error": {"message": "full", "code": 429}}'])], asked)
    assert len(bodies) == 1
    assert isinstance(books.items[-1], Failed)
    assert (books.items[-1].status, books.items[-1].retryable) == (429, True)


async def test_the_log_says_more_than_the_answer() -> None:
    asked = request(Role.DECODE, handoff=handoff())
    script: Script = [(500, [FAILED]), (200, [piece([11], "length"), DONE])]
    books, _ = await run(script, asked, log="handshake_failed: NIXL compatibility hash mismatch.")
    assert books.notes[1] == (
        "failed: mismatch: Internal server error (handshake_failed: NIXL compatibility hash mismatch.)"
    )


async def test_a_cache_whose_lease_is_over_is_not_asked_for() -> None:
    """vLLM would hand over whatever lies in those blocks by now."""
    asked = request(Role.DECODE, handoff=handoff(age_s=LEASE_S + 1))
    books, (body,) = await run([(200, [piece([11], "length"), DONE])], asked)
    assert "kv_transfer_params" not in body
    assert books.notes[1].startswith("failed: lease_expired: ")
    asked = request(Role.DECODE, handoff=handoff(age_s=LEASE_S - 1))
    books, (body,) = await run([(200, [piece([11], "length"), DONE])], asked)
    assert body["kv_transfer_params"] == PARAMS


async def test_a_handoff_of_another_make_is_computed_here() -> None:
    asked = request(Role.DECODE, handoff=Handoff("shm", b"x", 3))
    books, (body,) = await run([(200, [piece([11], "length"), DONE])], asked)
    assert "kv_transfer_params" not in body
    assert books.notes[1].startswith("failed: unreadable: the handoff cannot be read")


async def test_another_first_token_is_not_followed() -> None:
    """The client has the prefill side's token already; what follows must follow that one."""
    asked = request(Role.DECODE, handoff=handoff(first_token=20))
    script: Script = [
        (200, [piece([11]), piece([12]), piece([13], "length"), DONE]),
        (200, [piece([21]), piece([22], "length"), DONE]),
    ]
    books, bodies = await run(script, asked)
    assert (bodies[1]["prompt"], bodies[1]["max_tokens"]) == ([5, 6, 7, 20], 3)
    assert books.items == [Tokens(1, [21]), Finished(2, [22], FinishReason.LENGTH)]


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (404, False), (429, True), (500, True), (503, True)]
)
async def test_errors_of_the_server(status: int, retryable: bool) -> None:
    answer = (status, [b'{"error": {"message": "too long", "type": "x", "code": %d}}' % status])
    books, _ = await run([answer], request())
    (end,) = books.items
    assert isinstance(end, Failed)
    assert (end.status, end.message, end.retryable) == (status, "too long", retryable)


async def test_a_stream_that_breaks_off_may_be_replayed() -> None:
    books, _ = await run([(200, [piece([11])])], request())
    end = books.items[-1]
    assert isinstance(end, Failed)
    assert end.retryable


async def test_no_token_ids() -> None:
    books, _ = await run([(200, [b'data: {"choices": [{"text": "a"}]}\n\n'])], request())
    end = books.items[-1]
    assert isinstance(end, Failed)
    assert "token ids" in end.message


async def test_cancelling() -> None:
    books = Books()
    async with vllm([(200, [piece([11])])]) as (client, _):
        call = submission(request(), client, books)
        call.start()
        call.cancel()
        call.cancel()
        assert await books.end() == Finished(0, [], FinishReason.CANCELLED)
