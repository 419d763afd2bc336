"""The seam for step times, and the simplest model behind it.

A step's work is described by four sums, so that asking costs well under a microsecond whatever the
batch: new prefill tokens, the context those attend to, decoding sequences, and the context those read.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class StepTimeModel(Protocol):
    """How long one engine's steps take, in milliseconds."""

    def prefill_ms(self, new_tokens: int, context_tokens: int) -> float:
        """A step of prompts only. ``context_tokens``: over the new tokens, the sum of tokens each attends to
        (a fresh prompt of n tokens: n * (n + 1) / 2)."""
        ...

    def decode_ms(self, sequences: int, context_tokens: int) -> float:
        """A step of decodes only. ``context_tokens``: the sum of the sequences' lengths."""
        ...

    def mixed_ms(self, new_tokens: int, prefill_context: int, sequences: int, decode_context: int) -> float:
        """A step that does both."""
        ...


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

    def prefill_ms(self, new_tokens: int, context_tokens: int) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(new_tokens, context_tokens, 0, 0)

    def decode_ms(self, sequences: int, context_tokens: int) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(0, 0, sequences, context_tokens)

    def mixed_ms(self, new_tokens: int, prefill_context: int, sequences: int, decode_context: int) -> float:
        """Reading the weights is paid once: the larger of it and the matrix products counts, not both."""
        products_ms = new_tokens * self.prefill_token_ms + sequences * self.decode_sequence_ms
        attention_ms = prefill_context * self.prefill_context_ms + decode_context * self.decode_context_ms
        return max(self.fixed_ms, products_ms) + attention_ms

    def saturating_tokens(self) -> int:
        """Return the smallest prefill batch that saturates the device: a smaller one takes as long."""
        return max(1, round(self.fixed_ms / self.prefill_token_ms))
