"""The double's scheduler: sequences come in, wait for room, and each iteration gives each of them one token.

It must not know HTTP. Room is taken for the whole of a sequence before it begins, so that none is pushed out.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from tokenmill.testing.trtllm_double.cache import BlockCache, Lease
from tokenmill.testing.trtllm_double.options import Quirks
from tokenmill.testing.trtllm_double.tokens import after, logprob_of, next_token, sampling_key

KEPT_ITERATIONS = 1000
"""Rows for ``/metrics`` that are kept until somebody reads them."""


class Made(msgspec.Struct):
    """What an iteration gave a sequence. ``finish``: why it ended, empty while it goes on."""

    tokens: list[int]
    logprobs: list[float]
    finish: str = ""
    stop_reason: int | None = None


class Sequence:
    """A request in the plant. Its ``made`` are bounded by its ``max_tokens``."""

    def __init__(self, fields: dict[str, object]) -> None:
        self.prompt: list[int] = list(fields["prompt"])  # type: ignore[call-overload]
        self.output: list[int] = []
        self.most = int(fields.get("max_tokens") or 16)  # type: ignore[call-overload]
        self.least = int(fields.get("min_tokens") or 0)  # type: ignore[call-overload]
        self.key = sampling_key(fields)
        self.biases: dict[str, float] = fields.get("logit_bias") or {}  # type: ignore[assignment]
        self.stops: list[int] = fields.get("stop_token_ids") or []  # type: ignore[assignment]
        self.keeps_stop = bool(fields.get("include_stop_str_in_output"))
        self.ignores_end = bool(fields.get("ignore_eos"))
        self.prefills = False
        self.fetched: int | None = None
        self.first: list[int] = []
        self.state: int | None = None
        self.cached_tokens = 0
        self.lease: Lease | None = None
        self.made: asyncio.Queue[Made] = asyncio.Queue()


class Plant:
    """``submit`` sequences and read what they made; ``drop`` one that nobody wants any more."""

    def __init__(self, cache: BlockCache, quirks: Quirks, most_running: int) -> None:
        self.cache = cache
        self.iterations: deque[dict[str, object]] = deque(maxlen=KEPT_ITERATIONS)
        self.iteration = 0
        self._quirks = quirks
        self._most = most_running
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._wake = asyncio.Event()

    @property
    def running(self) -> int:
        """Sequences that have room."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences without."""
        return len(self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence."""
        self._waiting.append(sequence)
        self._wake.set()

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; a prefilled one gives its room back."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
        if sequence.lease is not None:
            self.cache.give_back(sequence.lease)
            sequence.lease = None
        self.iterations.append(self._row(0, 0, 0))
        self._wake.set()

    async def run(self) -> None:
        """Iterate while there is work. Cancelled: it stops."""
        while True:
            if not (self._running or self._admit()):
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(self._quirks.step_ms / 1000)
            self._admit()
            self._iterate()

    def _admit(self) -> bool:
        while self._waiting and len(self._running) < self._most:
            sequence = self._waiting[0]
            lease = self.cache.take(sequence.prompt, len(sequence.prompt) + sequence.most)
            if lease is None:
                break
            sequence.lease = lease
            self._waiting.popleft()
            self._running.append(sequence)
        return bool(self._running)

    def _iterate(self) -> None:
        context = [sequence for sequence in self._running if sequence.state is None]
        computed = sum(self._begin(sequence) for sequence in context)
        generating = len(self._running) - len(context)
        for sequence in tuple(self._running):
            self._step(sequence)
        self.iteration += 1
        self.iterations.append(self._row(len(context), computed, generating))

    def _begin(self, sequence: Sequence) -> int:
        """Compute the prompt, or take the cache that came; returns the tokens computed."""
        assert sequence.lease is not None
        if sequence.fetched is not None:
            sequence.state = sequence.fetched
            return 0
        sequence.state = after(0, sequence.prompt)
        sequence.cached_tokens = sequence.lease.reused_tokens
        self.cache.store(sequence.lease, sequence.prompt)
        return len(sequence.prompt) - sequence.cached_tokens

    def _step(self, sequence: Sequence) -> None:
        assert sequence.state is not None
        logprob = logprob_of(sequence.state)
        if sequence.first:
            token = sequence.first.pop(0)
        else:
            token = next_token(sequence.state, sequence.key, self._quirks.vocab, sequence.biases)
            if self._ends(sequence):
                token = self._quirks.end_id
        made = Made([token], [logprob])
        self._judge(sequence, token, made)
        if made.tokens:
            sequence.output.append(token)
        if sequence.prefills and not made.finish:
            made.finish = "not_finished" if not self._quirks.old else "length"
        if not (sequence.prefills and made.finish in ("not_finished", "length")):
            sequence.state = after(sequence.state, [token])
        if made.finish:
            self._leave(sequence, made)
        sequence.made.put_nowait(made)

    def _ends(self, sequence: Sequence) -> bool:
        at = len(sequence.output)
        return at == self._quirks.end_at and at >= sequence.least and not sequence.ignores_end

    def _judge(self, sequence: Sequence, token: int, made: Made) -> None:
        """Say whether the token ends the sequence, and whether it is shown."""
        count = len(sequence.output) + 1
        if self._ends(sequence) and token == self._quirks.end_id:
            made.finish = "stop"
            if self._quirks.hides_end:
                made.tokens, made.logprobs = [], []
        elif token in sequence.stops and count > sequence.least:
            made.finish, made.stop_reason = "stop", token
            if not sequence.keeps_stop:
                made.tokens, made.logprobs = [], []
        elif count >= sequence.most:
            made.finish = "length"

    def _leave(self, sequence: Sequence, made: Made) -> None:
        self._running.remove(sequence)
        assert sequence.lease is not None
        if sequence.prefills and made.finish != "stop":
            return  # whoever waits for its cache gives the room back
        if sequence.fetched is None:
            self.cache.store(sequence.lease, sequence.prompt + sequence.output[:-1])
        self.cache.give_back(sequence.lease)
        sequence.lease = None

    def _row(self, context: int, computed: int, generating: int) -> dict[str, object]:
        cache = self.cache
        return {
            "iter": self.iteration,
            "iterLatencyMS": self._quirks.step_ms,
            "numActiveRequests": self.running,
            "numQueuedRequests": self.waiting,
            "maxNumActiveRequests": self._most,
            "gpuMemUsage": 0,
            "kvCacheStats": {
                "maxNumBlocks": cache.capacity,
                "freeNumBlocks": cache.capacity - cache.used,
                "usedNumBlocks": cache.used,
                "tokensPerBlock": cache.block_tokens,
                "allocTotalBlocks": 0,
                "allocNewBlocks": 0,
                "reusedBlocks": cache.reused,
                "missedBlocks": cache.missed,
                "cacheHitRate": cache.reused / max(1, cache.reused + cache.missed),
            },
            "inflightBatchingStats": {
                "numScheduledRequests": context + generating,
                "numContextRequests": context,
                "numGenRequests": generating,
                "numPausedRequests": 0,
                "numCtxTokens": computed,
                "microBatchId": 0,
                "avgNumDecodedTokensPerIter": 1.0,
            },
        }
