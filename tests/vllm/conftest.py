"""Factories of real vLLM servers. Run by ``make test-vllm``; the ordinary test run leaves them out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .plants import Plant, plant_spec

PYTHON_VARIABLE = "TOKENMILL_VLLM_PYTHON"


@pytest.fixture(scope="session")
def vllm_python() -> str:
    python = os.environ.get(PYTHON_VARIABLE, "")
    if not Path(python).is_file():
        pytest.fail(f"{PYTHON_VARIABLE} names no Python with vLLM; run make test-vllm")
    return python


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Makes checkpoints by architecture, each once."""
    from tokenmill.testing.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def make(architecture: str, name: str = "") -> Path:
        key = name or architecture
        if key not in made:
            made[key] = make_checkpoint(
                folder / key, architecture, size="5m", sliding_window=128, seed=len(made)
            )
        return made[key]

    return make


@pytest.fixture(scope="module")
def plant(request, vllm_python, checkpoint, tmp_path_factory) -> Iterator[Plant]:
    """The factory that the module's ``PLANT`` or the parameter asks for, up and ready."""
    asked = {**getattr(request.module, "PLANT", {}), **getattr(request, "param", {})}
    folder = tmp_path_factory.mktemp("plant")
    spec = plant_spec(vllm_python, checkpoint(asked.pop("architecture", "llama")), **asked)
    plant = Plant(folder, spec)
    try:
        plant.wait_ready()
        yield plant
    finally:
        status = plant.stop()
    assert status == 0, plant.factory.log()
