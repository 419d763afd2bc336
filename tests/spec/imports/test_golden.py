"""Deployments in the shape of the public examples, the factories that come out, and what is told to be lost.

``cases/NAME.yaml`` is read; ``NAME.factory.yaml`` and ``NAME.losses.txt`` are what is expected. After a
wanted change write them anew with ``TOKENMILL_WRITE_GOLDEN=1``, and read them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tokenmill.operate.deploy.rendering import commands
from tokenmill.spec.imports.importing import Imported, import_factory
from tokenmill.spec.load import dump_factory, parse_factory

CASES = sorted(path for path in (Path(__file__).parent / "cases").glob("*.yaml") if path.stem.count(".") == 0)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request):
    return request.param


def imported(case: Path) -> Imported:
    return import_factory(case.read_text(), case.name)


def expected(case: Path, suffix: str, text: str) -> str:
    path = case.with_suffix(suffix)
    if os.environ.get("TOKENMILL_WRITE_GOLDEN"):
        path.write_text(text)
    return path.read_text()


def test_there_are_cases():
    assert len(CASES) == 6


def test_the_factory_is_what_is_expected(case):
    text = dump_factory(imported(case).factory)
    assert text == expected(case, ".factory.yaml", text)


def test_the_losses_are_what_is_expected(case):
    text = "".join(f"{loss.place.line}: {loss.path}: {loss.why}\n" for loss in imported(case).losses)
    assert text == expected(case, ".losses.txt", text)


def test_our_loader_takes_the_factory_and_its_commands_can_be_shown(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    factory = imported(case).factory
    assert parse_factory(dump_factory(factory), "f") == factory
    shown = list(commands(factory, {}))
    assert len(shown) == sum(stage.replicas for stage in factory.stages) + factory.frontend.replicas
    for stage in factory.stages:
        if stage.engine == "vllm":
            command = next(each.command for each in shown if each.name == f"{stage.name}-0")
            assert command[:2] == ["vllm", "serve"]
            assert ("--kv-transfer-config" in command) == (stage.role != "both")


def test_what_has_no_place_in_a_factory_is_told_wherever_it_stands(case):
    losses = {loss.path for loss in imported(case).losses}
    root = next(
        document
        for document in yaml.safe_load_all(case.read_text())
        if document["kind"] in ("DynamoGraphDeployment", "LLMInferenceService")
    )
    for name in ("registry.example", "/workspace"):
        for path in paths_with(root, name):
            assert any(path == loss or path.startswith((f"{loss}.", f"{loss}[")) for loss in losses), path


def paths_with(value: object, text: str, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [
            found
            for key, each in value.items()
            for found in paths_with(each, text, f"{path}.{key}".strip("."))
        ]
    if isinstance(value, list):
        return [found for i, each in enumerate(value) for found in paths_with(each, text, f"{path}[{i}]")]
    return [path] if isinstance(value, str) and text in value else []
