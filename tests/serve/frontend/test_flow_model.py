"""Any order of events, with workers that behave as the protocol says and die when they like."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmill.errors import WorkerLost
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import Failed, Finished, FinishReason, Offered, Tokens
from tokenmill.serve.frontend.flow import Flow, FlowState
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    Complete,
    Deliver,
    NoWorkerFound,
    Open,
    Received,
    Route,
    Routed,
    StreamLost,
)

END = 99


class Stream:
    """What one worker still has to say on one stream."""

    def __init__(self, request: GenerateRequest, worker: WorkerId, script: list[int]) -> None:
        self.worker = worker
        self.request = request
        self.cached = 3
        self.items = list(self._items(request, script))

    def _items(self, request, script):
        output = script[: request.sampling.max_tokens]
        first = len(request.output)
        assert request.output == output[:first]
        if request.role is Role.PREFILL:
            yield Offered(Handoff("tcp", b"", len(request.prompt)))
            if first + 1 == len(output):
                yield self.end(script, output, first)
            else:
                yield Tokens(first, [output[first]])
                yield Finished(first + 1, [], FinishReason.HANDOFF)
            return
        if request.role is Role.DECODE:
            first += 1
        for index in range(first, len(output) - 1):
            yield Tokens(index, [output[index]])
        yield self.end(script, output, max(first, len(output) - 1))

    def end(self, script, output, index):
        stopped = len(output) == len(script)
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Finished(index, output[index:], reason, END if stopped else None, self.cached)

    def coalesce(self) -> None:
        """Two items become one, as happens to a slow reader."""
        if len(self.items) > 1 and isinstance(self.items[0], Tokens) and isinstance(self.items[1], Tokens):
            one, two = self.items[:2]
            self.items[:2] = [Tokens(one.index, one.tokens + two.tokens)]


class FlowMachine(RuleBasedStateMachine):
    @initialize(length=st.integers(1, 6), max_tokens=st.integers(1, 7), attempts=st.integers(1, 4))
    def begin(self, length, max_tokens, attempts):
        self.script = [*range(10, 9 + length), END]
        self.expected = self.script[:max_tokens]
        self.flow = Flow(RequestId("r"), [1, 2], Sampling(max_tokens=max_tokens), max_attempts=attempts)
        self.streams: dict[int, Stream] = {}
        self.opened: set[int] = set()
        self.delivered: list[int] = []
        self.ends: list[object] = []
        self.routing = False
        self.gone = False
        self.ids: set[tuple[str, str]] = set()
        self.excluded: frozenset = frozenset()
        self.carry_out(self.flow.begin())

    def carry_out(self, instructions):
        for instruction in instructions:
            assert not self.ends, "nothing follows the end"
            if isinstance(instruction, Route):
                self.routing = True
                self.excluded = instruction.excluded
            elif isinstance(instruction, Open):
                assert instruction.stream not in self.opened
                assert instruction.worker not in self.excluded
                name = (instruction.worker, instruction.request.request_id)
                assert name not in self.ids, "a worker must not see one id twice"
                self.ids.add(name)
                self.opened.add(instruction.stream)
                self.streams[instruction.stream] = Stream(
                    instruction.request, instruction.worker, self.script
                )
            elif isinstance(instruction, Cancel):
                self.streams.pop(instruction.stream, None)
            elif isinstance(instruction, Deliver):
                assert instruction.tokens
                self.delivered += instruction.tokens
            elif isinstance(instruction, Complete | Abort):
                self.ends.append(instruction)

    def feed(self, event):
        self.carry_out(self.flow.handle(event))

    @precondition(lambda self: self.routing)
    @rule(data=st.data())
    def route(self, data):
        self.routing = False
        free = [name for name in ("w1", "w2", "w3", "w4") if WorkerId(name) not in self.excluded]
        if not free or data.draw(st.integers(0, 9)) == 0:
            self.feed(NoWorkerFound())
            return
        decode = data.draw(st.sampled_from(free))
        prefill = data.draw(st.sampled_from([None, *(name for name in free if name != decode)]))
        self.feed(Routed(WorkerId(decode), None if prefill is None else WorkerId(prefill)))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), merge=st.booleans())
    def say(self, data, merge):
        stream_id = data.draw(st.sampled_from(sorted(self.streams)))
        stream = self.streams[stream_id]
        if merge:
            stream.coalesce()
        if stream.items:
            self.feed(Received(stream_id, stream.items.pop(0)))
        elif stream_id in self.streams:
            del self.streams[stream_id]
            self.feed(StreamLost(stream_id, WorkerLost("ended")))

    @precondition(lambda self: any(s.request.role is Role.DECODE for s in self.streams.values()))
    @rule(data=st.data())
    def handoff_fails(self, data):
        decoding = [key for key, item in self.streams.items() if item.request.role is Role.DECODE]
        stream = self.streams[data.draw(st.sampled_from(sorted(decoding)))]
        first = len(stream.request.output)
        if stream.items and stream.items[0].index == first + 1:
            whole = msgspec.structs.replace(stream.request, role=Role.BOTH)
            stream.items = Stream(whole, stream.worker, self.script).items

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def die(self, data):
        worker = self.streams[data.draw(st.sampled_from(sorted(self.streams)))].worker
        for stream_id in [key for key, item in self.streams.items() if item.worker == worker]:
            if self.streams.pop(stream_id, None) is not None:
                self.feed(StreamLost(stream_id, WorkerLost("dead")))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), retryable=st.booleans())
    def fail(self, data, retryable):
        stream_id = data.draw(st.sampled_from(sorted(self.streams)))
        stream = self.streams[stream_id]
        if stream.items:
            stream.items = []
            self.feed(Received(stream_id, Failed(500, "broken", "broken", retryable)))

    @rule()
    def nothing_happens(self):
        """So that there is always a next step, also after the end."""

    @precondition(lambda self: not self.gone and not self.ends)
    @rule(data=st.data())
    def leave(self, data):
        if data.draw(st.integers(0, 19)) == 0:
            self.gone = True
            self.routing = False
            self.feed(ClientGone())
            assert not self.ends

    @invariant()
    def tokens_are_the_undisturbed_ones(self):
        self.flow.validate()
        assert self.delivered == self.expected[: len(self.delivered)]
        assert len(self.ends) <= 1
        if self.ends and isinstance(self.ends[0], Complete):
            assert self.delivered == self.expected
            assert self.ends[0].output_tokens == len(self.expected)
        if self.flow.state is FlowState.ENDED:
            assert bool(self.ends) != self.gone
            left = [s for s in self.streams.values() if s.items]
            assert not left, "all streams are closed or cancelled"

    def teardown(self):
        """Left alone, it comes to an end: nothing hangs."""
        if not hasattr(self, "flow"):
            return
        for _ in range(200):
            if self.flow.state is FlowState.ENDED:
                break
            if self.routing:
                self.routing = False
                free = [n for n in ("w1", "w2", "w3", "w4", "w5") if WorkerId(n) not in self.excluded]
                self.feed(Routed(WorkerId(free[0])))
                continue
            assert self.streams, "neither routing nor anything open: it hangs"
            stream_id, stream = next(iter(self.streams.items()))
            if stream.items:
                self.feed(Received(stream_id, stream.items.pop(0)))
            else:
                del self.streams[stream_id]
                self.feed(StreamLost(stream_id, WorkerLost("ended")))
        assert self.flow.state is FlowState.ENDED


FlowMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFlowMachine = FlowMachine.TestCase
