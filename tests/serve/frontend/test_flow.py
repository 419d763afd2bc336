from __future__ import annotations

import pytest

from tokenmill.errors import (
    BadRequest,
    DeadlineExceeded,
    NoWorker,
    Overloaded,
    WorkerFailed,
    WorkerLost,
    WorkerStalled,
)
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import (
    Failed,
    Finished,
    FinishReason,
    Load,
    Offered,
    PromptScored,
    TokenLogprobs,
    Tokens,
)
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.frontend.flow import Flow
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    Complete,
    DeadlinePassed,
    Deliver,
    DeliverPrompt,
    FlowState,
    HandedOver,
    NoWorkerFound,
    Open,
    Received,
    Route,
    Routed,
    StopHit,
    StreamLost,
    Watch,
)
from tokenmill.serve.frontend.migration import (
    Migration,
    MigrationLimits,
    MigrationReason,
    NotMoved,
    Phase,
)

P, D, B, B2 = WorkerId("p"), WorkerId("d"), WorkerId("b"), WorkerId("b2")
HANDOFF = Handoff("tcp", b"where", 3)
LOST = WorkerLost("gone")
STALLED = WorkerStalled("silent")


def make(max_tokens=10, **options) -> Flow:
    flow = Flow(RequestId("r"), [1, 2, 3], Sampling(max_tokens=max_tokens, seed=7), **options)
    assert flow.begin() == [Route(frozenset(), may_wait=True)]
    return flow


def aggregated(**options) -> Flow:
    flow = make(**options)
    (opened,) = flow.handle(Routed(B))
    assert opened.stream == 1
    return flow


def handing_over() -> Flow:
    flow = make()
    (prefill,) = flow.handle(Routed(D, P))
    assert (prefill.worker, prefill.request.role, prefill.request.handoff) == (P, Role.PREFILL, None)
    (decode,) = flow.handle(Received(1, Offered(HANDOFF, 2)))
    assert (decode.worker, decode.request.role, decode.request.handoff) == (D, Role.DECODE, HANDOFF)
    assert decode.stream == 2
    return flow


def transferring() -> Flow:
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(1, Finished(1, [], FinishReason.HANDOFF))) == [Watch(3, P)]
    assert flow.state is FlowState.TRANSFERRING
    return flow


def route(*excluded, may_wait=True, worker=None, reason=MigrationReason.LOST, output=0, message="gone"):
    """The instruction to look for another worker than the last of ``excluded``."""
    phase = Phase.DECODE if output else Phase.PREFILL
    moved = Migration(reason, phase, worker or excluded[-1], 3 + output, message)
    return Route(frozenset(excluded), may_wait, moved)


def stop(index, tokens, token=9, **more):
    return Finished(index, tokens, FinishReason.STOP, token, **more)


def test_aggregated_tokens_are_delivered_and_counted():
    flow = aggregated()
    assert flow.handle(Received(1, Tokens(0, [4]))) == [Deliver([4], None)]
    assert flow.handle(Received(1, Tokens(1, [5, 6]))) == [Deliver([5, 6], None)]
    assert flow.handle(Received(1, stop(3, [9], cached_tokens=2))) == [
        Deliver([9], None, 1),
        Complete(FinishReason.STOP, 4, 2),
    ]
    assert flow.state is FlowState.ENDED
    assert flow.handle(StreamLost(1, LOST)) == []


def test_a_stop_token_that_came_before_the_end_hides_nothing():
    flow = aggregated()
    flow.handle(Received(1, Tokens(0, [9])))
    assert flow.handle(Received(1, stop(1, []))) == [Complete(FinishReason.STOP, 1, 0)]


def test_the_request_carries_prompt_sampling_and_no_output():
    (opened,) = make(priority=3, cache_salt="s").handle(Routed(B))
    request = opened.request
    assert (request.request_id, request.prompt, request.output, request.role) == (
        "r",
        [1, 2, 3],
        [],
        Role.BOTH,
    )
    assert (request.sampling.seed, request.priority, request.cache_salt) == (7, 3, "s")


def test_disaggregated_first_token_comes_from_prefill_the_rest_from_decode():
    flow = handing_over()
    assert flow.handle(Received(1, Tokens(0, [4]))) == [Deliver([4], None)]
    assert flow.handle(Received(1, Finished(1, [], FinishReason.HANDOFF, cached_tokens=2))) == [Watch(3, P)]
    assert flow.handle(StreamLost(1, LOST)) == []
    assert flow.handle(Received(2, Tokens(1, [5]))) == [HandedOver(3), Deliver([5], None)]
    assert flow.state is FlowState.DECODING
    assert flow.handle(StreamLost(3, STALLED)) == []
    assert flow.handle(Received(2, stop(2, [9], cached_tokens=99))) == [
        Deliver([9], None, 1),
        Complete(FinishReason.STOP, 3, 2),
    ]


