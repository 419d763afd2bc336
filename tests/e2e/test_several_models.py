"""Two models in one factory file, each with stages of its own, as real processes behind one front door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.streams import start_factory, until

from tokenmill.testing.running_factory import RunningFactory
from tokenmill.testing.tiny_tokenizer import write_tiny_tokenizer

pytestmark = pytest.mark.processes


def post(factory: RunningFactory, path: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        factory.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def spec(folder: Path) -> dict:
    write_tiny_tokenizer(folder / "bytes")
    sim = {"engine": "sim", "engine_args": {"speedup": 50}}
    return {
        "metadata": {"name": "two"},
        "models": [{"name": "mini"}, {"name": "org/bytes", "path": "bytes"}],
        "router": {"prefill": "remote"},
        "stages": [
            {"name": "mini-p", "model": "mini", "role": "prefill", **sim},
            {"name": "mini-d", "model": "mini", "role": "decode", **sim},
            {"name": "bytes", "model": "org/bytes", **sim},
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[RunningFactory]:
    factory = start_factory(folder, spec(folder))
    try:
        factory.wait_ready()
        yield factory
    finally:
        status = factory.stop()
    assert status == 0, factory.log()


def tokenmill(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TOKENMILL_STATE_DIR": str(folder / "state")}
    return subprocess.run(
        [sys.executable, "-m", "tokenmill", *words],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def modes(factory: RunningFactory) -> dict[str, str]:
    models = json.loads(factory.get("/health")[1])["models"]
    return {name: model["mode"] for name, model in models.items()}


async def ready(factory: RunningFactory) -> None:
    whole = {"mini": "disaggregated", "org/bytes": "aggregated"}
    await until(lambda: modes(factory) == whole, factory.log)


async def test_each_model_has_its_own_tokenizer_workers_and_way(two: RunningFactory):
    await ready(two)
    listed = json.loads(two.get("/v1/models")[1])["data"]
    assert [model["id"] for model in listed] == ["mini", "org/bytes"]
    text = "several models"
    _, ids = post(two, "/tokenize", {"model": "org/bytes", "prompt": text})
    assert ids["tokens"] == [*text.encode()]
    _, others = post(two, "/tokenize", {"model": "mini", "prompt": text})
    assert others["tokens"] != ids["tokens"]
    asked = {"prompt": text, "max_tokens": 8, "ignore_eos": True}
    for model, prompt in (("mini", others), ("org/bytes", ids)):
        status, answer = post(two, "/v1/completions", {"model": model, **asked})
        assert (status, answer["model"]) == (200, model)
        assert answer["usage"]["prompt_tokens"] == prompt["count"]
        told = json.loads(two.get(f"/v1/explain/{answer['id']}")[1])
        (attempt,) = told["choices"][0]["attempts"]
        stage = attempt["decode_worker"].rsplit("-", 2)[0]
        assert (told["model"], stage) == (model, {"mini": "mini-d", "org/bytes": "bytes"}[model])
        assert (attempt["prefill_worker"] is None) is (model == "org/bytes")
    status, answer = post(two, "/v1/completions", {"model": "third", **asked})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_stages_of_one_model_are_scaled_without_touching_the_other(two: RunningFactory, folder: Path):
    await ready(two)
    before = {each["stage"]: each["pid"] for each in two.worker_loads()}
    scaled = tokenmill(folder, "scale", "two", "bytes=2")
    assert scaled.returncode == 0, scaled.stderr
    await until(lambda: len([each for each in two.worker_loads() if each["stage"] == "bytes"]) == 2)
    after = {each["stage"]: each["pid"] for each in two.worker_loads() if each["model"] == "mini"}
    assert after == {stage: pid for stage, pid in before.items() if stage != "bytes"}
    shown = tokenmill(folder, "status")
    assert "mini, org/bytes" in shown.stdout
    assert "bytes-1" in shown.stdout
    emptied = tokenmill(folder, "scale", "two", "bytes=0")
    assert emptied.returncode == 0, emptied.stderr
    await until(lambda: modes(two) == {"mini": "disaggregated", "org/bytes": "none"})
    status, _ = post(two, "/v1/completions", {"model": "mini", "prompt": "a", "max_tokens": 2})
    assert status == 200
    status, _ = post(two, "/v1/completions", {"model": "org/bytes", "prompt": "a", "max_tokens": 2})
    assert status == 503
    assert tokenmill(folder, "scale", "two", "bytes=1").returncode == 0
    await ready(two)


def test_an_impossible_mix_is_refused_before_anything_runs(tmp_path: Path):
    file = tmp_path / "mixed.yaml"
    file.write_text(
        """
        metadata: {name: mixed}
        stages:
          - {name: fill, role: prefill, engine: sim}
          - {name: write, role: decode, engine: torch}
        """
    )
    for command in (("doctor", str(file)), ("up", str(file))):
        done = tokenmill(tmp_path, *command)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == (1 if command[0] == "doctor" else 2), said
        if command[0] == "up":
            assert (
                "stages[0].engine: stage fill (sim) cannot hand its KV cache over to stage write (torch): "
                "each engine has its own layout; use one engine for both, or role: both"
            ) in said
