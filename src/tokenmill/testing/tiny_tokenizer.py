"""A tokenizer of 260 tokens, one a byte and four more, for tests and benchmarks without a model."""

from __future__ import annotations

import json
from pathlib import Path

EOS = "<|end|>"
EOS_ID = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = (EOS, "<|user|>", "<|assistant|>", "<|system|>")


def write_tiny_tokenizer(folder: Path, *, chat_template: bool = True) -> Path:
    """Write the tokenizer's files to ``folder`` and return it. A text's ids are its UTF-8 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {"eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template:
        config["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def _tokenizer() -> dict[str, object]:
    """Return what tokenizer.json says."""
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    added = [
        {
            "id": 256 + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, content in enumerate(_SPECIAL)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in byte-level vocabularies: itself where it can be
    shown, else the next one from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]
