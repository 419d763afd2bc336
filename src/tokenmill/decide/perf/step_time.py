"""The seam for step times, and the simplest model behind it.

A step's work is described by four sums, so that asking costs about a microsecond whatever the batch: new
prefill tokens, the context those attend to, decoding sequences, and the context those read. ``prompts_work``
makes the sums of a list of prompts. A model is of one replica: all the GPUs of one engine together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import msgspec

from tokenmill.decide.fleet.links import DEFAULT_LINK, Link


class StepTimeModel(Protocol):
    """How long one engine's steps take, in milliseconds. Counts may be averages, hence floats."""

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """A step of prompts only. ``context_tokens``: over the new tokens, the sum of tokens each attends to
        (a fresh prompt of n tokens: n * (n + 1) / 2)."""
        ...

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """A step of decodes only. ``context_tokens``: the sum of the sequences' lengths."""
        ...

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """A step that does both."""
        ...

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token over all layers and all of the replica's GPUs, bytes."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose KV the replica's memory holds, weights and working memory taken off."""
        ...

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """The KV of ``tokens`` tokens from one device to another over ``link``. None: over what this model
        has measured, or its own guess."""
        ...


class PromptsWork(NamedTuple):
    """The two sums that describe prompts in a step."""

    new_tokens: float
    context_tokens: float


def prompts_work(prompts: Iterable[tuple[float, float]]) -> PromptsWork:
    """Return the sums of prompts given as (new tokens, cached tokens)."""
    total = context = 0.0
    for new, cached in prompts:
        total += new
        context += new * cached + new * (new + 1) / 2
    return PromptsWork(total, context)


def prefill_batch_ms(times: StepTimeModel, prompts: Iterable[tuple[float, float]]) -> float:
    """Return the time of a step that computes prompts of (new tokens, cached tokens), milliseconds."""
    return times.prefill_ms(*prompts_work(prompts))


def decode_batch_ms(times: StepTimeModel, contexts: Iterable[float]) -> float:
    """Return the time of a decode step of sequences of the given lengths, milliseconds."""
    lengths = list(contexts)
    return times.decode_ms(len(lengths), sum(lengths))


def prompt_ms(
    times: StepTimeModel,
    new_tokens: float,
    cached_tokens: float,
    *,
    chunk_tokens: float,
    sequences: float = 0,
    decode_context: float = 0,
) -> float:
    """Return how long it takes to compute ``new_tokens`` after ``cached_tokens``, in milliseconds.

    In steps of at most ``chunk_tokens``, each of which also decodes ``sequences`` that read
    ``decode_context`` tokens between them. Attention is taken as linear in the context, so that the mean of
    it over the steps does.
    """
    if new_tokens <= 0:
        return 0.0
    full_steps, rest = divmod(new_tokens, chunk_tokens)
    context = cached_tokens + new_tokens / 2
    total_ms = 0.0
    if full_steps:
        total_ms = full_steps * times.mixed_ms(
            chunk_tokens, chunk_tokens * context, sequences, decode_context
        )
    if rest:
        total_ms += times.mixed_ms(rest, rest * context, sequences, decode_context)
    return total_ms


class LinearStepTime(msgspec.Struct, frozen=True, kw_only=True):
    """A step costs a fixed part plus what its tokens, sequences and context add.

    The fixed part stands for reading the weights once, which is why a decode step hardly grows with its
    batch and a prefill step does. Defaults resemble an 8-billion-parameter model in bfloat16 on one H100:
    16 GB of weights over 3.35 TB/s is 4.8 ms; 16 GFLOP a token over about 600 TFLOP/s is 0.027 ms; a
    token's KV (128 KiB) over 3.35 TB/s is 4e-5 ms.
    """

    fixed_ms: float = 5.0
    prefill_token_ms: float = 0.027
    prefill_context_ms: float = 9e-7
    """Attention of one new token to one earlier token: 4 * hidden * layers FLOP."""
    decode_sequence_ms: float = 0.02
    decode_context_ms: float = 4e-5
    kv_bytes_per_token: float = 131072.0
    """8 key-value heads of 128, 32 layers, bfloat16."""
    kv_capacity_tokens: int = 420_000
    """What 16 GB of weights leave of nine tenths of 80 GB."""

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(new_tokens, context_tokens, 0, 0)

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(0, 0, sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """Reading the weights is paid once: the larger of it and the matrix products counts, not both."""
        products_ms = new_tokens * self.prefill_token_ms + sequences * self.decode_sequence_ms
        attention_ms = prefill_context * self.prefill_context_ms + decode_context * self.decode_context_ms
        return max(self.fixed_ms, products_ms) + attention_ms

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """See ``StepTimeModel``."""
        return (link or DEFAULT_LINK).transfer_ms(tokens * self.kv_bytes_per_token)

    def saturating_tokens(self) -> int:
        """Return the smallest prefill batch that saturates the device: a smaller one takes as long."""
        return max(1, round(self.fixed_ms / self.prefill_token_ms))
