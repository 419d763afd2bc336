"""The frame codec, without any I/O."""

from __future__ import annotations

import itertools
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ProtocolError
from tokenmill.protocol.items import Finished, FinishReason, Item, Tokens
from tokenmill.serve.fabric.codec import FrameCodec
from tokenmill.serve.fabric.frames import (
    VERSION,
    Abort,
    Cancel,
    Credit,
    Data,
    GoAway,
    Hello,
    Open,
    Ping,
    Pong,
)

ids = st.integers(1, 2**63 - 1)
texts = st.text(max_size=20)
token_items = st.builds(Tokens, st.integers(0, 2**31), st.lists(st.integers(0, 2**20), max_size=5))
ends = st.builds(
    Finished, st.integers(0, 100), st.lists(st.integers(0, 9), max_size=2), st.sampled_from(FinishReason)
)
items = token_items | ends
frames = st.one_of(
    st.builds(Hello, st.just(VERSION), texts, st.integers(1, 1000)),
    st.builds(Open, ids, texts),
    st.builds(Cancel, ids),
    st.builds(Credit, ids, st.integers(1, 2**31 - 1)),
    st.builds(Data, st.lists(st.tuples(ids, items), max_size=5), st.lists(ids, max_size=3)),
    st.builds(Abort, ids, texts, texts),
    st.just(Ping()),
    st.just(Pong()),
    st.builds(GoAway, texts),
)


def new_codec(max_frame_bytes: int = 4096) -> FrameCodec[str, Item]:
    return FrameCodec(str, Item, max_frame_bytes)


def feed_in_pieces(data: bytes, cuts: list[int]) -> tuple[list[object], bool]:
    """Return the frames, and whether the bytes were found bad."""
    codec = new_codec()
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    found: list[object] = []
    try:
        for begin, end in itertools.pairwise(edges):
            found += codec.feed(data[begin:end])
            if codec.fault is not None:
                return found, True
    except ProtocolError:
        return found, True
    return found, False


cuts = st.lists(st.integers(0, 10**6), max_size=12)


@given(st.lists(frames, max_size=6), cuts)
def test_any_split_gives_the_same_frames(sent: list[object], cuts: list[int]) -> None:
    codec = new_codec()
    data = b"".join(codec.encode(frame) for frame in sent)
    assert feed_in_pieces(data, cuts) == (sent, False)


@given(st.lists(frames, min_size=1, max_size=4))
def test_one_byte_at_a_time(sent: list[object]) -> None:
    codec = new_codec()
    data = b"".join(codec.encode(frame) for frame in sent)
    assert feed_in_pieces(data, list(range(len(data)))) == (sent, False)


@given(
    st.lists(frames, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    cuts,
)
def test_mutated_bytes_give_frames_or_a_protocol_error_for_any_split(
    sent: list[object], changes: list[tuple[int, int]], cuts: list[int]
) -> None:
    codec = new_codec()
    data = bytearray(b"".join(codec.encode(frame) for frame in sent))
    for place, value in changes:
        data[place % len(data)] = value
    assert feed_in_pieces(bytes(data), cuts) == feed_in_pieces(bytes(data), [])


@given(st.binary(max_size=300), cuts)
def test_random_bytes_give_frames_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    assert feed_in_pieces(data, cuts) == feed_in_pieces(data, [])


@given(st.binary(max_size=100))
def test_random_frame_bodies_give_frames_or_a_protocol_error(body: bytes) -> None:
    feed_in_pieces(len(body).to_bytes(4, "little") + body, [])


def test_good_frames_come_before_the_error() -> None:
    codec = new_codec()
    assert codec.feed(codec.encode(Ping()) + b"\xff\xff\xff\xff") == [Ping()]
    assert codec.fault is not None
    with pytest.raises(ProtocolError, match="max_frame_bytes"):
        codec.feed(b"")


def test_a_codec_stays_broken() -> None:
    codec = new_codec()
    with pytest.raises(ProtocolError, match="malformed"):
        codec.feed(b"\x01\x00\x00\x00\xc1")
    with pytest.raises(ProtocolError, match="malformed"):
        codec.feed(codec.encode(Ping()))


def test_http_is_refused_by_its_first_bytes() -> None:
    with pytest.raises(ProtocolError, match="max_frame_bytes"):
        FrameCodec(str, Item).feed(b"GET / HTTP/1.1\r\n")


def test_encode_refuses_what_the_peer_would_not_take() -> None:
    with pytest.raises(ProtocolError, match=r"Open frame of 5\d\d bytes is above max_frame_bytes"):
        new_codec(100).encode(Open(1, "x" * 500))


@pytest.mark.parametrize(
    "body",
    [
        b"\x93\x05\xdd\xff\xff\xff\xff",  # Data with 2**32 items
        b"\x93\x05\x91\x92\x01\x93\x01\x00\xdd\x0f\xff\xff\xff\x01",  # Tokens with 2**28 tokens
        b"\x93\x02\x01\xdb\xff\xff\xff\xff",  # Open with a call of 4 GiB
        b"\x91" * 4000,  # nested without end
    ],
)
def test_a_claimed_size_reserves_no_memory(body: bytes) -> None:
    codec = new_codec()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            codec.feed(len(body).to_bytes(4, "little") + body)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_announced_frame_reserves_no_memory() -> None:
    codec = FrameCodec[str, Item](str, Item)
    tracemalloc.start()
    try:
        assert codec.feed((64 * 1024 * 1024).to_bytes(4, "little") + b"\x93") == []
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_large_frame_in_small_pieces() -> None:
    codec = FrameCodec[str, Item](str, Item)
    frame = Open(1, "x" * 1_000_000)
    data = codec.encode(frame)
    found = [out for begin in range(0, len(data), 1000) for out in codec.feed(data[begin : begin + 1000])]
    assert found == [frame]


def test_a_step_of_tokens_is_small_on_the_wire() -> None:
    step = Data([(stream, Tokens(10, [stream])) for stream in range(100, 356)], [])
    assert len(new_codec().encode(step)) / 256 < 11


class Point(msgspec.Struct, frozen=True, array_like=True):
    x: int


def test_calls_and_items_are_of_any_type() -> None:
    codec = FrameCodec[Point, bytes](Point, bytes)
    sent = [Open(1, Point(3)), Data([(1, b"abc")], [1])]
    assert codec.feed(b"".join(codec.encode(frame) for frame in sent)) == sent


def test_a_call_of_the_wrong_type_is_refused() -> None:
    data = FrameCodec[str, bytes](str, bytes).encode(Open(1, "text"))
    with pytest.raises(ProtocolError, match="Expected `int`"):
        FrameCodec[int, bytes](int, bytes).feed(data)


def test_a_later_version_of_hello_can_still_be_read() -> None:
    body = msgspec.msgpack.encode([1, VERSION + 1, "new", 8, {"more": 1}])
    assert new_codec().feed(len(body).to_bytes(4, "little") + body) == [Hello(VERSION + 1, "new", 8)]
