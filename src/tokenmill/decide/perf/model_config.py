"""From a checkpoint's ``config.json`` to its shape.

Exists because every tool sizes models and the files name the same things in many ways. It must not read
files: it is given what they hold. A model whose fields say nothing else is sized as the usual decoder,
which is right for most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenmill.decide.perf.model_shape import Attention, Experts, ModelShape
from tokenmill.errors import ConfigError

_STATEFUL: Final = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv"})
_WINDOWED: Final = frozenset({"sliding_attention", "local_attention"})
_PER_LAYER: Final = ("block_configs", "hybrid_override_pattern", "layers_block_type")
"""Fields of models whose layers cannot be told from their number."""
_UNGATED: Final = frozenset(
    {"gpt2", "opt", "gpt_neox", "phi", "falcon", "bloom", "gptj", "starcoder2", "nemotron"}
)


class _Fields:
    """A config whose fields go by several names."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._config = config
        self._name = name

    def whole(self, *names: str, default: int | None = None) -> int:
        """Return the first of ``names`` that is there. Raises ConfigError without a default."""
        for name in names:
            value = self._config.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return int(value)
            if isinstance(value, list) and value and isinstance(value[0], int):
                return max(int(each) for each in value)
        if default is None:
            message = f"{self._name}: config.json has no {names[0]}; its times and memory cannot be told"
            raise ConfigError(message, param="model")
        return default

    def get(self, name: str) -> Any:
        """Return a field as it is, or None."""
        return self._config.get(name)


def shape_of(
    name: str, config: Mapping[str, Any], quantization: Mapping[str, Any] | None = None
) -> ModelShape:
    """Return the shape of the model ``name`` whose ``config.json`` holds ``config``.

    ``quantization``: what ``hf_quant_config.json`` holds, where a checkpoint has that. Raises ConfigError
    naming the field that is missing.
    """
    text = config.get("text_config")
    inner = {**config, **text} if isinstance(text, Mapping) else config
    fields = _Fields(inner, name)
    for mark in _PER_LAYER:
        if fields.get(mark):
            message = (
                f"{name}: its layers differ one by one ({mark}); such models cannot be sized from config.json"
            )
            raise ConfigError(message, param="model")
    layers = fields.whole("num_hidden_layers", "n_layer", "num_layers")
    hidden = fields.whole("hidden_size", "n_embd", "d_model")
    experts = _experts(fields, layers)
    given = (
        config.get("quantization_config") or (quantization or {}).get("quantization") or quantization or {}
    )
    dtypes = _dtypes(given, inner, experts=experts is not None)
    architectures = config.get("architectures") or [""]
    return ModelShape(
        name=name,
        architecture=str(architectures[0]),
        layers=layers,
        hidden=hidden,
        vocab=fields.whole("vocab_size"),
        attention=_attention(fields, layers, hidden),
        width=fields.whole("intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden),
        gated=str(fields.get("model_type")) not in _UNGATED,
        experts=experts,
        tied=bool(fields.get("tie_word_embeddings")),
        max_model_len=fields.whole("max_position_embeddings", "n_positions", "max_seq_len", default=0),
        **dtypes,
    )


def _attention(fields: _Fields, layers: int, hidden: int) -> Attention:
    heads = fields.whole("num_attention_heads", "n_head")
    windowed, stateful, window = _layer_kinds(fields, layers)
    kinds = {"windowed_layers": windowed, "stateful_layers": stateful, "window": window}
    latent_rank = fields.whole("kv_lora_rank", default=0)
    if latent_rank:
        return _latent_attention(fields, hidden, heads, latent_rank, kinds)
    kv_heads = fields.whole("num_key_value_heads", "num_kv_heads", default=heads)
    head_dim = fields.whole("head_dim", default=hidden // heads)
    value_dim = fields.whole("v_head_dim", default=head_dim)
    query = heads * head_dim * (2 if fields.get("attn_output_gate") else 1)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        weights_per_layer=hidden * (query + kv_heads * (head_dim + value_dim) + heads * value_dim),
        **kinds,
    )


def _latent_attention(
    fields: _Fields, hidden: int, heads: int, latent_rank: int, kinds: Mapping[str, int]
) -> Attention:
    rope = fields.whole("qk_rope_head_dim", default=0)
    nope = fields.whole("qk_nope_head_dim", default=128)
    value = fields.whole("v_head_dim", default=nope)
    query_rank = fields.whole("q_lora_rank", default=0)
    head = nope + rope
    query = query_rank * (hidden + heads * head) if query_rank else hidden * heads * head
    down, up = hidden * (latent_rank + rope), latent_rank * heads * (nope + value)
    return Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head,
        value_dim=value,
        latent=latent_rank + rope,
        weights_per_layer=query + down + up + heads * value * hidden,
        **kinds,
    )


