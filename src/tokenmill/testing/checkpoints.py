"""Random checkpoints in Hugging Face format, whole enough to be served: weights, tokenizer, chat template.

An ordinarily initialised small model hardly looks at early tokens, so that a test of a moved or shared KV
cache would pass with the wrong cache. The weights here make attention sharp and let it dominate the residual
stream: changing one early token changes the continuation. Needs the extra ``torch``.
"""

from __future__ import annotations

import itertools
import json
import math
import string
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Architecture = Literal["llama", "qwen3", "mistral", "gpt_oss"]
Size = Literal["tiny", "5m", "16m", "80m"]

SPECIALS = ("<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2

TINY_VOCAB_SIZE = len(SPECIALS) + 256
_VOCAB_SIZE: dict[str, int] = {"tiny": TINY_VOCAB_SIZE, "5m": 4096, "16m": 4096, "80m": 4096}

_SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    },
    "5m": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    },
    "16m": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    },
    "80m": {
        "hidden_size": 640,
        "intermediate_size": 1792,
        "num_hidden_layers": 16,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    },
}

_TRAINED_TOKENS = 4096
"""Context length of gpt-oss before its positions are stretched."""

_CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_checkpoint(
    folder: Path,
    architecture: Architecture = "llama",
    *,
    seed: int = 0,
    size: Size = "tiny",
    dtype: Literal["float32", "bfloat16"] = "float32",
    sharded: bool = False,
    sliding_window: int = 0,
) -> Path:
    """Write a checkpoint into ``folder`` and return it.

    "tiny" has about 0.2 M parameters and a byte vocabulary; the others about as many as their names say.
    Equal arguments give equal weights. ``sharded``: several safetensors files and an index.
    ``sliding_window``: tokens that the layers with one see, where the architecture has it; 0: a few.
    """
    vocab_size = _VOCAB_SIZE[size]
    numbers: dict[str, Any] = {
        **_SIZES[size],
        "vocab_size": vocab_size,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "tie_word_embeddings": False,
    }
    model = _model(architecture, numbers, sliding_window)
    _fill(model, seed)
    generation: Any = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = BOS_ID, EOS_ID, PAD_ID
    folder.mkdir(parents=True, exist_ok=True)
    total_bytes = sum(p.numel() for p in model.parameters()) * (4 if dtype == "float32" else 2)
    logging: Any = transformers.logging
    logging.disable_progress_bar()
    model.to(getattr(torch, dtype)).save_pretrained(
        folder, max_shard_size=total_bytes // 3 if sharded else "50GB"
    )
    _write_tokenizer(folder, vocab_size, numbers["max_position_embeddings"])
    return folder


def _model(architecture: Architecture, numbers: dict[str, Any], window: int) -> Any:
    if architecture == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**numbers))
    if architecture == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**numbers))
    if architecture == "mistral":
        config = transformers.MistralConfig(**numbers, sliding_window=window or 24)
        return transformers.MistralForCausalLM(config)
    experts: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
    experts["sliding_window"] = window or 16
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 150000.0}
    if numbers["max_position_embeddings"] > _TRAINED_TOKENS:  # as the models of that name have it
        rope |= {"rope_type": "yarn", "factor": numbers["max_position_embeddings"] / _TRAINED_TOKENS}
        rope |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
        rope |= {"original_max_position_embeddings": _TRAINED_TOKENS}
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**numbers, **experts, rope_parameters=rope)
    )


def _fill(model: Any, seed: int) -> None:
    """Set the weights; the scales are what makes early tokens matter (see the module's first lines)."""
    generator = torch.Generator().manual_seed(seed)
    hidden: int = model.config.hidden_size
    width = math.sqrt(256 / hidden)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.uniform_(-2.0, 0.0, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(2.4)
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _deviation(name, width, hidden), generator=generator)


def _deviation(name: str, width: float, hidden: int) -> float:
    if "embed" in name:
        return 0.1
    if "lm_head" in name:
        return 2.0 / math.sqrt(hidden)
    if "q_proj" in name or "k_proj" in name:
        return 0.15 * width
    if "v_proj" in name or "o_proj" in name:
        return 0.1 * width
    return 0.05


def _write_tokenizer(folder: Path, vocab_size: int, max_tokens: int) -> None:
    """Bytes, special tokens, and as many pairs of letters as the vocabulary has room for."""
    tokens = list(SPECIALS) + sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = string.ascii_letters + string.digits
    pairs = list(itertools.islice(itertools.product(letters, letters), vocab_size - len(tokens)))
    vocabulary = {token: index for index, token in enumerate(tokens + ["".join(pair) for pair in pairs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
