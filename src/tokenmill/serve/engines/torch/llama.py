"""Our own forward pass for the Llama family: Llama, Mistral, Qwen2, Qwen3 (dense).

At small batches the time of a step goes into calls, not arithmetic, so the layers are written for few of
them: query, key and value in one product, the residual and the gate fused into products, one rotation for
queries and keys. The arithmetic is that of the ``transformers`` classes; tests hold them equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import embedding, rms_norm

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.torch import rope
from tokenmill.serve.engines.torch.attention import AttentionKind, PagedCache, StepBatch
from tokenmill.serve.engines.torch.checkpoint import Checkpoint, ConfigValue, TextConfig
from tokenmill.serve.engines.torch.linear import Dense, can_pack
from tokenmill.serve.engines.torch.model import ModelShape

_FAMILY: dict[str, dict[str, ConfigValue]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "Qwen2ForCausalLM": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "Qwen3ForCausalLM": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
}
"""What each architecture's configuration means where it leaves something out."""


_TWIN_MOST_BYTES = 2**30
"""Larger checkpoints do not spend memory on second copies of weights."""


class _Layer(NamedTuple):
    """Weights of one layer. ``qkv``: [(heads + 2 kv_heads) * head_dim, hidden]. ``qk_norm``: the norm weights
    of queries and keys, [heads + kv_heads, head_dim]."""

    input_norm: torch.Tensor
    qkv: Dense
    qk_norm: torch.Tensor | None
    kind: AttentionKind
    out: Dense
    mlp_norm: torch.Tensor
    gate: Dense
    up: Dense
    down: Dense


class _Weights(NamedTuple):
    """All weights of a model. ``embedding``: [vocab, hidden]."""

    embedding: torch.Tensor
    layers: list[_Layer]
    norm: torch.Tensor
    head: Dense


def covers(checkpoint: Checkpoint) -> bool:
    """Tell whether this forward pass computes the checkpoint's model."""
    config = checkpoint.config
    return (
        checkpoint.architecture in _FAMILY
        and config.get("hidden_act", "silu") == "silu"
        and config.get("quantization_config") is None
        and not (
            checkpoint.architecture in {"LlamaForCausalLM", "MistralForCausalLM"} and "layer_types" in config
        )
        and rope.covers(rope.rope_parameters(TextConfig(checkpoint.config_path, config, {})))
    )


class LlamaModel:
    """Implements ``PagedModel``."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        config = TextConfig(checkpoint.config_path, checkpoint.config, _FAMILY[checkpoint.architecture])
        self._hidden = config.integer("hidden_size")
        self._heads = config.integer("num_attention_heads")
        self._eps = config.number("rms_norm_eps", 1e-6)
        self.shape = ModelShape(
            layers=config.integer("num_hidden_layers"),
            kv_heads=config.integer("num_key_value_heads", self._heads),
            head_dim=config.integer("head_dim", self._hidden // self._heads),
            vocab_size=config.integer("vocab_size"),
            max_positions=config.integer("max_position_embeddings"),
        )
        if self._heads % self.shape.kv_heads:
            raise ConfigError(
                f"{checkpoint.config_path}: num_attention_heads ({self._heads}) must be a multiple of "
                f"num_key_value_heads ({self.shape.kv_heads})"
            )
        self._dtype = dtype
        frequencies = rope.inverse_frequencies(rope.rope_parameters(config), config, self.shape.head_dim)
        self._frequencies = frequencies.to(device)
        loading = _Loading(checkpoint, config, self.shape, dtype, device)
        self._weights = loading.weights(self._hidden, self._heads)

    def compute(self, batch: StepBatch, cache: PagedCache, rows: torch.Tensor | None) -> torch.Tensor:
        """See ``PagedModel.compute``."""
        weights = self._weights
        x = embedding(batch.ids, weights.embedding)
        cos, sin = self._rotation(batch.positions)
        size, eps = (self._hidden,), self._eps
        for index, layer in enumerate(weights.layers):
            normed = rms_norm(x, size, layer.input_norm, eps)
            attended = self._attend(index, layer, normed, cos, sin, batch, cache)
            x = layer.out.plus(attended, x)
            normed = rms_norm(x, size, layer.mlp_norm, eps)
            x = layer.down.plus(layer.up.times(normed, layer.gate.silu(normed)), x)
        if rows is not None:
            x = x.index_select(0, rows)
        if not len(x):
            return torch.empty(0, self.shape.vocab_size)
        return weights.head(rms_norm(x, size, weights.norm, eps)).float()

    def _attend(
        self,
        index: int,
        layer: _Layer,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        batch: StepBatch,
        cache: PagedCache,
    ) -> torch.Tensor:
        heads, kv_heads, head_dim = self._heads, self.shape.kv_heads, self.shape.head_dim
        qkv = layer.qkv(x).view(-1, heads + 2 * kv_heads, head_dim)
        query_key = qkv[:, : heads + kv_heads]
        if layer.qk_norm is not None:
            query_key = rms_norm(query_key, (head_dim,), None, self._eps) * layer.qk_norm
        turned = torch.addcmul(query_key * cos, query_key.roll(head_dim // 2, -1), sin)
        query, key = turned[:, :heads], turned[:, heads:]
        return cache.attend(index, query, key, qkv[:, heads + kv_heads :], layer.kind, batch)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and signed sines, [tokens, 1, head_dim]: y = x * cos + swap_halves(x) * sin."""
        angles = positions[:, None].float() * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        return (
            torch.cat((cos, cos), -1).unsqueeze(1).to(self._dtype),
            torch.cat((-sin, sin), -1).unsqueeze(1).to(self._dtype),
        )