def test_decode_tokens_that_overtake_the_first_are_held_back():
    flow = handing_over()
    assert flow.handle(Received(2, Tokens(1, [5]))) == [HandedOver()]
    assert flow.handle(Received(2, stop(2, [9]))) == []
    assert flow.handle(StreamLost(2, LOST)) == []
    assert flow.handle(Received(1, Tokens(0, [4]))) == [
        Deliver([4], None),
        Deliver([5], None),
        Deliver([9], None, 1),
        Cancel(1),
        Complete(FinishReason.STOP, 3, 2),
    ]


def test_a_request_that_ends_with_its_first_token_cancels_decode():
    flow = handing_over()
    assert flow.handle(Received(1, stop(0, [9]))) == [
        Deliver([9], None, 1),
        Cancel(2),
        Complete(FinishReason.STOP, 1, 0),
    ]


def test_one_token_needs_no_decode_worker():
    flow = make(max_tokens=1)
    flow.handle(Routed(D, P))
    assert flow.handle(Received(1, Offered(HANDOFF))) == []
    assert flow.handle(Received(1, Finished(0, [4], FinishReason.LENGTH)))[-1] == Complete(
        FinishReason.LENGTH, 1, 0
    )


def test_a_decode_worker_that_recomputed_repeats_what_is_dropped():
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(2, Tokens(0, [4]))) == [HandedOver()]
    scores = [TokenLogprobs(-1.0), TokenLogprobs(-2.0)]
    assert flow.handle(Received(2, Tokens(0, [4, 5], scores))) == [Deliver([5], scores[1:])]


@pytest.mark.parametrize("error", [LOST, STALLED])
def test_prefill_lost_with_its_token_is_replayed_at_once_and_blamed(error):
    reason = MigrationReason.LOST if error is LOST else MigrationReason.STALLED
    replay = [Cancel(2), route(P, reason=reason, message=error.message)]
    assert handing_over().handle(StreamLost(1, error)) == replay
    flow = handing_over()
    flow.handle(Received(2, Tokens(1, [5])))
    assert flow.handle(StreamLost(1, error)) == replay


def test_prefill_dead_after_its_token_leaves_the_rest_to_decode():
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(StreamLost(1, LOST)) == []
    assert flow.state is FlowState.DECODING
    assert flow.handle(Received(2, Tokens(0, [4, 5]))) == [Deliver([5], None)]


def test_prefill_silent_after_its_token_is_not_waited_for():
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(StreamLost(1, STALLED)) == [
        Cancel(2),
        route(P, reason=MigrationReason.STALLED, output=1, message="silent"),
    ]


def test_prefill_silent_before_decode_has_the_cache_is_not_waited_for():
    assert transferring().handle(StreamLost(3, STALLED)) == [
        Cancel(2),
        route(P, reason=MigrationReason.STALLED, output=1, message="silent"),
    ]


def test_prefill_dead_before_decode_has_the_cache_leaves_the_rest_to_decode():
    flow = transferring()
    assert flow.handle(StreamLost(3, LOST)) == []
    assert flow.handle(Received(2, Tokens(0, [4, 5]))) == [Deliver([5], None)]


@pytest.mark.parametrize("error", [LOST, STALLED])
def test_prefill_lost_after_decode_spoke_is_no_loss(error):
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    flow.handle(Received(2, Tokens(1, [5])))
    assert flow.handle(StreamLost(1, error)) == []
    assert flow.handle(Received(2, Tokens(2, [6]))) == [Deliver([6], None)]


def test_decode_lost_before_it_spoke_ends_the_watch():
    assert transferring().handle(StreamLost(2, LOST)) == [Cancel(3), route(D, output=1)]


def test_a_prefill_that_gives_no_token_is_blamed_for_the_gap():
    flow = handing_over()
    flow.handle(Received(1, Finished(0, [], FinishReason.HANDOFF)))
    assert flow.handle(Received(2, Tokens(1, [5]))) == [
        HandedOver(3),
        Cancel(2),
        route(P, reason=MigrationReason.FAILED, message="a worker skipped tokens"),
    ]


def test_prefill_lost_before_its_offer_is_replayed():
    flow = make()
    flow.handle(Routed(D, P))
    assert flow.handle(StreamLost(1, LOST)) == [route(P)]


def test_prefill_that_ends_without_an_offer_is_replayed():
    flow = make()
    flow.handle(Routed(D, P))
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(1, Finished(1, [], FinishReason.HANDOFF))) == [
        route(P, reason=MigrationReason.FAILED, output=1, message="prefill ended without offering its cache")
    ]


