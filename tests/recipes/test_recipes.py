"""Every recipe loads, and what it would run is what it says."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from tests.command_lines import options_in

from tokenmill.cli import main
from tokenmill.operate.deploy.rendering import Rendered, as_text, commands
from tokenmill.profiles.fleets import load_inventory
from tokenmill.spec.load import load_factory

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

ENGINES = {
    "gpt-oss-120b-aggregated": [("worker-0", "", 4), ("worker-1", "", 4)],
    "gpt-oss-120b-small-prefill": [
        *((f"prefill-{replica}", "", 1) for replica in range(4)), ("decode-0", "", 4)
    ],
    "gpt-oss-120b-one-node": [("prefill-0", "", 4), ("decode-0", "", 4)],
    "llama-3.3-70b-fp8-aggregated": [(f"worker-{replica}", "", 2) for replica in range(4)],
    "llama-3.3-70b-fp8-one-node": [("prefill-0", "", 2), ("prefill-1", "", 2), ("decode-0", "", 4)],
    "llama-3.3-70b-fp8-prefill-heavy": [
        *((f"prefill-{replica}", "", 2) for replica in range(3)), ("decode-0", "", 2)
    ],
    "llama-3.3-70b-fp8-two-nodes-prefill-heavy": [
        *((f"prefill-{replica}", "", 2) for replica in range(4)), ("prefill-b-0", "10.0.0.2", 2),
        ("prefill-c-0", "10.0.0.2", 2), ("decode-0", "10.0.0.2", 4),
    ],
    "llama-3.3-70b-fp8-two-nodes": [("prefill-0", "", 8), ("decode-0", "10.0.0.2", 8)],
    "llama-3.3-70b-nvfp4-b200": [(f"worker-{replica}", "", 1) for replica in range(8)],
    "qwen3-32b-fp8-h100-and-a100": [
        *((f"prefill-{replica}", "", 1) for replica in range(5)), ("decode-0", "10.0.0.2", 4)
    ],
    "qwen3-0.6b-kv-routing": [
        ("prefill-0", "", 1), ("prefill-1", "", 1), ("decode-0", "", 1), ("decode-1", "", 1)
    ],
}  # fmt: skip
"""By recipe: each engine, the other machine that it runs on, and its GPUs."""

ROLE = {"prefill": "kv_producer", "decode": "kv_consumer"}


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return request.param


def engines(path: Path) -> list[Rendered]:
    return [shown for shown in commands(load_factory(path), {}) if shown.command[0] == "vllm"]


def options(shown: Rendered) -> dict[str, str]:
    return options_in(shown.command[3:])


def test_there_are_those_that_are_known():
    assert {path.stem for path in RECIPES} == set(ENGINES)


def test_engines_are_where_the_recipe_says(recipe):
    shown = engines(recipe)
    assert [(each.name, each.host, len(each.gpus)) for each in shown] == ENGINES[recipe.stem]
    by_host = defaultdict(list)
    for each in shown:
        by_host[each.host] += each.gpus
        assert each.environment["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, each.gpus))
    for gpus in by_host.values():
        assert sorted(gpus) == list(range(len(gpus)))
        assert len(gpus) <= 8


def test_commands_are_what_the_file_declares(recipe):
    factory = load_factory(recipe)
    stages = {stage.name: stage for stage in factory.stages}
    for shown in engines(recipe):
        stage, found = stages[shown.name.rpartition("-")[0]], options(shown)
        assert shown.command[:3] == ["vllm", "serve", factory.model.path]
        assert found["--served-model-name"] == factory.model.name
        assert found.get("--tensor-parallel-size", "1") == str(stage.parallel.tp)
        assert found["--max-model-len"] == str(stage.max_model_len)
        assert found["--max-num-seqs"] == str(stage.max_sequences)
        assert found["--max-num-batched-tokens"] == str(stage.token_budget)
        assert found["--gpu-memory-utilization"] == stage.engine_args["gpu_memory_utilization"]
        assert json.loads(found["--kv-events-config"])["enable_kv_cache_events"] is True
        role = ROLE.get(stage.role)
        transfer = json.loads(found["--kv-transfer-config"]) if role else None
        assert transfer == ({"kv_connector": "NixlConnector", "kv_role": role} if role else None)


def test_no_two_engines_of_a_machine_share_a_port(recipe):
    taken = defaultdict(set)
    for shown in engines(recipe):
        found = options(shown)
        events = json.loads(found["--kv-events-config"])
        ports = {found["--port"], shown.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"]}
        ports |= {events[name].rpartition(":")[2] for name in ("endpoint", "replay_endpoint")}
        assert len(ports) == 4
        assert not ports & taken[shown.host]
        taken[shown.host] |= ports


def test_each_has_a_front_door_and_says_what_it_is_for(recipe):
    fronts = [shown for shown in commands(load_factory(recipe), {}) if shown.name == "frontend-0"]
    assert [shown.command[:2] for shown in fronts] == [["tokenmill", "frontend"]]
    assert len(recipe.read_text().partition("apiVersion")[0].splitlines()) > 4


def test_the_command_shows_them(recipe, capsys):
    assert main(["render", str(recipe)]) == 0
    text = capsys.readouterr().out
    for shown in engines(recipe):
        assert as_text(shown) in text
    assert main(["render", "--json", str(recipe)]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)][-1] == "frontend-0"


def test_fleets_load():
    fleets = list((ROOT / "recipes" / "fleets").glob("*.yaml"))
    assert fleets
    assert all(load_inventory(path).gpus > 0 for path in fleets)


def test_the_engine_of_another_node_is_told_where_it_is_reached():
    path = ROOT / "recipes" / "llama-3.3-70b-fp8-two-nodes.yaml"
    here, there = engines(path)
    assert (here.runs, there.runs) == (True, False)
    assert here.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.1"
    assert there.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.2"
    assert (options(there)["--host"], options(there)["--port"]) == ("10.0.0.2", "8100")
    assert options(here)["--host"] == "127.0.0.1"