def _layer_kinds(fields: _Fields, layers: int) -> tuple[int, int, int]:
    """Layers with a window, layers with a recurrent state, and the window in tokens."""
    window = fields.whole("sliding_window", default=0)
    kinds = fields.get("layer_types")
    if isinstance(kinds, list) and kinds:
        windowed = sum(kind in _WINDOWED for kind in kinds) if window else 0
        stateful = sum(kind in _STATEFUL for kind in kinds)
        return windowed, min(stateful, layers - 1), window
    if window and fields.get("use_sliding_window") is not False:
        return layers, 0, window
    return 0, 0, 0


def _experts(fields: _Fields, layers: int) -> Experts | None:
    count = fields.whole("num_local_experts", "n_routed_experts", "num_experts", default=0)
    if count <= 1:
        return None
    width = fields.whole("moe_intermediate_size", "intermediate_size")
    shared_width = fields.whole("shared_expert_intermediate_size", default=0)
    shared = shared_width / width if shared_width else fields.whole("n_shared_experts", default=0)
    step = fields.whole("moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step", default=1)
    first = fields.whole("first_k_dense_replace", default=0)
    return Experts(
        count=count,
        chosen=fields.whole("num_experts_per_tok", "experts_per_token", "moe_topk", "top_k_experts"),
        width=width,
        layers=(layers - first) // max(1, step),
        shared=float(shared),
    )


def _dtypes(given: Mapping[str, Any], config: Mapping[str, Any], *, experts: bool) -> dict[str, str]:
    wide = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    plain = "fp32" if wide == "float32" else "bf16"
    quantized = _weight_dtype(given)
    cache = "fp8" if "fp8" in _words(given, "kv_cache_quant_algo", "kv_cache_scheme") else "bf16"
    kept_wide = str(
        given.get("modules_to_not_convert") or given.get("exclude_modules") or given.get("ignore") or ""
    )
    attention_wide = "self_attn" in kept_wide and "self_attn.indexer" not in kept_wide
    only_experts = experts and attention_wide
    return {
        "dtype": plain if only_experts else quantized or plain,
        "attention_dtype": plain if attention_wide else quantized or plain,
        "expert_dtype": quantized or plain,
        "kv_dtype": cache if plain == "bf16" else plain,
    }


def _words(given: Mapping[str, Any], *names: str) -> str:
    return " ".join(str(given.get(name) or "") for name in names).lower()


def _weight_dtype(given: Mapping[str, Any]) -> str:
    """The narrow format of the weights, or "" where they are not quantized."""
    words = _words(given, "quant_method", "quant_algo", "fmt", "format")
    groups = given.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        weights = (next(iter(groups.values())) or {}).get("weights") or {}
        bits = weights.get("num_bits")
        kind = "fp" if weights.get("type") == "float" else "int"
        return f"{kind}{bits}" if bits in {4, 8} else ""
    for mark, dtype in _MARKS:
        if mark in words:
            return dtype
    bits = given.get("bits")
    return f"int{bits}" if bits in {4, 8} else ""


_MARKS: Final = (
    ("fp4", "fp4"),
    ("fp8", "fp8"),
    ("e4m3", "fp8"),
    ("awq", "int4"),
    ("w4a16", "int4"),
    ("int8", "int8"),
    ("mixed_precision", "fp4"),
)
"""What a quantization's name has in it, the first that fits; ModelOpt's mixed precision keeps experts in
NVFP4."""
