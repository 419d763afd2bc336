from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.clock import VirtualClock
from tokenmill.protocol.calls import Call, Generate, Subscribe, SubscribeKv
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import BlockHash, RequestId
from tokenmill.protocol.items import Failed, Finished, FinishReason, Item, Load, TokenLogprobs, Tokens
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent, KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import EngineOutput
from tokenmill.serve.worker.desk import Desk, merge_items


class Stream:
    def __init__(self, call: Call) -> None:
        self.call = call
        self.on_cancel: Callable[[], None] | None = None
        self.sent: list[Item] = []
        self.ended = False

    def send(self, item: Item) -> None:
        assert not self.ended
        self.sent.append(item)

    def end(self) -> None:
        self.ended = True


class Maker:
    def __init__(self) -> None:
        self.submitted: list[GenerateRequest] = []
        self.cancelled: list[str] = []
        self.load = StepMetrics()

    def submit(self, request: GenerateRequest) -> None:
        self.submitted.append(request)

    def cancel(self, request_id: RequestId) -> None:
        self.cancelled.append(request_id)

    def metrics(self) -> StepMetrics:
        return self.load


def generate(request_id: str) -> Generate:
    sampling = Sampling(max_tokens=4)
    return Generate(GenerateRequest(request_id=RequestId(request_id), prompt=[1], sampling=sampling))


def output(*items: tuple[str, Item], metrics: StepMetrics | None = None) -> EngineOutput:
    return EngineOutput([(RequestId(i), item) for i, item in items], metrics or StepMetrics(), [])


def desk() -> tuple[Desk, Maker, VirtualClock]:
    maker, clock = Maker(), VirtualClock()
    return Desk(maker, clock), maker, clock


def test_items_go_to_their_stream_and_the_end_closes_it() -> None:
    d, maker, _ = desk()
    a, b = Stream(generate("a")), Stream(generate("b"))
    d.opened(a)
    d.opened(b)
    assert [r.request_id for r in maker.submitted] == ["a", "b"]
    d.stepped(output(("a", Tokens(0, [5])), ("b", Tokens(0, [6]))))
    d.stepped(output(("a", Finished(1, [7], FinishReason.LENGTH))))
    assert a.sent == [Tokens(0, [5]), Finished(1, [7], FinishReason.LENGTH)]
    assert a.ended
    assert not b.ended
    assert d.open_requests == 1


def test_a_cancelled_stream_reaches_the_engine_once_and_hears_no_more() -> None:
    d, maker, _ = desk()
    a = Stream(generate("a"))
    d.opened(a)
    assert a.on_cancel is not None
    a.on_cancel()
    a.on_cancel()
    d.stepped(output(("a", Tokens(0, [5]))))
    assert maker.cancelled == ["a"]
    assert a.sent == []
    assert d.open_requests == 0


def test_a_reader_too_far_behind_for_the_last_item_harms_no_other() -> None:
    class Overflowing(Stream):
        def send(self, item: Item) -> None:
            assert self.on_cancel is not None
            self.on_cancel()

    d, maker, _ = desk()
    slow, other = Overflowing(generate("slow")), Stream(generate("other"))
    d.opened(slow)
    d.opened(other)
    d.stepped(output(("slow", Finished(0, [5], FinishReason.STOP)), ("other", Tokens(0, [6]))))
    assert other.sent == [Tokens(0, [6])]
    assert maker.cancelled == ["slow"]
    assert d.open_requests == 1


def test_a_duplicate_id_is_refused_without_harm_to_the_first() -> None:
    d, maker, _ = desk()
    first, second = Stream(generate("a")), Stream(generate("a"))
    d.opened(first)
    d.opened(second)
    assert isinstance(second.sent[0], Failed)
    assert second.sent[0].status == 400
    assert second.ended
    assert len(maker.submitted) == 1
    d.stepped(output(("a", Tokens(0, [5]))))
    assert first.sent == [Tokens(0, [5])]


def test_draining_refuses_new_requests_retryably_and_tells_subscribers() -> None:
    d, maker, _ = desk()
    watcher, running, late = Stream(Subscribe()), Stream(generate("a")), Stream(generate("b"))
    d.opened(watcher)
    d.opened(running)
    d.drain()
    d.opened(late)
    assert watcher.sent[-1] == Load(StepMetrics(), draining=True)
    assert isinstance(late.sent[0], Failed)
    assert late.sent[0].retryable
    assert len(maker.submitted) == 1
    assert d.open_requests == 1


def test_load_is_told_at_once_then_at_most_every_interval() -> None:
    d, maker, clock = desk()
    watcher = Stream(Subscribe(interval_ms=50))
    d.opened(watcher)
    assert len(watcher.sent) == 1
    for step in range(1, 101):
        clock.advance_to(step * 0.001)
        d.stepped(output(metrics=StepMetrics(step=step)))
    assert [item.metrics.step for item in watcher.sent if isinstance(item, Load)] == [0, 50, 100]
    maker.load = StepMetrics(step=101)
    d.tell_load_now()
    assert isinstance(watcher.sent[-1], Load)
    assert watcher.sent[-1].metrics.step == 101


def test_a_lost_subscriber_is_forgotten() -> None:
    d, _, clock = desk()
    watcher = Stream(Subscribe(interval_ms=0))
    d.opened(watcher)
    assert watcher.on_cancel is not None
    watcher.on_cancel()
    clock.advance_to(1)
    d.stepped(output())
    assert len(watcher.sent) == 1


