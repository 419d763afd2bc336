"""Step times from first principles: work over the rates of the data sheet, at efficiencies fitted to
measurements.

Exists so that any model with a ``config.json`` has times on any GPU of the catalogue, measured or not. It
must not read files, nor know where efficiencies are from (``efficiency``, which a script writes).

For each kind of work in a step: the larger of arithmetic and memory traffic, at what fraction of the peak
that kind reaches. Ranks of a tensor parallel group share the work and then wait for all-reduces. Data
parallel ranks share a step's sequences evenly. Pipeline stages follow one another, so that a step takes as
long as without them.
"""

from __future__ import annotations

import math
from typing import Final

from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.efficiency import Efficiency
from tokenmill.decide.perf.model_shape import BYTES_OF, ModelShape
from tokenmill.decide.perf.table import StepTable
from tokenmill.spec.stage import Parallel

TOKENS: Final = (
    1,
    8,
    16,
    32,
    64,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    8192,
    16384,
    32768,
)
"""Tokens in a step for which tables have a value: densest where devices begin to saturate."""

SEQUENCES: Final = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
CONTEXTS: Final = (1, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

_HALF: Final = 2.0
"""Bytes of an activation."""


class Roofline:
    """The times of one replica, by parts. ``link``: between its GPUs (None: within the catalogue's node)."""

    def __init__(
        self,
        shape: ModelShape,
        gpu: Gpu,
        parallel: Parallel,
        efficiency: Efficiency,
        *,
        kv_dtype: str = "",
        link: Link | None = None,
    ) -> None:
        self._shape = shape
        self._gpu = gpu
        self._parallel = parallel
        self._efficiency = efficiency
        self._kv_bytes = BYTES_OF[kv_dtype or shape.kv_dtype]
        self._gb_per_s = link.gb_per_s if link is not None else gpu.node_gb_per_s

    def dense_ms(self, tokens: float, sampled: float) -> float:
        """Everything but attention, for ``tokens`` of which ``sampled`` give a next token."""
        own = max(1.0, tokens / self._parallel.dp)
        shape, efficiency = self._shape, self._efficiency
        total_ms = shape.layers * efficiency.layer_us * 1e-3
        total_ms += self._products_ms(shape.attention_weights, own, shape.attention_dtype)
        total_ms += self._products_ms(shape.dense_weights, own, shape.dtype)
        total_ms += self._products_ms(
            shape.vocab * shape.hidden, max(1.0, sampled / self._parallel.dp), "bf16"
        )
        total_ms += self._experts_ms(own)
        elementwise = shape.layers * own * shape.hidden * _HALF * efficiency.passes
        total_ms += elementwise / (self._gpu.memory_gb_per_s * 1e6)
        return total_ms + self._sends_ms(own)

    def prefill_attention_ms(self, tokens: float, context: float) -> float:
        """Attention of ``tokens`` new tokens to ``context`` tokens each."""
        own, attention = tokens / self._parallel.dp, self._shape.attention
        per_pair = 2 * attention.heads * (attention.head_dim + attention.value_dim) / self._parallel.tp
        flops = own * per_pair * self._layer_contexts(context)
        rate = self._gpu.tflops_of("bf16") * 1e9 * self._efficiency.prefill_attention
        return flops / rate

    def decode_attention_ms(self, sequences: float, context: float) -> float:
        """Attention of ``sequences`` that each read ``context`` tokens."""
        own, attention = sequences / self._parallel.dp, self._shape.attention
        shares = 1 if attention.latent else min(self._parallel.tp, attention.kv_heads)
        per_token = self._shape.kv_numbers_per_token_layer() * self._kv_bytes / shares
        moved = own * per_token * self._layer_contexts(context)
        return moved / (self._gpu.memory_gb_per_s * 1e6 * self._efficiency.decode_attention)

    def table(self, *, kv_capacity_tokens: int) -> StepTable:
        """Write the times down as a table."""
        return StepTable(
            tokens=TOKENS,
            sequences=SEQUENCES,
            contexts=CONTEXTS,
            dense_ms=tuple(self.dense_ms(n, 1) for n in TOKENS),
            decode_dense_ms=tuple(self.dense_ms(n, n) for n in SEQUENCES),
            prefill_attention_ms=tuple(
                tuple(self.prefill_attention_ms(n, c) for c in CONTEXTS) for n in TOKENS
            ),
            decode_attention_ms=tuple(
                tuple(self.decode_attention_ms(n, c) for c in CONTEXTS) for n in SEQUENCES
            ),
            kv_bytes_per_token=self._shape.kv_bytes_per_token(self._kv_bytes),
            kv_capacity_tokens=kv_capacity_tokens,
        )

    def _layer_contexts(self, context: float) -> float:
        """Tokens read over all layers: those with a window read no more than it."""
        attention = self._shape.attention
        full = self._shape.layers - attention.windowed_layers - attention.stateful_layers
        return full * context + attention.windowed_layers * min(context, attention.window)

    def _products_ms(self, weights: float, tokens: float, dtype: str) -> float:
        """Matrix products of ``tokens`` rows with weights that the tensor parallel ranks share."""
        ranks, efficiency = self._parallel.tp, self._efficiency
        rate = self._rate(dtype)
        moved = weights * BYTES_OF[dtype] / ranks
        # A soft maximum: kernels near the ridge reach neither peak.
        return _soft_max(2 * weights / ranks * tokens / rate, moved / (self._bandwidth * efficiency.weights))

    def _experts_ms(self, own: float) -> float:
        experts, parallel = self._shape.experts, self._parallel
        if experts is None:
            return 0.0
        tokens = own * parallel.dp if parallel.ep > 1 else own
        ranks = parallel.tp * parallel.dp if parallel.ep > 1 else parallel.tp
        dtype, efficiency = self._shape.expert_dtype, self._efficiency
        weights = experts.layers * self._shape.expert_weights
        rate = self._rate(dtype) * efficiency.experts
        # Tokens choose among experts; those that none chose are not read.
        missed = math.pow(1 - experts.chosen / experts.count, max(1.0, tokens * efficiency.routing))
        read = experts.count * (1 - missed)
        moved = weights * read * BYTES_OF[dtype] / ranks
        arithmetic_ms = 2 * weights * experts.chosen * tokens / ranks / rate
        return _soft_max(arithmetic_ms, moved / (self._bandwidth * efficiency.expert_weights))

    def _sends_ms(self, own: float) -> float:
        """All-reduces over the tensor parallel ranks, twice a layer; all-to-alls of experts twice a layer."""
        parallel, efficiency, shape = self._parallel, self._efficiency, self._shape
        row = own * shape.hidden * _HALF
        ranks = parallel.tp * parallel.dp
        speed = self._gb_per_s * 1e6 * efficiency.sends * (2 / max(2, ranks)) ** efficiency.crowding
        total_ms = 0.0
        if parallel.tp > 1:
            passes = 2 * (parallel.tp - 1) / parallel.tp
            total_ms += 2 * shape.layers * (efficiency.send_us * 1e-3 + passes * row / speed)
        if parallel.ep > 1 and shape.experts is not None and parallel.dp > 1:
            sent = row * min(shape.experts.chosen, parallel.dp)
            total_ms += 2 * shape.experts.layers * (efficiency.send_us * 1e-3 + sent / speed)
        hops: float = (parallel.pp - 1) * (efficiency.send_us * 1e-3 + row / speed)
        return total_ms + hops

    def _rate(self, dtype: str) -> float:
        """Operations a millisecond of matrix products with weights in ``dtype``."""
        at = dtype if dtype in self._gpu.tflops else "bf16"
        return self._gpu.tflops_of(at) * 1e9 * self._efficiency.products_of(at)

    @property
    def _bandwidth(self) -> float:
        """Bytes a millisecond."""
        return self._gpu.memory_gb_per_s * 1e6


def _soft_max(first: float, second: float) -> float:
    """Above either by at most 2**(1/4) - 1 = 19 %, where they are equal."""
    return float((first**4 + second**4) ** 0.25)
