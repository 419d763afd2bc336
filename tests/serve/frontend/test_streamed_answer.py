"""When a stream writes, and that every token is an event of its own however few writes there are."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import WorkerLost
from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.frontend.answers import StreamedAnswer, Tally
from tokenmill.serve.frontend.openai.chunks import ChatChunks, CompletionChunks
from tokenmill.serve.frontend.openai.json_texts import MAX_TEXTS, JsonTexts
from tokenmill.serve.frontend.write_batch import WriteBatch


class Names:
    def token_text(self, token: int) -> str:
        return f"t{token}"

    def token_bytes(self, token: int) -> bytes:
        return b"t%d" % token


class Sink:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.ended = False

    def write(self, data: bytes) -> None:
        assert data
        assert not self.ended
        self.writes.append(data)

    def end(self, last: bytes = b"") -> None:
        assert not self.ended
        if last:
            self.writes.append(last)
        self.ended = True

    @property
    def events(self) -> list:
        body = b"".join(self.writes).decode()
        assert body.endswith("\n\n") or not body
        return [
            part.removeprefix("data: ") if "[DONE]" in part else json.loads(part.removeprefix("data: "))
            for part in body.split("\n\n")[:-1]
        ]

    def texts(self, index: int = 0) -> list[str]:
        return [
            choice["delta"].get("content", "")
            for event in self.events
            if event != "[DONE]"
            for choice in event.get("choices", ())
            if choice["index"] == index and choice["delta"].get("content")
        ]


class Controls:
    def __init__(self) -> None:
        self.status = ""

    def ended(self, status: str) -> None:
        assert not self.status
        self.status = status

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def chat(choices: int = 1, **options) -> ChatChunks:
    return ChatChunks("id", 1, "m", choices=choices, include_usage=False, names=Names(), **options)


def begun(batch: WriteBatch, choices: int = 1, **options) -> tuple[StreamedAnswer, Sink]:
    """An answer that has sent the first token of choice 0."""
    answer = StreamedAnswer(chat(choices, **options), choices, Tally(1), Controls(), batch)
    answer.output_made(0, ["first"], [1], [TokenLogprobs(0.0)] if "top_logprobs" in options else None)
    sink = Sink()
    answer.attach(sink)
    return answer, sink


LONG_S = 30.0


async def test_what_comes_soon_after_a_write_shares_the_next_one() -> None:
    batch = WriteBatch(LONG_S)
    answer, sink = begun(batch)
    assert len(sink.writes) == 1
    for token in range(5):
        answer.output_made(0, [f"w{token}"], [token], None)
    assert len(sink.writes) == 1
    batch._tick()
    assert len(sink.writes) == 2
    assert sink.texts() == ["first", "w0", "w1", "w2", "w3", "w4"]
    answer.output_made(0, ["x"], [9], None)
    assert len(sink.writes) == 2  # it has just written
    batch._tick()
    batch._tick()
    answer.output_made(0, ["y"], [9], None)
    assert len(sink.writes) == 4  # nobody had to wait
    answer.output_made(0, ["z"], [9], None)
    answer.sequence_finished(0, "stop", 9, 0)
    assert sink.ended
    assert sink.texts() == ["first", "w0", "w1", "w2", "w3", "w4", "x", "y", "z"]
    assert sink.events[-1] == "[DONE]"
    writes = len(sink.writes)
    batch._tick()
    assert len(sink.writes) == writes


async def test_the_timer_runs_only_while_streams_write() -> None:
    batch = WriteBatch(0.001)
    answer, sink = begun(batch)
    async with asyncio.timeout(10):
        for at in range(20):
            answer.output_made(0, [f"{at}"], [at], None)
            while sink.texts()[-1] != f"{at}":
                await asyncio.sleep(0.001)
        while batch._ticking:
            await asyncio.sleep(0.001)
    epoch = batch.epoch
    await asyncio.sleep(0.01)
    assert batch.epoch == epoch


async def test_without_an_interval_each_token_is_written_at_once() -> None:
    answer, sink = begun(WriteBatch(0.0))
    for token in range(5):
        answer.output_made(0, [f"w{token}"], [token], None)
        assert sink.texts()[-1] == f"w{token}"
    assert len(sink.writes) == 6


async def test_streams_do_not_wait_for_each_other() -> None:
    batch = WriteBatch(LONG_S)
    _, first = begun(batch)
    second, sink = begun(batch)
    batch._tick()
    second.output_made(0, ["now"], [1], None)
    assert sink.texts() == ["first", "now"]
    assert first.texts() == ["first"]


async def test_half_a_character_writes_nothing() -> None:
    batch = WriteBatch(LONG_S)
    answer, sink = begun(batch)
    answer.output_made(0, [""], [1], None)
    batch._tick()
    batch._tick()
    answer.output_made(0, [""], [1], None)
    assert len(sink.writes) == 1
    answer.output_made(0, ["é"], [1], None)
    batch._tick()
    assert sink.texts() == ["first", "é"]


async def test_a_client_that_left_is_not_written_to() -> None:
    batch = WriteBatch(LONG_S)
    answer, sink = begun(batch)
    answer.output_made(0, ["more"], [1], None)
    answer.gone()
    batch._tick()
    assert len(sink.writes) == 1
    assert not sink.ended


async def test_an_error_comes_behind_what_waits() -> None:
    batch = WriteBatch(LONG_S)
    answer, sink = begun(batch)
    answer.output_made(0, ["more"], [1], None)
    answer.sequence_failed(0, WorkerLost("gone"))
    assert sink.ended
    assert sink.texts() == ["first", "more"]
    assert "error" in sink.events[-1]


async def test_ended_before_the_head_is_sent() -> None:
    answer = StreamedAnswer(chat(), 1, Tally(1), Controls(), WriteBatch(LONG_S))
    answer.output_made(0, ["a", "b"], [1, 2], None)
    answer.sequence_finished(0, "stop", 2, 0)
    await answer.started()
    sink = Sink()
    answer.attach(sink)
    assert sink.ended
    assert len(sink.writes) == 1
    assert sink.texts() == ["a", "b"]


async def test_choices_keep_their_order() -> None:
    batch = WriteBatch(LONG_S)
    answer, sink = begun(batch, choices=2)
    for token in range(4):
        answer.output_made(token % 2, [f"w{token}", f"v{token}"], [token, token], None)
    answer.sequence_finished(1, "stop", 3, 0)
    batch._tick()
    answer.sequence_finished(0, "length", 3, 0)
    assert sink.texts(0) == ["first", "w0", "v0", "w2", "v2"]
    assert sink.texts(1) == ["w1", "v1", "w3", "v3"]
    reasons = [c["finish_reason"] for e in sink.events[:-1] for c in e["choices"] if c["finish_reason"]]
    assert reasons == ["stop", "length"]


async def test_log_probabilities_go_with_their_token() -> None:
    answer, sink = begun(WriteBatch(0.0), top_logprobs=0)
    answer.output_made(0, ["a", "b"], [5, 6], [TokenLogprobs(-1.0), TokenLogprobs(-2.0)])
    found = [
        [entry["logprob"] for entry in choice["logprobs"]["content"]]
        for event in sink.events
        for choice in event["choices"]
        if choice["logprobs"]
    ]
    assert found == [[0.0], [-1.0], [-2.0]]


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
@given(texts=st.lists(st.text(max_size=6), max_size=6))
def test_texts_are_the_same_as_deltas(kind, texts: list[str]) -> None:
    chunks = kind("id", 1, "m", choices=2, include_usage=True, names=Names())
    joined = chunks.texts(1, texts)
    assert joined == b"".join(chunks.delta(1, text, (), None) for text in texts)
    for part in joined.decode().split("\n\n")[:-1]:
        event = json.loads(part.removeprefix("data: "))
        assert event["choices"][0]["index"] == 1
        assert event["usage"] is None


def test_json_texts_are_bounded() -> None:
    texts = JsonTexts()
    for at in range(MAX_TEXTS + 10):
        assert texts[str(at)] == b'"%d"' % at
    assert len(texts) <= MAX_TEXTS
    assert texts['"' * 100] == b'"' + b'\\"' * 100 + b'"'
    assert '"' * 100 not in texts
