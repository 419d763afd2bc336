"""Worker -> router: how long its engine's steps take, where that was measured before. Numbers only.

Also what database, roofline and profile files write their times down as (``decide.perf.table`` reads it).
"""

from __future__ import annotations

from itertools import pairwise

import msgspec


class StepTable(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers, in milliseconds, at knots that rise strictly (two at least on each axis).

    ``dense_ms[i]``: at ``tokens[i]`` in the step. ``decode_dense_ms[i]``: at ``sequences[i]`` and nothing
    else. ``prefill_attention_ms[i][j]``: ``tokens[i]`` new tokens that attend to ``contexts[j]`` each, in the
    mean. ``decode_attention_ms[i][j]``: ``sequences[i]`` of ``contexts[j]`` tokens each, in the mean.
    ``kv_bytes_per_token`` and ``kv_capacity_tokens``: 0 where not known.
    """

    tokens: tuple[float, ...]
    sequences: tuple[float, ...]
    contexts: tuple[float, ...]
    dense_ms: tuple[float, ...]
    decode_dense_ms: tuple[float, ...]
    prefill_attention_ms: tuple[tuple[float, ...], ...]
    decode_attention_ms: tuple[tuple[float, ...], ...]
    kv_bytes_per_token: float
    kv_capacity_tokens: int

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences", "contexts"):
            knots = getattr(self, name)
            if len(knots) < 2 or any(a >= b for a, b in pairwise(knots)):
                raise ValueError(f"{name}: needs two or more knots that rise, not {knots}")
        rows = (len(self.tokens), len(self.sequences))
        sizes = (len(self.dense_ms), len(self.decode_dense_ms))
        attention = (len(self.prefill_attention_ms), len(self.decode_attention_ms))
        columns = {len(row) for row in (*self.prefill_attention_ms, *self.decode_attention_ms)}
        if sizes != rows or attention != rows or columns != {len(self.contexts)}:
            raise ValueError("step table: the numbers of values and of knots differ")
