"""The shapes of models that people plan with before they have the files: facts from their ``config.json``.

Exists so that ``plan`` and ``simulate`` need neither a download nor the database. Files on disk go first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_LLAMA: Final = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
_LLAMA3: Final = {**_LLAMA, "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_LLAMA3_8B: Final = {
    **_LLAMA3, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32 }  # fmt: skip
_LLAMA3_70B: Final = {
    **_LLAMA3, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64 }  # fmt: skip
_LLAMA3_405B: Final = {
    **_LLAMA3, "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248,
    "num_attention_heads": 128 }  # fmt: skip
_QWEN25: Final = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16"}
_QWEN3: Final = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16", "head_dim": 128,
    "vocab_size": 151936, "num_key_value_heads": 8, "max_position_embeddings": 40960,
}  # fmt: skip
_QWEN3_MOE: Final = {
    **_QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip
_GPT_OSS: Final = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64,
    "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "num_experts_per_tok": 4,
    "vocab_size": 201088, "sliding_window": 128, "max_position_embeddings": 131072,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}  # fmt: skip
_FP8: Final = {"quantization_config": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
_NVFP4: Final = {"quantization_config": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
_FP8_WEIGHTS: Final = {"quantization_config": {"quant_method": "fp8"}}
_FP8_DYNAMIC: Final = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
        "ignore": ["lm_head"],
    }
}


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"] * (layers // 2)
    return {**_GPT_OSS, "num_hidden_layers": layers, "num_local_experts": experts, "layer_types": kinds}


CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3_8B,
        "meta-llama/Llama-3.1-70B-Instruct": _LLAMA3_70B,
        "meta-llama/Llama-3.1-405B-Instruct": _LLAMA3_405B,
        "meta-llama/Llama-3.3-70B-Instruct": _LLAMA3_70B,
        "nvidia/Llama-3.1-8B-Instruct-FP8": {**_LLAMA3_8B, **_FP8},
        "nvidia/Llama-3.1-70B-Instruct-FP8": {**_LLAMA3_70B, **_FP8},
        "nvidia/Llama-3.1-405B-Instruct-FP8": {**_LLAMA3_405B, **_FP8},
        "nvidia/Llama-3.3-70B-Instruct-FP8": {**_LLAMA3_70B, **_FP8},
        "nvidia/Llama-3.3-70B-Instruct-NVFP4": {**_LLAMA3_70B, **_NVFP4},
        "nvidia/Llama-3.3-70B-Instruct-FP4": {**_LLAMA3_70B, **_NVFP4},
        "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": {**_LLAMA3_70B, **_FP8_DYNAMIC},
        "RedHatAI/DeepSeek-R1-Distill-Llama-70B-FP8-dynamic": {**_LLAMA3_70B, **_FP8_DYNAMIC},
        "mistralai/Mistral-7B-Instruct-v0.3": {
            **_LLAMA, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
            "max_position_embeddings": 32768,
        },
        "mistralai/Mixtral-8x7B-v0.1": {
            **_LLAMA, "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
            "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
            "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
            "max_position_embeddings": 32768,
        },
        "Qwen/Qwen2.5-7B-Instruct": {
            **_QWEN25, "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
            "max_position_embeddings": 32768,
        },
        "Qwen/Qwen2.5-72B-Instruct": {
            **_QWEN25, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 29568,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
            "max_position_embeddings": 32768,
        },
        "Qwen/Qwen3-0.6B": {
            **_QWEN3, "num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072,
            "num_attention_heads": 16, "tie_word_embeddings": True,
        },
        "Qwen/Qwen3-8B": {
            **_QWEN3, "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288,
            "num_attention_heads": 32,
        },
        "Qwen/Qwen3-32B": {
            **_QWEN3, "num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 25600,
            "num_attention_heads": 64,
        },
        "Qwen/Qwen3-32B-FP8": {
            **_QWEN3, "num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 25600,
            "num_attention_heads": 64, **_FP8_WEIGHTS,
        },
        "Qwen/Qwen3-30B-A3B": {
            **_QWEN3_MOE, "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144,
            "moe_intermediate_size": 768, "num_attention_heads": 32,
        },
        "Qwen/Qwen3-235B-A22B": {
            **_QWEN3_MOE, "num_hidden_layers": 94, "hidden_size": 4096, "intermediate_size": 12288,
            "moe_intermediate_size": 1536, "num_attention_heads": 64,
        },
        "openai/gpt-oss-20b": _gpt_oss(24, 32),
        "openai/gpt-oss-120b": _gpt_oss(36, 128),
        "deepseek-ai/DeepSeek-V3": {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype":
            "bfloat16", "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_attention_heads": 128, "num_key_value_heads": 128,
            "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280,
            "max_position_embeddings": 163840, **_FP8_WEIGHTS,
        },
    }
)  # fmt: skip
"""By hub id. ``rope`` and the like are left out: they cost no time."""
