"""The life of a request for text: exactly once and in order, elsewhere only before the first piece."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.errors import DeadlineExceeded, NoWorker, WorkerLost
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.items import Failed, Tokens
from tokenmill.protocol.text import TextFinished, TextPieces, TextRequest, join_text
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    DeadlinePassed,
    NoWorkerFound,
    Open,
    Route,
    Routed,
    StreamLost,
)
from tokenmill.serve.frontend.migration import MigrationLimits, MigrationReason, NotMoved
from tokenmill.serve.frontend.text_flow import CompleteText, DeliverText, TextFlow

ASKED = TextRequest(path="completions", fields=b"{}", tokens=9)
A, B = WorkerId("a"), WorkerId("b")
LOST = WorkerLost("gone")


def begun(attempts: int = 3) -> TextFlow:
    flow = TextFlow(RequestId("r"), ASKED, limits=MigrationLimits(max_attempts=attempts))
    assert flow.begin() == [Route(frozenset(), may_wait=True)]
    return flow


def running(**how) -> TextFlow:
    flow = begun(**how)
    (opened,) = flow.handle(Routed(A))
    assert isinstance(opened, Open)
    assert (opened.stream, opened.worker) == (1, A)
    assert (opened.request.request_id, opened.request.text, opened.request.prompt) == ("r", ASKED, [])
    return flow


def test_pieces_are_delivered_as_they_come():
    flow = running()
    assert flow.received(1, TextPieces(0, [b"1", b"2"])) == [DeliverText([b"1", b"2"])]
    assert flow.received(1, TextFinished(2, [b"3"], "stop")) == [CompleteText([b"3"], "stop", None)]
    assert flow.over
    assert flow.handle(StreamLost(1, LOST)) == []


def test_before_the_first_piece_it_moves():
    flow = running()
    (route,) = flow.handle(StreamLost(1, LOST))
    assert isinstance(route, Route)
    assert (route.excluded, route.may_wait) == ({A}, True)
    assert (route.moved.reason, route.moved.replayed_tokens) == (MigrationReason.LOST, 9)
    (opened,) = flow.handle(Routed(B))
    assert (opened.stream, opened.request.request_id) == (2, "r.1")
    assert flow.received(1, TextPieces(0, [b"old"])) == []
    assert flow.received(2, TextPieces(0, [b"new"])) == [DeliverText([b"new"])]


def test_after_the_first_piece_it_ends_and_says_why():
    flow = running()
    flow.received(1, TextPieces(0, [b"1"]))
    (end,) = flow.received(1, Failed(502, "upstream_lost", "it broke", retryable=True))
    assert isinstance(end, Abort)
    assert end.not_moved is NotMoved.DELIVERED
    assert end.error.message.startswith("it broke; a part of the answer was sent already")


def test_a_clients_own_fault_is_told_at_once():
    (end,) = running().received(1, Failed(400, "upstream_refused", "too hot"))
    assert isinstance(end, Abort)
    assert (end.error.message, end.error.status, end.not_moved) == ("too hot", 400, None)


def test_a_full_server_is_left_for_one_that_is_there_now():
    (route,) = running().received(1, Failed(429, "upstream_overloaded", "slow down", retryable=True))
    assert (route.moved.reason, route.may_wait) == (MigrationReason.REFUSED, False)


def test_attempts_are_limited():
    flow = running(attempts=2)
    flow.handle(StreamLost(1, LOST))
    flow.handle(Routed(B))
    (end,) = flow.handle(StreamLost(2, LOST))
    assert (end.not_moved, "attempt 2 of 2" in end.error.message) == (NotMoved.ATTEMPTS, True)


def test_nobody_is_there():
    (end,) = begun().handle(NoWorkerFound())
    assert isinstance(end.error, NoWorker)
    flow = running()
    flow.handle(StreamLost(1, LOST))
    (again,) = flow.handle(NoWorkerFound())
    assert again == Route(frozenset(), may_wait=True)
    (end,) = flow.handle(NoWorkerFound())
    assert end.not_moved is NotMoved.NO_WORKER


def test_a_worker_that_breaks_the_order_or_speaks_tokens_is_left():
    for wrong in (TextPieces(1, [b"2"]), Tokens(0, [1])):
        cancel, route = running().received(1, wrong)
        assert cancel == Cancel(1)
        assert route.moved.reason is MigrationReason.FAILED


def test_it_can_be_given_up_at_any_time():
    assert running().handle(ClientGone()) == [Cancel(1)]
    assert begun().handle(ClientGone()) == []
    late = DeadlineExceeded("late")
    assert running().handle(DeadlinePassed(late)) == [Cancel(1), Abort(late)]
    flow = running()
    flow.handle(StreamLost(1, LOST))
    (end,) = flow.handle(DeadlinePassed(late))
    assert end.not_moved is NotMoved.NO_WORKER


EVENTS = st.lists(
    st.sampled_from(
        [Routed(A), NoWorkerFound(), ClientGone(), DeadlinePassed(LOST)]
        + [StreamLost(stream, LOST) for stream in (1, 2, 3)]
        + [(stream, TextPieces(index, [b"x"])) for stream in (1, 2) for index in (0, 1, 2)]
        + [(stream, TextFinished(index, [], "stop")) for stream in (1, 2) for index in (0, 1)]
        + [(1, Failed(500, "x", "x", retryable=True)), (2, Failed(400, "x", "x"))]
    ),
    max_size=14,
)


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_no_order_of_events_gives_two_ends_or_a_piece_after_one(events):
    flow = begun()
    ends = pieces = 0
    for event in events:
        instructions = flow.received(*event) if isinstance(event, tuple) else flow.handle(event)
        for instruction in instructions:
            assert not ends or isinstance(instruction, Cancel)
            ends += isinstance(instruction, CompleteText | Abort)
            pieces += isinstance(instruction, DeliverText)
    assert ends <= 1
    assert pieces == flow.delivered


def test_items_that_wait_are_joined_in_order_alone():
    first, second = TextPieces(0, [b"1"]), TextPieces(1, [b"2"])
    assert join_text(first, second) == TextPieces(0, [b"1", b"2"])
    assert join_text(first, TextFinished(1, [], "stop")) == TextFinished(0, [b"1"], "stop")
    assert join_text(first, TextPieces(2, [b"3"])) is None
    assert join_text(first, Tokens(1, [1])) is None
