"""Executes steps by waiting as long as a timing model says, and makes tokens that depend on the cache.

Its "KV cache" holds each token's id. The next token is a hash of all that the cache holds for the sequence,
read back from the cache whenever this executor did not write it itself (after a handoff, a prefix hit or a
preemption): a wrong block gives wrong tokens here exactly as it would with a real model.
"""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import msgspec
import xxhash

from tokenmill.clock import Sleeper
from tokenmill.decide.batching.types import Chunk, Sequence, StepPlan
from tokenmill.decide.perf.step_time import LinearStepTime, StepTimeModel
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.engines.base import ExecutorFacts, StepResult
from tokenmill.serve.engines.sim.vocabulary import Vocabulary, read_vocabulary
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.memory import HostKvMemory

TOKEN_BYTES = 4
DEFAULT_KV_BLOCKS = 65_536


class SimSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``speedup`` divides all step times; 0 means no waiting at all. ``jitter`` is the standard deviation of
    a step's time as a share of it, drawn from ``seed``.
    """

    model: Path
    block_tokens: int = 16
    kv_blocks: int = DEFAULT_KV_BLOCKS
    max_model_len: int = 0
    speedup: float = 1.0
    jitter: float = 0.0
    seed: int = 0
    step_time: LinearStepTime | TableStepTime = LinearStepTime()
    saturating_tokens: int = LinearStepTime().saturating_tokens()


class _Context:
    """What one sequence's cache has been hashed into so far."""

    __slots__ = ("hasher", "length", "sampling")

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.hasher = xxhash.xxh3_64()
        self.length = 0


class SimExecutor:
    """See the module's first lines; ``Executor`` says what the methods mean."""

    memory: HostKvMemory

    def __init__(self, settings: SimSettings, sleeper: Sleeper) -> None:
        self._settings = settings
        self._sleeper = sleeper
        self._step_time: StepTimeModel = settings.step_time
        self._contexts: dict[RequestId, _Context] = {}
        self._random = random.Random(settings.seed)
        self._vocabulary = Vocabulary(0, [], [], 0)

    def load(self) -> ExecutorFacts:
        """Read the vocabulary and allocate the cache."""
        settings = self._settings
        self._vocabulary = vocabulary = read_vocabulary(settings.model)
        layout = KvLayout(
            planes=1, block_tokens=settings.block_tokens, token_bytes=TOKEN_BYTES, dtype="bytes"
        )
        self.memory = HostKvMemory(layout, settings.kv_blocks)
        self._cells = self.memory.region.cast("B")
        kv_tokens = settings.kv_blocks * settings.block_tokens
        return ExecutorFacts(
            model=settings.model.name,
            vocab_size=vocabulary.size,
            max_model_len=min(settings.max_model_len or vocabulary.max_model_len, kv_tokens),
            kv_blocks=settings.kv_blocks,
            block_tokens=settings.block_tokens,
            eos_token_ids=vocabulary.eos_token_ids,
            fingerprint=f"sim-{vocabulary.size}",
            prefill_budget=settings.saturating_tokens,
        )

    def admit(self, request_id: RequestId, sampling: Sampling, prompt_len: int) -> None:
        """Start an empty hash for the sequence."""
        del prompt_len
        self._contexts[request_id] = _Context(sampling)

    def retire(self, request_id: RequestId) -> None:
        """Forget the sequence."""
        self._contexts.pop(request_id, None)

    def execute(self, plan: StepPlan) -> StepResult:
        """Write the chunks' tokens to the cache, wait, and sample."""
        self._wait(plan)
        sampled: list[int] = []
        logprobs: dict[RequestId, TokenLogprobs] = {}
        scores: dict[RequestId, tuple[int, list[TokenLogprobs]]] = {}
        for chunk in plan.chunks:
            request_id = chunk.sequence.request.request_id
            context = self._contexts[request_id]
            self._write(chunk, context)
            if context.sampling.prompt_logprobs is not None:
                first, last = max(1, chunk.start), min(chunk.start + chunk.length, chunk.sequence.prompt_len)
                scores[request_id] = (first, [TokenLogprobs(0.0)] * max(0, last - first))
            if chunk.samples:
                token = self._next_token(context)
                sampled.append(token)
                if context.sampling.logprobs is not None:
                    top = [(token, 0.0)] if context.sampling.logprobs else []
                    logprobs[request_id] = TokenLogprobs(0.0, top)
        return StepResult(sampled, logprobs, scores)

    def close(self) -> None:
        """Free the cache."""
        if hasattr(self, "_cells"):
            self._cells.release()
            self.memory.close()

    def _next_token(self, context: _Context) -> int:
        ordinary = self._vocabulary.ordinary
        digest = context.hasher.intdigest()
        if context.sampling.temperature > 0:
            digest = xxhash.xxh3_64_intdigest(
                digest.to_bytes(8, "little"), context.sampling.seed & (2**64 - 1)
            )
        return ordinary[digest % len(ordinary)]

    def _write(self, chunk: Chunk, context: _Context) -> None:
        """Put the chunk's token ids into their slots and into the hash."""
        sequence, start, length = chunk.sequence, chunk.start, chunk.length
        if context.length != start:
            self._reread(sequence, context, start)
        data = array("I", sequence.tokens[start : start + length]).tobytes()
        context.hasher.update(data)
        context.length = start + length
        block_tokens, blocks, cells = self._settings.block_tokens, sequence.blocks, self._cells
        position = start
        while position < start + length:
            offset = position % block_tokens
            count = min(block_tokens - offset, start + length - position)
            at = (blocks[position // block_tokens] * block_tokens + offset) * TOKEN_BYTES
            source = (position - start) * TOKEN_BYTES
            cells[at : at + count * TOKEN_BYTES] = data[source : source + count * TOKEN_BYTES]
            position += count

    def _reread(self, sequence: Sequence, context: _Context, length: int) -> None:
        """Hash the first ``length`` tokens as the cache has them."""
        context.hasher = xxhash.xxh3_64()
        block_bytes = self._settings.block_tokens * TOKEN_BYTES
        left = length * TOKEN_BYTES
        for block in sequence.blocks:
            if left <= 0:
                break
            at = block * block_bytes
            context.hasher.update(self._cells[at : at + min(left, block_bytes)])
            left -= block_bytes
        context.length = length

    def _wait(self, plan: StepPlan) -> None:
        settings = self._settings
        if settings.speedup <= 0:
            return
        new = prefill_context = sequences = decode_context = 0
        for at, chunk in enumerate(plan.chunks):
            if at < plan.decode_tokens:
                sequences += 1
                decode_context += chunk.start + 1
            else:
                new += chunk.length
                prefill_context += chunk.length * chunk.start + chunk.length * (chunk.length + 1) // 2
        step_ms = self._step_time.mixed_ms(new, prefill_context, sequences, decode_context)
        if settings.jitter:
            step_ms *= max(0.1, self._random.gauss(1.0, settings.jitter))
        self._sleeper.sleep(step_ms / 1000 / settings.speedup)
