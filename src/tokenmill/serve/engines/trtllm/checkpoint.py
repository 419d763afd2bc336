"""What a checkpoint folder says that ``trtllm-serve`` does not tell: context length, vocabulary, end tokens.

Exists because the server's ``/v1/models`` has only a name. It must not read weights or reach the network.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class CheckpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """0 and empty: not known."""

    max_model_len: int = 0
    vocab_size: int = 0
    end_ids: tuple[int, ...] = ()


def read_checkpoint(folder: Path | None) -> CheckpointFacts:
    """Return what the folder's config.json and generation_config.json say; nothing where there is no
    folder."""
    if folder is None:
        return CheckpointFacts()
    config = _object(folder / "config.json")
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = {**config, **inner}
    generation = _object(folder / "generation_config.json")
    ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
    return CheckpointFacts(
        max_model_len=_whole(config.get("max_position_embeddings")),
        vocab_size=_whole(config.get("vocab_size")),
        end_ids=tuple(dict.fromkeys(ends)),
    )


def _object(path: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError):
        return {}


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int)]


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
