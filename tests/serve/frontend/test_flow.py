from __future__ import annotations

import pytest

from tokenmill.errors import BadRequest, DeadlineExceeded, NoWorker, Overloaded, WorkerFailed, WorkerLost
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
from tokenmill.serve.frontend.flow import Flow, FlowState
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    Complete,
    DeadlinePassed,
    Deliver,
    DeliverPrompt,
    NoWorkerFound,
    Open,
    Received,
    Route,
    Routed,
    StopHit,
    StreamLost,
)

P, D, B, B2 = WorkerId("p"), WorkerId("d"), WorkerId("b"), WorkerId("b2")
HANDOFF = Handoff("tcp", b"where", 3)
LOST = WorkerLost("gone")


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
    assert flow.handle(Received(1, Finished(1, [], FinishReason.HANDOFF, cached_tokens=2))) == []
    assert flow.state is FlowState.DECODING
    assert flow.handle(StreamLost(1, LOST)) == []
    assert flow.handle(Received(2, Tokens(1, [5]))) == [Deliver([5], None)]
    assert flow.handle(Received(2, stop(2, [9], cached_tokens=99))) == [
        Deliver([9], None, 1),
        Complete(FinishReason.STOP, 3, 2),
    ]


def test_decode_tokens_that_overtake_the_first_are_held_back():
    flow = handing_over()
    assert flow.handle(Received(2, Tokens(1, [5]))) == []
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
    assert flow.handle(Received(2, Tokens(0, [4]))) == []
    scores = [TokenLogprobs(-1.0), TokenLogprobs(-2.0)]
    assert flow.handle(Received(2, Tokens(0, [4, 5], scores))) == [Deliver([5], scores[1:])]


def test_prefill_lost_with_decode_open_waits_for_decode():
    flow = handing_over()
    assert flow.handle(StreamLost(1, LOST)) == []
    assert flow.state is FlowState.DECODING
    assert flow.handle(Received(2, Tokens(0, [4, 5]))) == [Deliver([4, 5], None)]


def test_prefill_lost_with_its_token_is_replayed_elsewhere_and_blamed():
    flow = handing_over()
    flow.handle(Received(2, Tokens(1, [5])))
    assert flow.handle(StreamLost(1, LOST)) == [Cancel(2), Route(frozenset({P}), may_wait=True)]


def test_prefill_lost_then_a_gap_blames_prefill():
    flow = handing_over()
    flow.handle(StreamLost(1, LOST))
    assert flow.handle(Received(2, Tokens(1, [5]))) == [Cancel(2), Route(frozenset({P}), may_wait=True)]


def test_prefill_lost_before_its_offer_is_replayed():
    flow = make()
    flow.handle(Routed(D, P))
    assert flow.handle(StreamLost(1, LOST)) == [Route(frozenset({P}), may_wait=True)]


def test_prefill_that_ends_without_an_offer_is_replayed():
    flow = make()
    flow.handle(Routed(D, P))
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(1, Finished(1, [], FinishReason.HANDOFF))) == [
        Route(frozenset({P}), may_wait=True)
    ]


def test_decode_lost_cancels_prefill_and_replays_with_what_was_delivered():
    flow = handing_over()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(StreamLost(2, LOST)) == [Cancel(1), Route(frozenset({D}), may_wait=True)]
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
    assert flow.handle(Received(3, Tokens(3, [7]))) == [Deliver([7], None)]


def test_a_gap_is_a_loss():
    flow = aggregated()
    flow.handle(Received(1, Tokens(0, [4])))
    assert flow.handle(Received(1, Tokens(2, [6]))) == [Cancel(1), Route(frozenset({B}), may_wait=True)]


def test_attempts_are_limited():
    flow = aggregated(max_attempts=2)
    flow.handle(StreamLost(1, LOST))
    flow.handle(Routed(B2))
    assert flow.handle(StreamLost(2, LOST)) == [Abort(LOST)]
    assert flow.state is FlowState.ENDED


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
        Route(frozenset({B}), may_wait=False)
    ]
    (abort,) = flow.handle(NoWorkerFound())
    assert isinstance(abort.error, Overloaded)


def test_a_worker_that_is_leaving_may_be_replaced():
    flow = aggregated()
    assert flow.handle(Received(1, Failed(503, "worker_draining", "leaving", retryable=True))) == [
        Route(frozenset({B}), may_wait=True)
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


def test_what_does_not_concern_it_is_ignored():
    flow = aggregated()
    assert flow.handle(Received(5, Tokens(0, [4]))) == []
    assert flow.handle(Received(1, Load(StepMetrics()))) == []
    assert flow.handle(Received(1, Offered(HANDOFF))) == []
    assert flow.handle(Routed(B2)) == []
    assert isinstance(flow.handle(Received(1, Tokens(0, [4])))[0], Deliver)
    assert not [item for item in flow.handle(Received(1, Tokens(0, [4]))) if isinstance(item, Open)]