def test_what_was_told_too_soon_to_repeat_is_due_when_the_interval_has_passed() -> None:
    d, maker, clock = desk()
    watcher = Stream(Subscribe(interval_ms=50))
    d.opened(watcher)
    assert d.load_due_s is None
    clock.advance_to(0.02)
    d.stepped(output(metrics=StepMetrics(step=1)))
    assert d.load_due_s is not None
    assert abs(d.load_due_s - 0.03) < 1e-9
    d.tell_load_due()
    assert len(watcher.sent) == 1
    clock.advance_to(0.05)
    maker.load = StepMetrics(step=2)
    d.tell_load_due()
    assert watcher.sent[1:] == [Load(StepMetrics(step=2))]
    assert d.load_due_s is None


def test_that_the_work_has_run_out_is_told_at_once_and_once() -> None:
    d, _, clock = desk()
    watcher = Stream(Subscribe(interval_ms=50))
    d.opened(watcher)
    clock.advance_to(1.0)
    for running in (2, 1, 0, 0):
        d.stepped(output(metrics=StepMetrics(running=running)))
    told = [item.metrics.running for item in watcher.sent if isinstance(item, Load)]
    assert told == [0, 2, 0]


def blocks(*hashes: int) -> BlocksStored:
    return BlocksStored([BlockHash(h) for h in hashes])


def kv_step(*events: KvEvent) -> EngineOutput:
    return EngineOutput([], StepMetrics(), list(events))


def test_kv_readers_get_a_snapshot_and_then_one_item_a_step_numbered_on() -> None:
    d, _, _ = desk()
    early, late = Stream(SubscribeKv()), Stream(SubscribeKv())
    d.opened(early)
    d.stepped(kv_step(blocks(1, 2), blocks(5)))
    d.stepped(output())
    d.opened(late)
    d.stepped(kv_step(BlocksRemoved([BlockHash(5)])))
    assert early.sent == [
        KvEvents(0, [CacheCleared()]),
        KvEvents(1, [blocks(1, 2), blocks(5)]),
        KvEvents(3, [BlocksRemoved([BlockHash(5)])]),
    ]
    assert late.sent == [
        KvEvents(0, [CacheCleared(), blocks(1, 2), blocks(5)]),
        KvEvents(3, [BlocksRemoved([BlockHash(5)])]),
    ]


def test_a_lost_kv_reader_is_forgotten() -> None:
    d, _, _ = desk()
    reader = Stream(SubscribeKv())
    d.opened(reader)
    assert reader.on_cancel is not None
    reader.on_cancel()
    d.stepped(kv_step(blocks(1)))
    assert len(reader.sent) == 1


def _flatten(items: list[Item]) -> tuple[list[tuple[int, int]], list[object]]:
    tokens, rest = [], []
    for item in items:
        if isinstance(item, Tokens | Finished):
            tokens += [(item.index + i, token) for i, token in enumerate(item.tokens)]
        if isinstance(item, Finished):
            rest.append((item.reason, item.stop_token, item.cached_tokens))
    return tokens, rest


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.booleans(), st.booleans(), st.data())
def test_merging_keeps_every_token_and_the_end(
    tokens: list[int], scored: bool, bare_end: bool, data: st.DataObject
) -> None:
    logprobs = [TokenLogprobs(-float(t)) for t in tokens]
    items: list[Item] = [Tokens(i, [t], [logprobs[i]] if scored else None) for i, t in enumerate(tokens)]
    if bare_end:
        items.append(Finished(0, [], FinishReason.CANCELLED))
    else:
        items[-1] = Finished(
            len(tokens) - 1, tokens[-1:], FinishReason.STOP, tokens[-1], 3, logprobs[-1:] if scored else None
        )
    before = _flatten(items)
    while len(items) > 1:
        at = data.draw(st.integers(0, len(items) - 2))
        merged = merge_items(items[at], items[at + 1])
        assert merged is not None
        items[at : at + 2] = [merged]
    assert _flatten(items) == before
    assert isinstance(items[0], Finished)
    assert items[0].logprobs == (logprobs if scored else None)


def test_what_must_not_be_merged_is_not() -> None:
    assert merge_items(Tokens(0, [1]), Tokens(2, [3])) is None
    assert merge_items(Tokens(0, [1]), Finished(2, [3], FinishReason.STOP)) is None
    assert merge_items(Tokens(0, [1]), Failed(500, "x", "y")) is None
    assert merge_items(Finished(0, [1], FinishReason.STOP), Tokens(1, [2])) is None
    assert merge_items(KvEvents(0, [blocks(1)]), Load(StepMetrics())) is None
    assert merge_items(KvEvents(0, [blocks(1)]), KvEvents(1, [blocks(2)])) == KvEvents(
        0, [blocks(1), blocks(2)]
    )
    assert merge_items(Load(StepMetrics(step=1)), Load(StepMetrics(step=2))) == Load(StepMetrics(step=2))


def test_who_is_sent_away_hears_that_the_worker_leaves_and_reaches_the_engine() -> None:
    d, maker, _ = desk()
    a, b = Stream(generate("a")), Stream(generate("b"))
    d.opened(a)
    d.opened(b)
    d.drain()
    d.send_away()
    for stream in (a, b):
        assert stream.sent == [Failed(503, "worker_draining", "this worker is shutting down", retryable=True)]
        assert stream.ended
    assert maker.cancelled == ["a", "b"]
    assert d.open_requests == 0
    d.stepped(output(("a", Finished(0, [], FinishReason.CANCELLED))))
    d.send_away()
    assert len(a.sent) == 1
