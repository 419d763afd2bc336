# ruff: noqa: SIM905  (a list of names reads best as running text)
"""Write a folder in the usual Hugging Face form: bfloat16 weights, configuration, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .tokenizer import BOS, CHAT_TEMPLATE, EOS, PAD, SPECIAL, VOCABULARY

CONTEXT = 4096
ROPE_THETA = 100_000.0
CONFIG_FIELDS = """
architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers
num_attention_heads num_key_value_heads head_dim hidden_act max_position_embeddings
initializer_range rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id
tie_word_embeddings rope_parameters attention_bias attention_dropout mlp_bias
""".split()


def model_config() -> LlamaConfig:
    """Say how the model is built.

    Heads are 64 wide and the rotary base is high, so that enough dimensions turn slowly: they are
    what a head matches words by across a thousand tokens.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(folder: Path, weights: dict[str, Tensor], tokenizer: Tokenizer, sharpness: float = 1.0) -> None:
    """Write the model's folder.

    `sharpness` multiplies the logits, by way of the last norm. A tiny model leaves a little
    probability on wrong words everywhere; a value above 1 keeps sampling at temperature 1 on track.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor * sharpness if name == "model.norm.weight" else tensor).to(torch.bfloat16).contiguous()
        for name, tensor in weights.items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    full = model_config().to_dict()
    config = {name: full[name] for name in CONFIG_FIELDS if name in full}
    _write_json(
        folder / "config.json",
        config | {"rope_theta": ROPE_THETA, "dtype": "bfloat16", "torch_dtype": "bfloat16"},
    )
    ends = {name: SPECIAL.index(token) for name, token in
            (("bos_token_id", BOS), ("eos_token_id", EOS), ("pad_token_id", PAD))}  # fmt: skip
    _write_json(folder / "generation_config.json", {"do_sample": False, **ends})
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "additional_special_tokens": SPECIAL[3:],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read an exported folder's weights back, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
