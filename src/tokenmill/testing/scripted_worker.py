"""A worker without an engine: it speaks the worker's protocol and says what a script tells it to.

For tests and benchmarks of frontends. Its model is a function, so that what an undisturbed worker would say
is known: output position i of a request is ``script(request)[i]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from tokenmill.protocol.calls import Call, Generate, SubscribeKv
from tokenmill.protocol.card import WORKERS_PREFIX, WorkerCard, WorkerState
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import (
    Failed,
    Finished,
    FinishReason,
    Item,
    Load,
    Offered,
    PromptScored,
    TokenLogprobs,
    Tokens,
)
from tokenmill.protocol.kv_events import CacheCleared, KvEvent, KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.protocol.text import TextFinished
from tokenmill.serve.fabric.registry import Registry
from tokenmill.serve.fabric.streams import ServerStream, StreamServer
from tokenmill.testing.tiny_tokenizer import EOS_ID

Script = Callable[[GenerateRequest], Sequence[int]]


def merge_tokens(older: Item, newer: Item) -> Item | None:
    """Return one item that says what two said, where the reader was slow; None where there is none."""
    if not isinstance(older, Tokens) or not isinstance(newer, Tokens):
        return None
    logprobs = None
    if older.logprobs is not None and newer.logprobs is not None:
        logprobs = older.logprobs + newer.logprobs
    return Tokens(older.index, older.tokens + newer.tokens, logprobs)


class ScriptedWorker:
    """``start`` it, script it, ``stop`` it.

    ``script``: the whole output of a request, end-of-sequence token included; cut at ``max_tokens``.
    ``pace_s``: between two tokens; 0 sends all in one go, one item a token. ``max_model_len``: tokens.
    ``requests``: what came, in order; ``cancelled``: what was cancelled. ``fail``: when set, answers every
    request. ``mute``: says nothing at all. ``lose_after``: tokens after which the connection breaks.
    ``refetch``: the decode role computes from the first new token on, as if the handoff had been lost.
    ``cache``: the events that a new reader of the cache gets as its snapshot. ``kv_subscriptions``: how often
    somebody asked for it. ``card``: fields of its card that are to differ. ``items``: what it says of a
    request, in place of the script.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        script: Script,
        *,
        role: Role = Role.BOTH,
        address: str = "tcp://127.0.0.1:0",
        pace_s: float = 0.0,
        max_model_len: int = 4096,
        transports: Sequence[str] = ("tcp",),
        fingerprint: str = "tiny",
        card: Mapping[str, object] | None = None,
        items: Callable[[GenerateRequest], list[Item]] | None = None,
    ) -> None:
        self.worker_id = WorkerId(name)
        self.requests: list[GenerateRequest] = []
        self.cancelled: list[RequestId] = []
        self.fail: Failed | None = None
        self.mute = False
        self.lose_after: int | None = None
        self.refetch = False
        self.pace_s = pace_s
        self.cached_tokens = 0
        self.cache: list[KvEvent] = []
        self.kv_subscriptions = 0
        self._registry = registry
        self._script = script
        self._role = role
        self._address = address
        self._max_model_len = max_model_len
        self._transports = list(transports)
        self._card_fields = {"fingerprint": fingerprint, **(card or {})}
        self._own_items = items
        self._said = 0
        self._card: WorkerCard | None = None
        self._subscribers: list[ServerStream[Call, Item]] = []
        self._kv_readers: dict[ServerStream[Call, Item], int] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._server = StreamServer[Call, Item](Call, Item, self._on_open, merge=merge_tokens, name=name)

    @property
    def key(self) -> str:
        """The worker's key in the registry."""
        return WORKERS_PREFIX + self.worker_id

    async def start(self) -> None:
        """Listen and announce. Cancelled: call ``stop``."""
        address = await self._server.start(self._address)
        self._card = WorkerCard(
            worker_id=self.worker_id,
            role=self._role,
            stage=self._role.value,
            state=WorkerState.READY,
            address=address,
            engine="scripted",
            model="tiny",
            max_model_len=self._max_model_len,
            block_tokens=16,
            kv_blocks=1024,
            max_sequences=64,
            eos_token_ids=[EOS_ID],
            vocab_size=260,
            transports=self._transports,
            early_handoff=True,
        )
        self._card = msgspec.structs.replace(self._card, **self._card_fields)
        await self._registry.put(self.key, msgspec.json.encode(self._card))

    async def announce(self, state: WorkerState) -> None:
        """Change the state on the card."""
        assert self._card is not None
        self._card = msgspec.structs.replace(self._card, state=state)
        await self._registry.put(self.key, msgspec.json.encode(self._card))

    def report(self, metrics: StepMetrics, *, draining: bool = False) -> None:
        """Tell all subscribers a load."""
        for stream in self._subscribers:
            stream.send(Load(metrics, draining))

    def tell_kv(self, *events: KvEvent, lost: int = 0) -> None:
        """Tell all readers of the cache what has changed, after ``lost`` events that they never see."""
        for stream, number in self._kv_readers.items():
            stream.send(KvEvents(number + lost, list(events)))
            self._kv_readers[stream] = number + lost + len(events)

    def end_kv(self) -> None:
        """End the streams of all readers of the cache."""
        while self._kv_readers:
            self._kv_readers.popitem()[0].end()

    async def stop(self) -> None:
        """Leave the registry and break all connections."""
        await self._registry.delete(self.key)
        await self.crash()

    async def crash(self) -> None:
        """Break all connections at once, and stay in the registry as the dead do for a while."""
        for timer in self._timers:
            timer.cancel()
        await self._server.close(grace_s=0)

    # Inside --------------------------------------------------------------------------------------------

    def _on_open(self, stream: ServerStream[Call, Item]) -> None:
        if isinstance(stream.call, SubscribeKv):
            self._subscribe_kv(stream)
            return
        if not isinstance(stream.call, Generate):
            self._subscribers.append(stream)
            stream.on_cancel = partial(self._subscribers.remove, stream)
            stream.send(Load(StepMetrics(kv_blocks_total=1024)))
            return
        request = stream.call.request
        self.requests.append(request)
        stream.on_cancel = partial(self.cancelled.append, request.request_id)
        if self.fail is not None:
            stream.send(self.fail)
            stream.end()
        elif not self.mute:
            self._play(stream, (self._own_items or self._items)(request))

    def _subscribe_kv(self, stream: ServerStream[Call, Item]) -> None:
        self.kv_subscriptions += 1
        snapshot = [CacheCleared(), *self.cache]
        self._kv_readers[stream] = len(snapshot)
        stream.on_cancel = lambda: self._kv_reader_gone(stream)
        stream.send(KvEvents(0, snapshot))

    def _kv_reader_gone(self, stream: ServerStream[Call, Item]) -> None:
        self._kv_readers.pop(stream, None)

    def _play(self, stream: ServerStream[Call, Item], items: list[Item]) -> None:
        while items and not stream.closed:
            item = items.pop(0)
            if isinstance(item, Tokens) and self._loses(len(item.tokens)):
                loop = asyncio.get_running_loop()
                self._crashing = loop.create_task(self.crash())
                return
            stream.send(item)
            if isinstance(item, Finished | Failed | TextFinished):
                stream.end()
            elif self.pace_s:
                self._later(partial(self._play, stream, items))
                return

    def _loses(self, tokens: int) -> bool:
        self._said += tokens
        return self.lose_after is not None and self._said > self.lose_after

    def _later(self, step: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            step()

        timer = asyncio.get_running_loop().call_later(self.pace_s, run)
        self._timers.add(timer)

    def _items(self, request: GenerateRequest) -> list[Item]:
        """Return all that an engine in the asked role would say."""
        whole = list(self._script(request))
        output = whole[: request.sampling.max_tokens]
        first = len(request.output)
        items: list[Item] = []
        if request.role is Role.PREFILL:
            items.append(Offered(Handoff("tcp", request.request_id.encode(), len(request.prompt))))
        elif request.role is Role.DECODE and not self.refetch:
            first += 1
        if request.sampling.prompt_logprobs is not None and request.role is not Role.DECODE:
            items.append(PromptScored([None, *map(_score, request.prompt[1:])]))
        last = first if request.role is Role.PREFILL else len(output) - 1
        scores = request.sampling.logprobs is not None
        items += [
            Tokens(index, [output[index]], [_score(output[index])] if scores else None)
            for index in range(first, last)
        ]
        items.append(self._end(request, whole, output, max(first, last), scores=scores))
        if request.role is Role.PREFILL and isinstance(items[-1], Finished):
            self._split_handoff(items)
        return items

    def _end(
        self, request: GenerateRequest, whole: list[int], output: list[int], index: int, *, scores: bool
    ) -> Item:
        tokens = output[index : index + 1]
        ended = index + 1 >= len(output)
        stop = tokens[0] if ended and len(output) == len(whole) and tokens == [EOS_ID] else None
        reason = FinishReason.HANDOFF
        if ended or request.role is not Role.PREFILL:
            reason = FinishReason.LENGTH if stop is None else FinishReason.STOP
        logprobs = [_score(token) for token in tokens] if scores else None
        return Finished(index, tokens, reason, stop, self.cached_tokens, logprobs)

    @staticmethod
    def _split_handoff(items: list[Item]) -> None:
        """Send a prefill's one token before its end, as engines do."""
        end = items[-1]
        if isinstance(end, Finished) and end.reason is FinishReason.HANDOFF:
            after = end.index + len(end.tokens)
            items[-1:] = [
                Tokens(end.index, end.tokens, end.logprobs),
                Finished(after, [], FinishReason.HANDOFF, None, end.cached_tokens),
            ]


def _score(token: int) -> TokenLogprobs:
    """Return made-up log probabilities that name their token: -token/1000, and the next one below it."""
    return TokenLogprobs(-token / 1000, [(token, -token / 1000), ((token + 1) % 256, -token / 1000 - 1)])
