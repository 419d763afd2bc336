"""The seam for step times, and the simplest model behind it.

A step's work is described by four sums, so that asking costs well under a microsecond whatever the
batch: new prefill tokens, the context those attend to, decoding sequences, and the context those read.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


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

    def saturating_tokens(self) -> int:
        """Return the smallest prefill batch that saturates the device: a smaller one takes as long."""
        return max(1, round(self.fixed_ms / self.prefill_token_ms))
