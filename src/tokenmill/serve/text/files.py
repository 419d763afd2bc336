"""The small JSON files beside a checkpoint that say which tokens are special.

Tokenizer and chat template both need them. Must not know what is done with the tokens. Absent files
are normal (checkpoints differ); broken ones are ConfigErrors that name the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError

JsonObject = dict[str, object]


def read_json(path: Path) -> JsonObject:
    """Return the file's object, or an empty one when there is no such file.

    Raises:
        ConfigError: it is there but cannot be read or is not a JSON object.
    """
    try:
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


class CheckpointFiles(msgspec.Struct, frozen=True):
    """What a checkpoint folder says about its tokens, as parsed JSON; empty where a file is absent."""

    tokenizer_config: JsonObject
    special_tokens_map: JsonObject
    generation_config: JsonObject
    config: JsonObject

    @classmethod
    def read(cls, folder: Path) -> CheckpointFiles:
        """Read the four files of ``folder`` that are there. Raises ConfigError for a broken one."""
        return cls(
            tokenizer_config=read_json(folder / "tokenizer_config.json"),
            special_tokens_map=read_json(folder / "special_tokens_map.json"),
            generation_config=read_json(folder / "generation_config.json"),
            config=read_json(folder / "config.json"),
        )

    def special_tokens(self) -> dict[str, str]:
        """Return the named special tokens ("bos_token" -> "<s>"); tokenizer_config.json has the last word."""
        named: dict[str, str] = {}
        for source in (self.special_tokens_map, self.tokenizer_config):
            for name, value in source.items():
                content = value.get("content") if isinstance(value, Mapping) else value
                if name.endswith("_token") and isinstance(content, str):
                    named[name] = content
        return named

    def token_ids(self, name: str) -> Iterator[int]:
        """Yield the ids given for ``name`` ("eos_token_id"), generation_config.json first; may repeat."""
        nested = self.config.get("text_config")
        for source in (self.generation_config, self.config, nested if isinstance(nested, Mapping) else {}):
            value = source.get(name)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                    yield item
