"""What of a model decides step times and memory: layers, heads, experts, and the width of its numbers.

Exists so that any decoder-only transformer can be sized from its ``config.json`` alone. It must not read
files, nor know devices. Counts are weights (numbers), sizes are bytes; norms and biases, well below 1 %,
are left out.
"""

from __future__ import annotations

import msgspec

from tokenmill.spec.stage import Parallel

BYTES_OF = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625, "int4": 0.53125}
"""Bytes a number takes in memory, scales of its block included (fp4: one byte for 16 numbers, int4: four
bytes for 128)."""


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """``latent``: numbers a token and layer keeps in the cache, with multi-head latent attention; 0: keys and
    values of all heads are kept. ``window``: how far layers with a sliding window look back, in tokens;
    ``windowed_layers``: how many of them. ``stateful_layers``: layers with a recurrent state in place of a
    cache. ``weights_per_layer``: numbers in its projections."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    weights_per_layer: int
    latent: int = 0
    window: int = 0
    windowed_layers: int = 0
    stateful_layers: int = 0


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts. ``chosen`` of ``count`` compute each token, ``shared`` ones (counted as of
    the routed ones' size) always. ``width``: of one expert's inner layer. ``layers``: how many layers have
    them."""

    count: int
    chosen: int
    width: int
    layers: int
    shared: float = 0.0


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``gated``: its feed-forward layers have three matrices, not two. ``dtype`` and
    ``expert_dtype`` are of the weights of dense layers and of experts; ``kv_dtype``: of the cache as the
    checkpoint has it; ``attention_dtype``: of the attention's projections, which some checkpoints leave
    wide."""

    name: str
    architecture: str
    layers: int
    hidden: int
    vocab: int
    attention: Attention
    width: int
    gated: bool = True
    experts: Experts | None = None
    tied: bool = False
    dtype: str = "bf16"
    attention_dtype: str = "bf16"
    expert_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    max_model_len: int = 0

    @property
    def dense_layers(self) -> int:
        """Layers whose feed-forward part is not made of experts."""
        return self.layers - (self.experts.layers if self.experts else 0)

    @property
    def embedding_weights(self) -> int:
        """Numbers in the embedding and in the head; once, where they are one."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def attention_weights(self) -> int:
        """Numbers in all attention projections."""
        return self.layers * self.attention.weights_per_layer

    @property
    def dense_weights(self) -> int:
        """Numbers in the dense feed-forward layers, and in experts that every token goes through."""
        shared = self.experts.layers * self.experts.shared * self.expert_weights if self.experts else 0
        return int(self.dense_layers * self._matrices * self.hidden * self.width + shared)

    @property
    def expert_weights(self) -> int:
        """Numbers in one expert of one layer; 0 without experts."""
        return self._matrices * self.hidden * self.experts.width if self.experts else 0

    @property
    def routed_weights(self) -> int:
        """Numbers in all routed experts of all layers."""
        return self.experts.layers * self.experts.count * self.expert_weights if self.experts else 0

    @property
    def parameters(self) -> int:
        """Numbers in the whole model."""
        return self.embedding_weights + self.attention_weights + self.dense_weights + self.routed_weights

    @property
    def active_parameters(self) -> int:
        """Numbers that one token is multiplied with, the head included."""
        chosen = self.experts.layers * self.experts.chosen * self.expert_weights if self.experts else 0
        return self.vocab * self.hidden + self.attention_weights + self.dense_weights + chosen

    @property
    def weight_bytes(self) -> float:
        """All weights in memory. Embedding and head are kept in bfloat16, as quantized checkpoints do."""
        return self.weight_bytes_per_gpu(Parallel())

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    def weight_bytes_per_gpu(self, parallel: Parallel) -> float:
        """Return the weights that one GPU of a replica holds.

        Data parallel ranks each hold all but the experts, which are spread over all ranks when ``ep`` is
        above 1, and over the tensor parallel ranks alone otherwise.
        """
        dense = self.embedding_weights * BYTES_OF["bf16"]
        dense += self.attention_weights * BYTES_OF[self.attention_dtype]
        dense += self.dense_weights * BYTES_OF[self.dtype]
        routed = self.routed_weights * BYTES_OF[self.expert_dtype]
        spread = parallel.tp * parallel.dp if parallel.ep > 1 else parallel.tp
        return (dense / parallel.tp + routed / spread) / parallel.pp

    def activations_per_token(self, tp: int) -> float:
        """Return how many numbers live at once for a token of a step, on one GPU."""
        inner = max(self.width if self.dense_layers else 0, self._expert_inner())
        heads = (self.attention.heads + 2 * self.attention.kv_heads) * self.attention.head_dim
        return 3 * self.hidden + (2 * inner + heads) / tp

    def _expert_inner(self) -> float:
        return (self.experts.chosen + self.experts.shared) * self.experts.width if self.experts else 0

    def kv_numbers_per_token_layer(self) -> int:
        """Return numbers that a token keeps in one layer's cache."""
        attention = self.attention
        return attention.latent or attention.kv_heads * (attention.head_dim + attention.value_dim)

    @property
    def cached_layers(self) -> int:
        """Layers whose cache grows with the context: those without a window or a recurrent state, of which
        engines keep a bounded number of tokens beside. Where all have a window, all are counted."""
        growing = self.layers - self.attention.stateful_layers
        return growing - self.attention.windowed_layers or growing

    def kv_bytes_per_token(self, kv_dtype_bytes: float = 0.0) -> float:
        """Return the cache of one token over all layers whose cache grows, bytes. ``kv_dtype_bytes``: of one
        number (0: as the checkpoint has it)."""
        width = kv_dtype_bytes or BYTES_OF[self.kv_dtype]
        return self.cached_layers * self.kv_numbers_per_token_layer() * width

    def kv_bytes_per_token_per_gpu(self, parallel: Parallel, kv_dtype_bytes: float = 0.0) -> float:
        """Return what one GPU keeps of a token. Heads are dealt out to the tensor parallel ranks; with fewer
        heads than ranks, or with a latent cache, ranks hold copies."""
        shares = 1 if self.attention.latent else min(parallel.tp, self.attention.kv_heads)
        return self.kv_bytes_per_token(kv_dtype_bytes) / shares / parallel.pp
