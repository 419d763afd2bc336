"""``tokenmill render``."""

from __future__ import annotations

import subprocess

import pytest

from tokenmill.cli import main
from tokenmill.operate.deploy.rendering import as_text, commands
from tokenmill.spec.load import parse_factory

HEAD = (
    "metadata: {name: a}\nmodel: {name: m, path: 'no-org/no name here'}\nfrontend: {replicas: 0}\nstages:\n"
)


@pytest.fixture(autouse=True)
def _no_models(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


def shown(stage: str, environment: dict[str, str] | None = None):
    return list(commands(parse_factory(f"{HEAD}  - {{{stage}}}", "f"), environment or {}))


def test_a_shell_reads_back_the_words_and_the_environment():
    """The printed lines are given to a shell in which "vllm" prints what it got."""
    [one] = shown("name: w, engine: vllm, engine_args: {chat_template: 'it''s \"quoted\" $HOME'}")
    probe = 'vllm() { printf "%s\\n" "$CUDA_VISIBLE_DEVICES" "$@"; }\n'
    text = as_text(one)
    done = subprocess.run(["/bin/bash", "-c", probe + text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0", *one.command[1:]]


def test_a_checkpoint_that_is_here_is_named_as_it_will_be_loaded(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    text = f"metadata: {{name: a}}\nmodel: {{path: '{folder}'}}\nstages: [{{name: w, engine: vllm}}]"
    one = next(commands(parse_factory(text, "f"), {}))
    assert one.command[2] == str(folder.resolve())
    assert one.command[one.command.index("--served-model-name") + 1] == "checkpoint"


def test_engines_in_the_worker_are_shown_as_the_worker():
    [one] = shown("name: w, engine: sim, max_sequences: 7")
    assert one.command[:2] == ["tokenmill", "worker"]
    assert {"--engine=sim", "--max-sequences=7", "--stage=w"} <= set(one.command)


def test_keys_are_not_shown():
    [one] = shown("name: w, engine: vllm, attach: 'http://h:1', attach_key: secret")
    assert "secret" not in as_text(one)
    assert "VLLM_API_KEY" in as_text(one)


def test_gpus_are_those_that_we_may_see():
    [one] = shown("name: w, engine: vllm, parallel: {tp: 2}", {"CUDA_VISIBLE_DEVICES": "6,7"})
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert one.gpus == [0, 1]


def test_bad_targets_and_files_are_refused(tmp_path, capsys):
    path = tmp_path / "f.yaml"
    path.write_text("metadata: {name: a}\nstages: [{name: w, engine: vllm, engine_args: {port: 1}}]")
    assert main(["render", "--target", "kubernets", str(path)]) == 2
    assert '"kubernets" is not commands' in capsys.readouterr().err
    assert main(["render", str(path)]) == 2
    assert "engine_args: port cannot be set" in capsys.readouterr().err
