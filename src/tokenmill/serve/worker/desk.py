"""Between the request server and the engine: which stream wants what, one frame a step.

It knows streams and items, no sockets and no model.

Load reports: a subscriber hears of every change within its interval (50 ms by default), and at once when it
was told nothing for that long, or when the engine has run out of work: that goes in one frame with the end of
the last request. What a step changed earlier waits for ``load_due_s`` to pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tokenmill.clock import Clock
from tokenmill.protocol.calls import Call, Generate, Subscribe, SubscribeKv
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished, Item, Load, Tokens, join_tokens
from tokenmill.protocol.kv_events import KvEvent, KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.protocol.text import TextFinished, TextPieces, join_text
from tokenmill.serve.engines.base import EngineOutput
from tokenmill.serve.worker.kv_journal import KvJournal, merge_events


class DeskStream(Protocol):
    """What the desk needs of a ``fabric`` server stream."""

    on_cancel: Callable[[], None] | None

    @property
    def call(self) -> Call:
        """What the stream was opened with."""
        ...

    def send(self, item: Item) -> None:
        """Queue an item."""
        ...

    def end(self) -> None:
        """Close the stream after what is queued."""
        ...


class TokenMaker(Protocol):
    """What the desk needs of an engine."""

    def submit(self, request: GenerateRequest) -> None:
        """Take a request."""
        ...

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request."""
        ...

    def metrics(self) -> StepMetrics:
        """The load after the last step."""
        ...


_LEAVING = Failed(503, "worker_draining", "this worker is shutting down", retryable=True)


class _Subscriber:
    """A stream that is told the load, at most every ``interval_s``."""

    __slots__ = ("behind", "busy", "interval_s", "last_sent", "stream")

    def __init__(self, stream: DeskStream, interval_s: float) -> None:
        self.stream = stream
        self.interval_s = interval_s
        self.last_sent = float("-inf")
        self.behind = False
        """The load has changed since it was told."""
        self.busy = False
        """It was told that there is work."""


class _KvReader:
    """A stream that is told what enters and leaves the cache; ``number`` is that of its next event."""

    __slots__ = ("number", "stream")

    def __init__(self, stream: DeskStream) -> None:
        self.stream = stream
        self.number = 0

    def tell(self, events: list[KvEvent]) -> None:
        """Send events. The list is shared and never changed."""
        first, self.number = self.number, self.number + len(events)
        self.stream.send(KvEvents(first, events))


