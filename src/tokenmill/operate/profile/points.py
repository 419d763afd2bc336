"""Which work a sweep asks an engine for. Plain functions; they run nothing.

Prefill: sizes a factor of about 1.5 apart, so that the knee is seen, each as one prompt and as four, which
tells attention from the rest. Decode: batches in powers of two at a few contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

DECODE_STEPS: Final = 24
"""Steps of a decode point: enough for a median, few against its context."""

_LEAST_TOKENS: Final = 16
_LEAST_CONTEXT: Final = 32
_PARTS: Final = 4


class Point(NamedTuple):
    """Some equal requests at once. ``output_tokens``: 1 for a point about prefill."""

    prompts: int
    prompt_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens in the KV cache at the end."""
        return self.prompts * (self.prompt_tokens + self.output_tokens)


class Limits(NamedTuple):
    """How far a sweep goes: tokens of one prefill batch, sequences of one decode batch, tokens of one
    sequence, and tokens of all sequences together (what the KV cache holds)."""

    prefill_tokens: int
    sequences: int
    context_tokens: int
    kv_tokens: int


def prefill_points(limits: Limits) -> Iterator[Point]:
    """Yield points of prompts alone, the smallest first."""
    for tokens in _sizes(_LEAST_TOKENS, limits.prefill_tokens):
        for prompts in (1, _PARTS):
            point = Point(prompts, tokens // prompts, 1)
            longest = point.prompt_tokens + 1 <= limits.context_tokens
            if longest and point.tokens <= limits.kv_tokens and prompts <= limits.sequences:
                yield point


def decode_points(limits: Limits) -> Iterator[Point]:
    """Yield points that decode, small batches first, and for each the short contexts first."""
    batch = 1
    while batch <= limits.sequences:
        context = _LEAST_CONTEXT
        while context + DECODE_STEPS <= limits.context_tokens:
            point = Point(batch, context, DECODE_STEPS)
            if point.tokens > limits.kv_tokens:
                break
            yield point
            context *= 4
        batch *= 2


def _sizes(least: int, most: int) -> Iterator[int]:
    """Powers of two and, between them, one and a half times those, up to ``most``, which is the last."""
    size = least
    while size < most:
        yield size
        if size * 3 // 2 < most:
            yield size * 3 // 2
        size *= 2
    if most >= least:
        yield most
