"""Where a model's files are: the folder that ships with the package, a folder, or the hub's local cache.

Shared by all processes that read a checkpoint. It must not read the files nor reach the network.
"""

from __future__ import annotations

import os
from pathlib import Path

from tokenmill.errors import ConfigError

SHIPPED_NAME = "tokenmill-mini"

ALL_MODELS = "*"
"""Stands for every model that a server lists, where one has no name of its own."""


def shipped_model() -> Path:
    """Return the folder of the small model that ships with the package; ConfigError if it is missing."""
    folder = Path(__file__).resolve().parents[1] / "models" / SHIPPED_NAME
    if not folder.is_dir():
        raise ConfigError(
            f"the shipped model is missing ({folder}): install tokenmill again, or name a checkpoint folder",
            param="model",
        )
    return folder


def resolve_model(name: str) -> Path:
    """Return the checkpoint folder that ``name`` means: "" (the shipped model), a folder, or a hub id
    ("org/name") that has been downloaded. Raises ConfigError that says what to do."""
    if not name or name == SHIPPED_NAME:
        return shipped_model()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ConfigError(f"model {name!r} is a file; name the folder that it lies in", param="model")
    cached = _cached(name)
    if cached is not None:
        return cached
    fix = f"download it first: hf download {name}" if _looks_like_hub_id(name) else "check the path"
    raise ConfigError(f"model {name!r}: there is no such folder; {fix}", param="model")


def model_name(name: str, model: str) -> str:
    """Return the name that clients use: ``name`` where given, else the hub id or the folder's name."""
    if name:
        return name
    if not model:
        return SHIPPED_NAME
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve().name
    return model


def _looks_like_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _cached(name: str) -> Path | None:
    if not _looks_like_hub_id(name):
        return None
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    repository = hub / f"models--{name.replace('/', '--')}"
    main = repository / "refs" / "main"
    if not main.is_file():
        return None
    snapshot = repository / "snapshots" / main.read_text("utf-8").strip()
    return snapshot if snapshot.is_dir() else None