class _Loading:
    """Reads the weights of one model, layer by layer, so that plain and packed forms of no more than one
    layer are in memory together."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TextConfig,
        shape: ModelShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._shape = shape
        self._device = device
        self._pack = can_pack(dtype, device)
        self._twin = self._pack and checkpoint.size_bytes <= _TWIN_MOST_BYTES
        self._reader = checkpoint.reader(dtype)

    def weights(self, hidden: int, heads: int) -> _Weights:
        """Read them all. Raises ConfigError."""
        vocab_size = self._shape.vocab_size
        table = self._read("model.embed_tokens.weight", vocab_size, hidden)
        tied = self._config.get("tie_word_embeddings") is True
        head = table if tied else self._read("lm_head.weight", vocab_size, hidden)
        return _Weights(
            embedding=table,
            layers=[self._layer(index, hidden, heads) for index in range(self._shape.layers)],
            norm=self._read("model.norm.weight", hidden),
            head=Dense(head, None, pack=self._pack, twin=self._twin),
        )

    def _layer(self, index: int, hidden: int, heads: int) -> _Layer:
        head_dim, kv_heads = self._shape.head_dim, self._shape.kv_heads
        prefix = f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        wide = self._config.integer("intermediate_size")
        norms = None
        if self._checkpoint.has(f"{attention}q_norm.weight"):
            q_norm = self._read(f"{attention}q_norm.weight", head_dim).expand(heads, -1)
            k_norm = self._read(f"{attention}k_norm.weight", head_dim).expand(kv_heads, -1)
            norms = torch.cat((q_norm, k_norm))
        return _Layer(
            input_norm=self._read(f"{prefix}input_layernorm.weight", hidden),
            qkv=self._dense(
                [
                    (f"{attention}q_proj", heads * head_dim),
                    (f"{attention}k_proj", kv_heads * head_dim),
                    (f"{attention}v_proj", kv_heads * head_dim),
                ],
                hidden,
            ),
            qk_norm=norms,
            kind=AttentionKind(scale=head_dim**-0.5, window=self._window(index)),
            out=self._dense([(f"{attention}o_proj", hidden)], heads * head_dim),
            mlp_norm=self._read(f"{prefix}post_attention_layernorm.weight", hidden),
            gate=self._dense([(f"{mlp}gate_proj", wide)], hidden),
            up=self._dense([(f"{mlp}up_proj", wide)], hidden),
            down=self._dense([(f"{mlp}down_proj", hidden)], wide),
        )

    def _window(self, index: int) -> int | None:
        """The sliding window of one layer, in tokens."""
        config = self._config
        if config.get("sliding_window") is None:
            return None
        if self._checkpoint.architecture == "MistralForCausalLM":
            return config.integer("sliding_window")
        if not config.get("use_sliding_window"):
            return None
        layer_types = config.get("layer_types")
        if isinstance(layer_types, list) and index < len(layer_types):
            slides = layer_types[index] == "sliding_attention"
        else:
            slides = index >= config.number("max_window_layers", 28)
        return config.integer("sliding_window") if slides else None

    def _dense(self, parts: list[tuple[str, int]], inputs: int) -> Dense:
        """Stack projections of one input into one. Biases are taken where the checkpoint has them."""
        weights = [self._read(f"{name}.weight", outputs, inputs) for name, outputs in parts]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = None
        if any(self._checkpoint.has(f"{name}.bias") for name, _ in parts):
            bias = torch.cat(
                [
                    self._read(f"{name}.bias", outputs)
                    if self._checkpoint.has(f"{name}.bias")
                    else weight.new_zeros(outputs)
                    for name, outputs in parts
                ]
            )
        return Dense(weight, bias, pack=self._pack, twin=self._twin)

    def _read(self, name: str, *shape: int) -> torch.Tensor:
        return self._reader(name, shape).to(self._device)