def test_decode_lost_cancels_prefill_and_replays_with_what_was_delivered():
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(StreamLost(2, LOST)) == [Cancel(1), route(D, output=1)]
    (opened,) = flow.handle(Routed(B))
    assert opened.request.output == [4]
    assert opened.request.request_id == "r.1"
    assert opened.request.sampling.seed == 7
    assert flow.handle(Received(opened.stream, Tokens(1, [5]))) == [Deliver([5], None)]


def test_a_replay_may_be_disaggregated_too():
    flow = aggregated()
    flow.handle(Received(1, Tokens(0, [4, 5])))
    flow.handle(StreamLost(1, LOST))
    flow.handle(Routed(D, P))
    flow.handle(Received(2, Tokens(2, [6])))
    (decode,) = flow.handle(Received(2, Offered(HANDOFF)))
    assert decode.request.output == [4, 5]
    assert flow.handle(Received(3, Tokens(3, [7]))) == [HandedOver(), Deliver([7], None)]


def test_a_gap_is_a_loss():
    flow = aggregated()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(1, Tokens(2, [6]))) == [
        Cancel(1),
        route(B, reason=MigrationReason.FAILED, output=1, message="a worker skipped tokens"),
    ]


def test_attempts_are_limited():
    flow = aggregated(limits=MigrationLimits(max_attempts=2))
    flow.handle(StreamLost(1, LOST))
    flow.handle(Routed(B2))
    (abort,) = flow.handle(StreamLost(2, LOST))
    assert (type(abort.error), abort.not_moved) == (WorkerLost, NotMoved.ATTEMPTS)
    assert abort.error.message == "gone; it was attempt 2 of 2 (migration.max_attempts)"
    assert LOST.message == "gone"
    assert flow.state is FlowState.ENDED


def test_one_attempt_is_no_migration():
    flow = aggregated(limits=MigrationLimits(max_attempts=1))
    flow.handle(Received(1, Tokens(0, [4])))
    (abort,) = flow.handle(StreamLost(1, STALLED))
    assert (type(abort.error), abort.not_moved) == (WorkerStalled, NotMoved.ATTEMPTS)


@pytest.mark.parametrize(("limit", "moved"), [(5, True), (4, False)])
def test_what_is_too_long_is_not_read_again(limit, moved):
    flow = aggregated(limits=MigrationLimits(max_tokens=limit))
    flow.handle(Received(1, Tokens(0, [4, 5])))
    (instruction,) = flow.handle(StreamLost(1, LOST))
    if moved:
        assert instruction == route(B, output=2)
    else:
        assert (type(instruction.error), instruction.not_moved) == (WorkerLost, NotMoved.TOO_LONG)
        assert "migration.max_tokens" in instruction.error.message


def test_length_is_no_reason_not_to_ask_another_worker_than_the_full_one():
    flow = aggregated(limits=MigrationLimits(max_tokens=1))
    (instruction,) = flow.handle(Received(1, Failed(429, "queue_full", "full", retryable=True)))
    assert isinstance(instruction, Route)


def test_a_deadline_that_passes_before_there_is_another_worker_is_a_failed_migration():
    late = DeadlinePassed(DeadlineExceeded("late"))
    assert make().handle(late) == [Abort(late.error)]
    flow = aggregated()
    flow.handle(StreamLost(1, LOST))
    assert flow.handle(late) == [Abort(late.error, NotMoved.NO_WORKER)]


def test_a_worker_that_was_only_lost_may_have_it_again_if_nobody_else_is_there():
    flow = aggregated()
    assert flow.handle(StreamLost(1, LOST)) == [route(B)]
    assert flow.handle(NoWorkerFound()) == [Route(frozenset(), may_wait=True)]
    (opened,) = flow.handle(Routed(B))
    assert (opened.worker, opened.request.request_id) == (B, "r.1")


def test_when_nobody_is_there_the_loss_is_told_and_why_it_could_not_be_mended():
    flow = aggregated()
    flow.handle(StreamLost(1, LOST))
    flow.handle(NoWorkerFound())
    (abort,) = flow.handle(NoWorkerFound())
    assert (type(abort.error), abort.not_moved) == (WorkerLost, NotMoved.NO_WORKER)
    assert abort.error.message == "gone; no other worker can take the request over"


def test_a_loss_after_the_last_token_is_no_loss():
    flow = aggregated(max_tokens=2)
    flow.handle(Received(1, Tokens(0, [4, 5])))
    assert flow.handle(StreamLost(1, LOST)) == [Complete(FinishReason.LENGTH, 2, 0)]


def test_a_worker_that_stops_by_itself_is_replayed():
    flow = aggregated()
    (route,) = flow.handle(Received(1, Finished(0, [], FinishReason.CANCELLED)))
    assert isinstance(route, Route)


