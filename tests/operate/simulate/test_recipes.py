"""Every recipe can be tried before it is run: on the GPUs that it names, else on one given by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill import cli

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_simulated(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKENMILL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    load = "chats:rate=4,shared=2000,prompt=3000,output=50,turns=3,think_s=2,requests=60"
    words = ["simulate", str(path), "--trace", load, "--gpu", "H100", "--json"]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["served"] == 60
    assert told["prefix_hit"] > 0.3
    assert told["cost"]["dollars"] > 0
    assert all(stage["gpus_per_worker"] for stage in told["stages"])
    both = {stage["role"] for stage in told["stages"]}
    assert (told["handoffs"] > 0) == ("prefill" in both)