class Desk:
    """Hands requests to the engine and its output to the streams.

    It only queues items: who drives it flushes the streams once for each engine step.
    """

    def __init__(self, engine: TokenMaker, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._streams: dict[RequestId, DeskStream] = {}
        self._subscribers: dict[int, _Subscriber] = {}
        self._kv_readers: dict[int, _KvReader] = {}
        self._journal = KvJournal()
        self._draining = False

    @property
    def open_requests(self) -> int:
        """Requests that have had no end yet."""
        return len(self._streams)

    def opened(self, stream: DeskStream) -> None:
        """A client opened a stream."""
        call = stream.call
        if isinstance(call, Generate):
            self._generate(stream, call.request)
        elif isinstance(call, Subscribe):
            self._subscribe(stream, call)
        elif isinstance(call, SubscribeKv):
            self._subscribe_kv(stream)

    def stepped(self, output: EngineOutput) -> None:
        """The engine's sink: pass items on, tell the load and what has changed in the cache."""
        streams = self._streams
        for request_id, item in output.items:
            stream = streams.get(request_id)
            if stream is None:
                continue  # cancelled: nobody reads it any more
            stream.send(item)
            if isinstance(item, Finished | Failed | TextFinished):
                streams.pop(request_id, None)  # gone if the send has found the reader too far behind
                stream.end()
        if output.kv_events:
            self._journal.apply(output.kv_events)
            for reader in list(self._kv_readers.values()):
                reader.tell(output.kv_events)
        self._tell_load(output.metrics)

    @property
    def load_due_s(self) -> float | None:
        """In how many seconds somebody must be told of a change by ``tell_load_due``; None: all know."""
        now = self._clock.now()
        dues = [each.last_sent + each.interval_s - now for each in self._subscribers.values() if each.behind]
        return max(0.0, min(dues)) if dues else None

    def tell_load_due(self) -> None:
        """Tell the load to those whose interval has passed since they were told."""
        metrics, now = self._engine.metrics(), self._clock.now()
        for subscriber in list(self._subscribers.values()):
            if subscriber.behind and now - subscriber.last_sent >= subscriber.interval_s:
                self._tell(subscriber, metrics, now)

    def drain(self) -> None:
        """Refuse new requests from now on and say so to all subscribers."""
        self._draining = True
        self.tell_load_now()

    def send_away(self) -> None:
        """End all requests as a worker that leaves: their frontends go on with them elsewhere."""
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            self._engine.cancel(request_id)
            self._refuse(stream, _LEAVING)

    def tell_load_now(self) -> None:
        """Send the load to every subscriber, however lately it was told: a sign of life between steps."""
        for subscriber in self._subscribers.values():
            subscriber.last_sent = float("-inf")
        self._tell_load(self._engine.metrics())

    def _generate(self, stream: DeskStream, request: GenerateRequest) -> None:
        request_id = request.request_id
        if self._draining:
            self._refuse(stream, _LEAVING)
            return
        if request_id in self._streams:
            failure = Failed(400, "duplicate_request", f"request id {request_id} is already in use")
            self._refuse(stream, failure)
            return
        self._streams[request_id] = stream
        stream.on_cancel = lambda: self._cancelled(request_id)
        self._engine.submit(request)

    def _refuse(self, stream: DeskStream, failure: Failed) -> None:
        stream.send(failure)
        stream.end()

    def _cancelled(self, request_id: RequestId) -> None:
        if self._streams.pop(request_id, None) is not None:
            self._engine.cancel(request_id)

    def _subscribe(self, stream: DeskStream, call: Subscribe) -> None:
        subscriber = _Subscriber(stream, call.interval_ms / 1000)
        key = id(stream)
        self._subscribers[key] = subscriber
        stream.on_cancel = lambda: self._unsubscribed(key)
        self._tell(subscriber, self._engine.metrics(), self._clock.now())

    def _unsubscribed(self, key: int) -> None:
        self._subscribers.pop(key, None)

    def _subscribe_kv(self, stream: DeskStream) -> None:
        reader = _KvReader(stream)
        key = id(stream)
        self._kv_readers[key] = reader
        stream.on_cancel = lambda: self._kv_unsubscribed(key)
        for events in self._journal.snapshot():
            reader.tell(events)

    def _kv_unsubscribed(self, key: int) -> None:
        self._kv_readers.pop(key, None)

    def _tell_load(self, metrics: StepMetrics) -> None:
        now = self._clock.now()
        busy = _is_busy(metrics)
        for subscriber in list(self._subscribers.values()):
            if now - subscriber.last_sent >= subscriber.interval_s or (subscriber.busy and not busy):
                self._tell(subscriber, metrics, now)
            else:
                subscriber.behind = True

    def _tell(self, subscriber: _Subscriber, metrics: StepMetrics, now: float) -> None:
        subscriber.last_sent = now
        subscriber.behind = False
        subscriber.busy = _is_busy(metrics)
        subscriber.stream.send(Load(metrics, self._draining))


def _is_busy(metrics: StepMetrics) -> bool:
    return bool(metrics.running or metrics.waiting or metrics.receiving)


def merge_items(earlier: Item, later: Item) -> Item | None:
    """Join two items that wait for a slow reader, where the result means the same; else None.

    What waits for one stream is so bounded: a few bytes for each of ``max_tokens`` (of text, a few hundred),
    the last load, or what ``merge_events`` keeps of the cache's changes.
    """
    if isinstance(earlier, Load) and isinstance(later, Load):
        return later
    if isinstance(earlier, KvEvents) and isinstance(later, KvEvents):
        return merge_events(earlier, later)
    if isinstance(earlier, TextPieces):
        return join_text(earlier, later)
    return join_tokens(earlier, later) if isinstance(earlier, Tokens) else None