def test_a_retryable_failure_is_tried_elsewhere_without_waiting():
    flow = aggregated()
    assert flow.handle(Received(1, Failed(429, "queue_full", "full", retryable=True))) == [
        route(B, may_wait=False, reason=MigrationReason.REFUSED, message="full")
    ]
    (abort,) = flow.handle(NoWorkerFound())
    assert isinstance(abort.error, Overloaded)
    assert abort.error.retry_after_s > 0


@pytest.mark.parametrize("stream", [1, 2])
def test_a_handoff_that_failed_is_another_pairs_business_or_the_same_pairs(stream):
    flow = handing_over()
    failed = Failed(503, "handoff_failed", "no bootstrap", retryable=True)
    *cancels, routed = flow.handle(Received(stream, failed))
    assert cancels == [Cancel(3 - stream)]
    worker = P if stream == 1 else D
    expected = route(
        P, D, may_wait=False, worker=worker, reason=MigrationReason.HANDOFF, message="no bootstrap"
    )
    assert routed == expected
    assert flow.handle(NoWorkerFound()) == [Route(frozenset(), may_wait=True)]
    (again,) = flow.handle(Routed(D, P))
    assert (again.worker, again.request.role, again.request.request_id) == (P, Role.PREFILL, "r.1")


def test_a_decode_worker_may_tell_the_first_token():
    flow = handing_over()
    assert flow.handle(Received(2, Tokens(0, [4]))) == [HandedOver(), Deliver([4], None)]
    assert flow.handle(Received(1, Finished(0, [], FinishReason.HANDOFF))) == []
    assert flow.handle(Received(2, stop(1, [9]))) == [
        Deliver([9], None, 1),
        Complete(FinishReason.STOP, 2, 0),
    ]


def test_a_worker_that_is_leaving_may_be_replaced():
    flow = aggregated()
    assert flow.handle(Received(1, Failed(503, "worker_draining", "leaving", retryable=True))) == [
        route(B, reason=MigrationReason.DRAINED, message="leaving")
    ]


def test_a_worker_that_fails_may_be_replaced():
    flow = aggregated()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(1, Failed(500, "step_failed", "broken", retryable=True))) == [
        route(B, reason=MigrationReason.FAILED, output=1, message="broken")
    ]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequest), (429, Overloaded), (500, WorkerFailed), (422, WorkerFailed)]
)
def test_a_final_failure_ends_the_request(status, kind):
    flow = aggregated()
    (abort,) = flow.handle(Received(1, Failed(status, "code", "why")))
    assert isinstance(abort.error, kind)
    assert abort.error.message == "why"


def test_a_final_failure_of_prefill_cancels_decode():
    cancel, abort = handing_over().handle(Received(1, Failed(400, "code", "why")))
    assert cancel == Cancel(2)
    assert isinstance(abort, Abort)


def test_nobody_to_route_to():
    (abort,) = make().handle(NoWorkerFound("none"))
    assert isinstance(abort.error, NoWorker)


@pytest.mark.parametrize("event", [ClientGone(), StopHit(), DeadlinePassed(DeadlineExceeded("late"))])
def test_whatever_ends_it_cancels_all_streams(event):
    flow = handing_over()
    instructions = flow.handle(event)
    assert instructions[:2] == [Cancel(1), Cancel(2)]
    assert len(instructions) == (2 if isinstance(event, ClientGone) else 3)
    assert flow.handle(event) == []


def test_prompt_scores_are_delivered_once():
    flow = aggregated()
    scores = [None, TokenLogprobs(-1.0)]
    assert flow.handle(Received(1, PromptScored(scores))) == [DeliverPrompt(scores)]
    assert flow.handle(Received(1, PromptScored(scores))) == []


def test_prompt_scores_are_asked_for_until_they_were_delivered():
    flow = Flow(RequestId("r"), [1, 2], Sampling(max_tokens=4, prompt_logprobs=1))
    assert flow.begin()
    flow.handle(Routed(B))
    flow.handle(StreamLost(1, LOST))
    (second,) = flow.handle(Routed(B2))
    assert second.request.sampling.prompt_logprobs == 1
    flow.handle(Received(2, PromptScored([None, TokenLogprobs(-1.0)])))
    flow.handle(StreamLost(2, LOST))
    (third,) = flow.handle(Routed(D))
    assert third.request.sampling.prompt_logprobs is None


def test_what_does_not_concern_it_is_ignored():
    flow = aggregated()
    assert flow.handle(Received(5, Tokens(0, [4]))) == []
    assert flow.handle(Received(1, Load(StepMetrics()))) == []
    assert flow.handle(Received(1, Offered(HANDOFF))) == []
    assert flow.handle(Routed(B2)) == []
    assert flow.received(5, Tokens(0, [4])) == []
    assert isinstance(flow.handle(Received(1, Tokens(0, [4])))[0], Deliver)
    assert not [item for item in flow.handle(Received(1, Tokens(0, [4]))) if isinstance(item, Open)]
