"""A checkpoint folder in Hugging Face format, read with no more than safetensors needs.

Importing ``transformers`` takes longer than loading a small model, so that what can be read without it is.
Every fault of the folder is a ConfigError that names the file. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import xxhash
from safetensors import SafetensorError, safe_open

from tokenmill.errors import ConfigError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100 * 2**20
_SAMPLES = 16
_SAMPLE_BYTES = 4096

ConfigValue = object
"""A value of ``config.json``."""


class TextConfig:
    """``config.json`` with typed access: a wrong type is a ConfigError that names the key."""

    def __init__(self, path: Path, values: dict[str, ConfigValue], defaults: dict[str, ConfigValue]) -> None:
        self._path = path
        self._values = {**defaults, **values}

    def get(self, key: str) -> ConfigValue:
        """Return a raw value, None when it is absent."""
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; a null or absent one is ``default``, an error if that is None."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._path}: {key} must be a positive integer, not {value!r}", param=key)
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number; a null or absent one is ``default``."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{self._path}: {key} must be a number, not {value!r}", param=key)
        return float(value)


class Checkpoint:
    """One folder: its configuration and where each tensor lies. Raises ConfigError for a folder at fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ConfigError(f"model: there is no folder {folder}; give a checkpoint folder", param="model")
        self.config_path = folder / "config.json"
        self.config = _read_object(self.config_path, "this is not a checkpoint folder without it")
        self._promised: dict[str, str] = {}
        self._shards = self._find_shards()
        self._headers = {path: _read_header(path) for path in self._shards}
        self._where = {
            name: path
            for path, (_, tensors) in self._headers.items()
            for name in tensors
            if name != "__metadata__"
        }
        self._check_index()

    @property
    def architecture(self) -> str:
        """The model class that the checkpoint was made for, e.g. "LlamaForCausalLM"; empty when not said."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def dtype(self) -> str:
        """The dtype the checkpoint says it has; "float32" when it does not say."""
        said = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return str(said).removeprefix("torch.")

    @property
    def size_bytes(self) -> int:
        """Bytes of all its weight files."""
        return sum(path.stat().st_size for path in self._shards)

    @property
    def eos_token_ids(self) -> list[int]:
        """End-of-sequence ids of ``generation_config.json`` and ``config.json``, without repeats."""
        ids: list[int] = []
        generation = self.folder / "generation_config.json"
        sources = [_read_object(generation, "")] if generation.is_file() else []
        for source in [*sources, self.config]:
            said = source.get("eos_token_id")
            ids += [i for i in (said if isinstance(said, list) else [said]) if isinstance(i, int)]
        return list(dict.fromkeys(ids))

    def has(self, name: str) -> bool:
        """Tell whether there is a tensor of this name."""
        return name in self._where

    def reader(self, dtype: torch.dtype) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
        """Return a function that reads a tensor by name, checks its shape, and converts it to ``dtype``."""
        opened: dict[Path, Any] = {path: _open(path) for path in self._shards}

        def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            path = self._where.get(name)
            if path is None:
                raise ConfigError(f"{self.folder}: tensor {name} is missing; the checkpoint is incomplete")
            try:
                tensor: torch.Tensor = opened[path].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path}: cannot read {name} ({error}); fetch the file again") from error
            if tuple(tensor.shape) != shape:
                raise ConfigError(
                    f"{path}: {name} has shape {list(tensor.shape)}, but config.json asks for {list(shape)}"
                )
            if not tensor.dtype.is_floating_point:
                raise ConfigError(
                    f"{path}: {name} is {tensor.dtype}; quantized weights are not supported here"
                )
            return tensor.to(dtype)

        return read

    def fingerprint(self, dtype: str) -> str:
        """Return a short hash: equal ones mean that KV caches made by these weights mean the same.

        Of the configuration, the dtype, each shard's header, and a sample of its bytes.
        """
        volatile = {"transformers_version", "_name_or_path", "use_cache", "dtype", "torch_dtype"}
        config = {key: value for key, value in self.config.items() if key not in volatile}
        digest = xxhash.xxh3_64(json.dumps([config, dtype], sort_keys=True).encode())
        for path in self._shards:
            start, tensors = self._headers[path]
            digest.update(json.dumps(tensors, sort_keys=True).encode())
            size = path.stat().st_size
            with path.open("rb") as file:
                for sample in range(_SAMPLES):
                    file.seek(start + max(0, size - start - _SAMPLE_BYTES) * sample // max(1, _SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def _find_shards(self) -> list[Path]:
        index = self.folder / _INDEX
        if not index.is_file():
            single = self.folder / _SINGLE
            if not single.is_file():
                raise ConfigError(f"{self.folder}: neither {_SINGLE} nor {_INDEX}; only safetensors are read")
            return [single]
        weight_map = _read_object(index, "").get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise ConfigError(f"{index}: weight_map must name a file for each tensor")
        self._promised = weight_map
        shards = [self.folder / name for name in sorted(set(weight_map.values()))]
        for shard in shards:
            if not shard.is_file():
                raise ConfigError(f"{shard}: missing, though {_INDEX} names it; fetch the checkpoint again")
        return shards

    def _check_index(self) -> None:
        for name, file in self._promised.items():
            if name not in self._where:
                raise ConfigError(f"{self.folder / file}: has no tensor {name}, though {_INDEX} says so")


def _read_object(path: Path, why: str) -> dict[str, ConfigValue]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: missing; {why}", param="model") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})", param="model") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object", param="model")
    return value


def _read_header(path: Path) -> tuple[int, dict[str, ConfigValue]]:
    """Return where a safetensors file's data begin, and its header. Checks that no byte is missing."""
    broken = f"{path}: not a whole safetensors file"
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES + 1
            if length > _MAX_HEADER_BYTES:
                raise ConfigError(f"{broken}; fetch it again")
            header = msgspec.json.decode(file.read(length), type=dict[str, dict[str, ConfigValue]])
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{broken} ({error}); fetch it again") from error
    ends = [
        offsets[1]
        for tensor in header.values()
        if isinstance(offsets := tensor.get("data_offsets"), list) and len(offsets) == 2
    ]
    needed = 8 + length + max((end for end in ends if isinstance(end, int)), default=0)
    size = path.stat().st_size
    if size < needed:
        raise ConfigError(f"{broken}: {size} bytes of {needed}; fetch it again")
    return 8 + length, dict(header)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); fetch it again") from error


def checkpoint_dtype(settings_dtype: str, checkpoint: Checkpoint, device: torch.device) -> str:
    """Choose the dtype by name. Raises ConfigError for one that is unknown or not for this device."""
    name = checkpoint.dtype if settings_dtype == "auto" else settings_dtype
    if name not in DTYPES:
        source = str(checkpoint.config_path) if settings_dtype == "auto" else "dtype"
        raise ConfigError(
            f"{source}: dtype {name} is not supported; use --dtype float32 or bfloat16", param="dtype"
        )
    if name == "float16" and device.type == "cpu":
        if settings_dtype == "auto":
            return "float32"
        raise ConfigError("dtype: float16 is not supported on CPU; use float32 or bfloat16", param="dtype")
    return name
