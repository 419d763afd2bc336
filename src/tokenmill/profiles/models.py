"""From a model's name to its shape: its folder, the hub's cache on this machine, or what is known of it.

Reads ``config.json`` and nothing larger; reaches no network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.decide.perf.model_config import shape_of
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.errors import ConfigError
from tokenmill.profiles.kernel_tables import known_configs
from tokenmill.profiles.known_models import CONFIGS
from tokenmill.spec.models import resolve_model
from tokenmill.spec.problems import did_you_mean


def load_shape(model: str, *, beside: Path | None = None) -> ModelShape:
    """Return the shape of a model given as folder, hub id, or "" for the one that ships with the package.

    ``beside``: the folder that a relative one is seen from. Raises ConfigError saying what to give instead.
    """
    folder = _folder(model, beside)
    if folder is not None:
        return shape_in(folder, name=model or folder.name)
    for name, config in CONFIGS.items():
        if name.lower() == model.lower():
            return shape_of(name, config)
    configs = known_configs()
    if model in configs:
        config, quantization = configs[model]
        return shape_of(model, config, quantization)
    hint = did_you_mean(model, [*CONFIGS, *configs]) or " Give a folder with its config.json."
    raise ConfigError(
        f"model: {model!r} is no folder, and nothing is known of its shape.{hint}", param="model"
    )


def shape_in(folder: Path, *, name: str) -> ModelShape:
    """Return the shape of the checkpoint in a folder. Raises ConfigError."""
    quantization = folder / "hf_quant_config.json"
    return shape_of(
        name,
        _read(folder / "config.json"),
        _read(quantization) if quantization.is_file() else None,
    )


def _folder(model: str, beside: Path | None) -> Path | None:
    if model and beside is not None and (beside / model).is_dir():
        return beside / model
    try:
        return resolve_model(model)
    except ConfigError:
        if model.startswith((".", "/", "~")):
            raise
        return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model: {path} cannot be read: {error.strerror}", param="model") from None
    except ValueError as error:
        raise ConfigError(f"model: {path} is not JSON: {error}", param="model") from None
    if not isinstance(config, Mapping):
        raise ConfigError(f"model: {path} holds no mapping", param="model")
    return config
