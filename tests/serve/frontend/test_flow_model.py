"""Any order of events, with workers that speak the protocol, and die, freeze, thaw and leave at will."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmill.errors import WorkerLost, WorkerStalled
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import Failed, Finished, FinishReason, Offered, Tokens
from tokenmill.serve.frontend.flow import Flow
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    Complete,
    Deliver,
    FlowState,
    HandedOver,
    NoWorkerFound,
    Open,
    Received,
    Route,
    Routed,
    StreamLost,
    Watch,
)
from tokenmill.serve.frontend.migration import MigrationLimits

END = 99
WORKERS = [WorkerId(f"w{index}") for index in range(1, 5)]
DRAINING = Failed(503, "worker_draining", "leaving", retryable=True)


class Stream:
    """What one worker still has to say on one stream; a watch says nothing."""

    def __init__(self, worker: WorkerId, request: GenerateRequest | None = None, script=()) -> None:
        self.worker = worker
        self.request = request
        self.cached = 3
        self.source: WorkerId | None = None
        """Whom a decode worker fetches the cache from, as long as it does."""
        self.items = list(self._items(request, script)) if request is not None else []

    @property
    def role(self) -> Role | None:
        return self.request.role if self.request is not None else None

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

    def compute_instead(self, script) -> None:
        """The cache does not come: compute it, and say everything from the first new token on."""
        self.source = None
        self.items = Stream(self.worker, msgspec.structs.replace(self.request, role=Role.BOTH), script).items


class FlowMachine(RuleBasedStateMachine):
    @initialize(
        length=st.integers(1, 8),
        max_tokens=st.integers(1, 9),
        attempts=st.sampled_from([1, 2, 3, 5, 9]),
        replay_tokens=st.sampled_from([0, 0, 0, 5]),
    )
    def begin(self, length, max_tokens, attempts, replay_tokens):
        self.script = [*range(10, 9 + length), END]
        self.expected = self.script[:max_tokens]
        limits = MigrationLimits(max_attempts=attempts, max_tokens=replay_tokens)
        self.flow = Flow(RequestId("r"), [1, 2], Sampling(max_tokens=max_tokens), limits=limits)
        self.streams: dict[int, Stream] = {}
        self.late: dict[int, Stream] = {}
        """Streams that a frozen worker believes to be open still."""
        self.frozen: set[WorkerId] = set()
        self.opened: set[int] = set()
        self.delivered: list[int] = []
        self.ends: list[object] = []
        self.routing = False
        self.gone = False
        self.attempts = attempts
        self.migrations = 0
        self.ids: set[tuple[str, str]] = set()
        self.excluded: frozenset = frozenset()
        self.carry_out(self.flow.begin())

    # What the shell does -------------------------------------------------------------------------------

    def carry_out(self, instructions):
        for instruction in instructions:
            assert not self.ends, "nothing follows the end"
            if isinstance(instruction, Route):
                self.route_asked(instruction)
            elif isinstance(instruction, Open):
                self.open(instruction)
            elif isinstance(instruction, Watch):
                self.streams[instruction.stream] = Stream(instruction.worker)
            elif isinstance(instruction, HandedOver):
                if instruction.watch is not None:
                    assert self.streams.pop(instruction.watch).request is None
            elif isinstance(instruction, Cancel):
                self.streams.pop(instruction.stream, None)
            elif isinstance(instruction, Deliver):
                assert instruction.tokens
                self.delivered += instruction.tokens
            elif isinstance(instruction, Complete | Abort):
                self.ends.append(instruction)

    def route_asked(self, route):
        self.routing = True
        self.excluded = route.excluded
        if route.moved is not None:
            self.migrations += 1
            assert route.moved.worker in route.excluded
            assert route.moved.replayed_tokens == 2 + len(self.delivered)

    def open(self, opened):
        assert opened.stream not in self.opened
        assert opened.worker not in self.excluded
        name = (opened.worker, opened.request.request_id)
        assert name not in self.ids, "a worker must not see one id twice"
        self.ids.add(name)
        self.opened.add(opened.stream)
        stream = Stream(opened.worker, opened.request, self.script)
        if opened.request.role is Role.DECODE:
            (stream.source,) = [s.worker for s in self.streams.values() if s.role is Role.PREFILL]
        self.streams[opened.stream] = stream

    def feed(self, event):
        self.carry_out(self.flow.handle(event))

    # What the workers do -------------------------------------------------------------------------------

    def talking(self) -> list[int]:
        """Streams that have something to say now."""
        return sorted(
            key
            for key, stream in self.streams.items()
            if stream.items and stream.worker not in self.frozen and stream.source not in self.frozen
        )

    @precondition(lambda self: self.routing)
    @rule(data=st.data())
    def route(self, data):
        self.routing = False
        free = [worker for worker in WORKERS if worker not in self.excluded]
        if not free or data.draw(st.integers(0, 19)) == 0:
            self.feed(NoWorkerFound())
            return
        decode = data.draw(st.sampled_from(free))
        self.feed(Routed(decode, data.draw(st.sampled_from([None, *(w for w in free if w != decode)]))))

    @precondition(lambda self: self.talking())
    @rule(data=st.data(), merge=st.booleans(), quickly=st.booleans())
    def say(self, data, merge, quickly):
        self.say_on(data.draw(st.sampled_from(self.talking())), merge=merge, quickly=quickly)

    @precondition(lambda self: any(s.role is Role.PREFILL for s in self.streams.values()))
    @rule()
    def prefill_says_all(self):
        (stream_id,) = [key for key, stream in self.streams.items() if stream.role is Role.PREFILL]
        while stream_id in self.talking():
            self.say_on(stream_id)

    def say_on(self, stream_id, *, merge=False, quickly=True):
        stream = self.streams[stream_id]
        stream.source = None  # who speaks has the cache
        if merge:
            stream.coalesce()
        item = stream.items.pop(0)
        if quickly and isinstance(item, Tokens) and self.flow.goes_on(stream_id, item):
            self.delivered += item.tokens
        else:
            self.feed(Received(stream_id, item))
        if not stream.items and self.streams.pop(stream_id, None) is not None:
            self.feed(StreamLost(stream_id, WorkerLost("ended")))

    @precondition(lambda self: any(s.source for s in self.streams.values()))
    @rule()
    def transfer_completes(self):
        """The cache has come; whatever happens to its sender now is no matter."""
        for stream in self.streams.values():
            if stream.source not in self.frozen:
                stream.source = None

    @precondition(lambda self: any(s.source for s in self.streams.values()))
    @rule()
    def transfer_fails(self):
        for stream in self.streams.values():
            if stream.source is not None:
                stream.compute_instead(self.script)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def die(self, data):
        worker = data.draw(st.sampled_from(sorted({s.worker for s in self.streams.values()})))
        self.frozen.discard(worker)
        for stream in self.streams.values():
            if stream.source == worker:
                stream.compute_instead(self.script)
        self.lose(worker, WorkerLost("dead"))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def freeze(self, data):
        self.frozen.add(data.draw(st.sampled_from(sorted({s.worker for s in self.streams.values()}))))

    @precondition(lambda self: any(s.source for s in self.streams.values()))
    @rule()
    def freeze_a_sender(self):
        self.frozen |= {stream.source for stream in self.streams.values() if stream.source is not None}

    @precondition(lambda self: self.frozen)
    @rule(data=st.data())
    def silence_is_noticed(self, data):
        worker = data.draw(st.sampled_from(sorted(self.frozen)))
        self.late |= {k: s for k, s in self.streams.items() if s.worker == worker and s.items}
        self.lose(worker, WorkerStalled("silent"))

    @precondition(lambda self: self.frozen)
    @rule(data=st.data())
    def thaw(self, data):
        """A worker that was frozen goes on, whether or not that was noticed."""
        worker = data.draw(st.sampled_from(sorted(self.frozen)))
        self.frozen.discard(worker)
        for key in [key for key, stream in self.late.items() if stream.worker == worker]:
            for item in self.late.pop(key).items:
                assert self.flow.handle(Received(key, item)) == []

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def drain_is_cut_short(self, data):
        worker = data.draw(st.sampled_from(sorted({s.worker for s in self.streams.values()})))
        if worker in self.frozen:
            return
        for key in [key for key, s in self.streams.items() if s.worker == worker and s.items]:
            if key in self.streams:
                self.feed(Received(key, DRAINING))
                if self.streams.pop(key, None) is not None:
                    self.feed(StreamLost(key, WorkerLost("ended")))
        self.lose(worker, WorkerLost("the connection was closed"))

    def lose(self, worker, error):
        for key in [key for key, stream in self.streams.items() if stream.worker == worker]:
            if self.streams.pop(key, None) is not None:
                self.feed(StreamLost(key, error))

    @precondition(lambda self: self.talking())
    @rule(
        data=st.data(),
        retryable=st.sampled_from([True, True, True, False]),
        status=st.sampled_from([429, 500]),
    )
    def fail(self, data, retryable, status):
        stream_id = data.draw(st.sampled_from(self.talking()))
        self.streams[stream_id].items = []
        self.feed(Received(stream_id, Failed(status, "broken", "broken", retryable)))
        if self.streams.pop(stream_id, None) is not None:
            self.feed(StreamLost(stream_id, WorkerLost("ended")))

    @precondition(lambda self: self.gone or self.ends)
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

    # What must hold ------------------------------------------------------------------------------------

    @invariant()
    def tokens_are_the_undisturbed_ones(self):
        self.flow.validate()
        assert self.delivered == self.expected[: len(self.delivered)]
        assert list(self.flow.delivered) == self.delivered
        assert self.migrations < self.attempts
        assert len(self.ends) <= 1
        if self.ends and isinstance(self.ends[0], Complete):
            assert self.delivered == self.expected
            assert self.ends[0].output_tokens == len(self.expected)
        if self.flow.state is FlowState.ENDED:
            assert bool(self.ends) != self.gone
            assert not self.streams, "all streams are closed or cancelled"

    def teardown(self):
        """Left alone, it comes to an end: nothing hangs, provided that silence is noticed."""
        if not hasattr(self, "flow"):
            return
        for _ in range(200):
            if self.flow.state is FlowState.ENDED:
                break
            if self.routing:
                self.routing = False
                free = [w for w in (*WORKERS, WorkerId("w5")) if w not in self.excluded | self.frozen]
                self.feed(Routed(free[0], free[1] if len(free) > 1 else None))
            elif talking := self.talking():
                self.say_on(talking[0])
            else:
                silent = self.frozen & {stream.worker for stream in self.streams.values()}
                assert silent, "neither routing nor talking, and nobody is silent: it hangs"
                self.lose(silent.pop(), WorkerStalled("silent"))
        assert self.flow.state is FlowState.ENDED


FlowMachine.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestFlowMachine = FlowMachine.TestCase
