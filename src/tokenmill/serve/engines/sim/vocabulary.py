"""Which token ids a simulated engine may say: all of a model's tokenizer but the special ones."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError


class _AddedToken(msgspec.Struct):
    id: int
    content: str = ""


class _Model(msgspec.Struct):
    vocab: msgspec.Raw = msgspec.Raw(b"{}")


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []


class _ModelConfig(msgspec.Struct):
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    eos_token_id: int | list[int] | None = None


class Vocabulary(msgspec.Struct, frozen=True):
    """``ordinary``: ids that may be said. ``size``: one more than the largest id."""

    size: int
    ordinary: list[int]
    eos_token_ids: list[int]
    max_model_len: int


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read what a simulated engine needs from a model folder; only ``tokenizer.json`` must be there.

    Raises ConfigError that names the file.
    """
    tokenizer_file = folder / "tokenizer.json"
    try:
        tokenizer = msgspec.json.decode(tokenizer_file.read_bytes(), type=_TokenizerFile)
        config_file = folder / "config.json"
        raw = config_file.read_bytes() if config_file.exists() else b"{}"
        config = msgspec.json.decode(raw, type=_ModelConfig)
        ids = _ids(tokenizer.model.vocab)
    except FileNotFoundError:
        raise ConfigError(
            f"{tokenizer_file}: not found; the sim engine needs the model's tokenizer.json", param="model"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{folder}: cannot read the tokenizer: {error}", param="model") from error
    special = {token.id for token in tokenizer.added_tokens}
    size = max(max(ids, default=-1) + 1, max(special, default=-1) + 1)
    ordinary = sorted(i for i in ids if i not in special)
    if not ordinary:
        raise ConfigError(f"{tokenizer_file}: the vocabulary is empty", param="model")
    eos = config.eos_token_id
    eos_ids = [eos] if isinstance(eos, int) else list(eos or [])
    return Vocabulary(size, ordinary, eos_ids, config.max_position_embeddings or 131_072)


def _ids(vocab: msgspec.Raw) -> list[int]:
    """Token ids of a tokenizer's vocabulary: a map of token to id, or (Unigram) a list of [token, score]."""
    data = bytes(vocab)
    if data.lstrip().startswith(b"["):
        return list(range(len(msgspec.json.decode(data, type=list[msgspec.Raw]))))
    return list(msgspec.json.decode(data, type=dict[str, int]).values())
