from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tokenmill.serve.frontend.http.messages import HttpError, HttpLimits, Request
from tokenmill.serve.frontend.http.parser import ContinueWanted, RequestParser

LIMITS = HttpLimits(max_head_bytes=400, max_body_bytes=1000)


def parse(*pieces: bytes, limits: HttpLimits = LIMITS) -> list:
    parser = RequestParser(limits)
    return [event for piece in pieces for event in parser.feed(piece)]


def plain(events) -> list:
    """Events as comparable values."""
    return [
        (event.method, event.path, event.query, event.headers, event.body, event.keep_alive)
        if isinstance(event, Request)
        else (event.status, event.message)
        if isinstance(event, HttpError)
        else event
        for event in events
    ]


def error(data: bytes) -> int:
    (event,) = parse(data)
    assert isinstance(event, HttpError), event
    return event.status


GET = b"GET /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nX-One: a\r\nx-one: b\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
)
EXPECT = b"POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = (
    b"POST /u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"Content-Length: 3\r\n\r\nabc"
)


def test_get():
    (request,) = parse(GET)
    assert (request.method, request.path, request.query, request.body) == ("GET", "/a b", "x=1", b"")
    assert request.headers["x-one"] == "a, b"
    assert request.keep_alive


def test_bodies():
    assert [event.body for event in parse(POST + CHUNKED)] == [b"hello", b"abcde"]


def test_pipelined_requests_come_in_order():
    assert [event.path for event in parse(GET + POST + GET)] == ["/a b", "/p", "/a b"]


def test_expectation_comes_before_its_request():
    first, second = parse(EXPECT)
    assert isinstance(first, ContinueWanted)
    assert second.body == b"ok"


def test_an_offered_upgrade_is_declined_with_the_body_read():
    (request,) = parse(UPGRADE)
    assert request.body == b"abc"
    assert not request.keep_alive
    (bodiless,) = parse(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nxx")
    assert not bodiless.keep_alive


def test_nothing_is_read_after_a_closing_request():
    events = parse(
        b"GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    assert [(event.path, event.keep_alive) for event in events] == [("/1", False)]


def test_http_1_0_closes_and_needs_no_host():
    (request,) = parse(b"GET / HTTP/1.0\r\n\r\n")
    assert not request.keep_alive
    assert not request.chunked_ok


def test_absolute_targets_and_the_asterisk():
    (request,) = parse(b"GET http://h:80/v1?q HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (request.path, request.query) == ("/v1", "q")
    (request,) = parse(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
    assert request.path == "*"


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: h\r\nbad header: x\r\n\r\n",
    ],
)
def test_what_two_servers_may_read_differently_is_refused(head):
    assert error(head) == 400


def test_other_refusals():
    assert error(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n") == 501
    assert error(b"GET / HTTP/2.0\r\nHost: h\r\n\r\n") == 505
    assert error(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n") == 501
    assert error(b"GET / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n") == 417


def test_limits():
    assert error(b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 500 + b"\r\n\r\n") == 431
    assert error(b"GET /" + b"x" * 500 + b" HTTP/1.1\r\nHost: h\r\n\r\n") == 431
    assert error(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 200) == 431
    assert error(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n") == 413
    assert error(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999\r\n\r\n") == 413
    chunk = b"190\r\n" + b"x" * 400 + b"\r\n"
    assert error(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 3) == 413


def test_a_head_that_never_ends_is_refused():
    parser = RequestParser(LIMITS)
    events = []
    events += parser.feed(b"GET / HTTP/1.1\r\nHost:")
    for _ in range(100):
        events += parser.feed(b" " * 1000)
    assert [event.status for event in events] == [431]


def test_reading_state():
    parser = RequestParser(LIMITS)
    parser.feed(b"POST / HTTP/1.1\r\n")
    assert parser.in_message
    parser.feed(b"Host: h\r\nContent-Length: 1\r\n\r\n")
    assert parser.in_message
    assert len(parser.feed(b"x")) == 1
    assert not parser.in_message


PIECES = [GET, POST, CHUNKED, EXPECT, b"\r\n" + GET]
LAST = [
    UPGRADE,
    b"GET /x HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n",
    b"rubbish\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 500 + b"\r\n\r\n",
]


@given(
    messages=st.lists(st.sampled_from(PIECES), max_size=4),
    last=st.sampled_from([b"", *LAST]),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_any_split_of_the_bytes_parses_the_same(messages, last, data):
    whole = b"".join(messages) + last
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert plain(parse(*pieces)) == plain(parse(whole))


@given(messages=st.lists(st.sampled_from(PIECES), max_size=3), last=st.sampled_from([b"", *LAST]))
@settings(max_examples=30, deadline=None)
def test_byte_by_byte_parses_the_same(messages, last):
    whole = b"".join(messages) + last
    assert plain(parse(*(bytes([byte]) for byte in whole))) == plain(parse(whole))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_it(data):
    for event in parse(data):
        assert isinstance(event, Request | HttpError | ContinueWanted)


@given(st.sampled_from(PIECES + LAST), st.integers(0, 200), st.binary(min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_no_damage_breaks_it(message, at, damage):
    at = min(at, len(message))
    for event in parse(message[:at] + damage + message[at:]):
        assert isinstance(event, Request | HttpError | ContinueWanted)
