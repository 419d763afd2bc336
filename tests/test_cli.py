"""The command line as a user meets it: exit statuses, messages, help."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

import tokenmill
from tokenmill import cli


@pytest.fixture(autouse=True)
def state_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "state"


def run(capsys, *words):
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_names_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for command in ("serve", "up", "down", "status", "scale", "frontend", "worker", "doctor"):
        assert command in out


def test_help_of_a_process_says_what_its_flags_mean(capsys):
    _, out, _ = run(capsys, "worker", "--help")
    assert "--kv-memory-mb" in out
    assert "TOKENMILL_KV_MEMORY_MB" in out
    assert "Memory for the KV cache in MiB" in out


def test_version(capsys):
    assert run(capsys, "--version") == (0, tokenmill.__version__ + "\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["srve"], 'Unknown command "srve". Did you mean "serve"?'),
        (["serve", "--prot", "1"], "Unknown option: --prot"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--engine", "openai"], '--attach: is missing; engine "openai" needs'),
        (["serve", "--engine-arg", "x", "--engine", "sim"], '--engine-arg: "x" is not KEY=VALUE'),
        (["serve", "/no/such/folder", "--engine", "sim"], "/no/such/folder"),
        (["up", "none.yaml"], "none.yaml: no such file"),
        (["scale", "a", "decode"], '"decode" is not KEY=VALUE'),
        (["scale", "a", "decode=x"], "N must be a whole number"),
        (["scale", "a"], "name at least one stage"),
        (["down", "some/where"], "neither a factory's name nor a factory file"),
    ],
)
def test_bad_usage_is_two_lines_at_most_and_status_2(capsys, words, message):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    lines = err.splitlines()
    assert len(lines) <= 2
    assert all(line.startswith("tokenmill: error: ") for line in lines)


def test_a_bad_file_is_told_line_by_line(capsys, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("metadata: {name: a}\nstages:\n  - {name: w, role: bth}\n  - {name: v, replica: 2}\n")
    status, _, err = run(capsys, "up", str(path))
    assert status == 2
    roles = "prefill, decode or both"
    assert err.splitlines() == [
        f'tokenmill: error: {path}:3:21: stages[0].role: "bth" is not {roles}. Did you mean "both"?',
        f'tokenmill: error: {path}:4:15: stages[1].replica: unknown field. Did you mean "replicas"?',
    ]


def test_a_port_in_use_is_named_before_anything_starts(capsys, state_dir):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        status, _, err = run(capsys, "serve", "--engine", "sim", "--port", str(port))
    assert status == 2
    assert f"port {port} on 127.0.0.1 cannot be used" in err
    assert "--port" in err
    assert not state_dir.exists()


def test_an_engine_that_is_not_installed_says_how_to_install_it(capsys, monkeypatch):
    from tokenmill.operate.deploy import preflight

    monkeypatch.setattr(preflight, "_installed", lambda module: module != "torch")
    status, _, err = run(capsys, "serve", "--port", "0")
    assert status == 2
    assert "pip install 'tokenmill[torch]'" in err
    assert "--engine sim" in err


def test_what_does_not_run_is_status_1(capsys):
    assert run(capsys, "down") == (1, "", "tokenmill: error: nothing is running here\n")
    assert run(capsys, "status", "a")[::2] == (1, 'tokenmill: error: "a" is not running\n')
    assert run(capsys, "scale", "a", "d=1")[0] == 1


def test_status_of_nothing(capsys):
    assert run(capsys, "status") == (0, "nothing is running\n", "")
    assert json.loads(run(capsys, "status", "--json")[1]) == {"factories": [], "stale": []}


def test_debug_shows_the_traceback(monkeypatch):
    from tokenmill.errors import ConfigError

    monkeypatch.setenv("TOKENMILL_DEBUG", "1")
    with pytest.raises(ConfigError):
        cli.main(["up", "none.yaml"])


def test_schema_is_json(capsys):
    assert "$defs" in json.loads(run(capsys, "schema")[1])


def test_doctor_finds_a_bad_file_and_says_so(capsys, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(
        "metadata: {name: a}\nstages: [{name: w, engine: sim, cpus: [100000]}]\nfrontend: {port: 0}\n"
    )
    status, out, _ = run(capsys, "doctor", str(path))
    assert status == 1
    assert "no core 100000 here" in out
    path.write_text("metadata: {name: a}\nstages: []\n")
    status, out, _ = run(capsys, "doctor", str(path))
    assert status == 1
    assert "is empty" in out


def test_starting_the_command_line_imports_nothing_heavy():
    program = """
        import sys
        from tokenmill.cli import make_app
        make_app()
        heavy = {"torch", "transformers", "numpy", "tokenizers", "uvloop", "jinja2"} & set(sys.modules)
        sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


FACTORY = """\
metadata: {name: trip}
model: {name: tiny}
frontend: {port: 0}
stages:
  - {name: prefill, role: prefill, engine: sim}
  - {name: decode, role: decode, engine: sim}
"""


def command(*words, check=0):
    done = subprocess.run(
        [sys.executable, "-m", "tokenmill", *words],
        check=False, capture_output=True, timeout=120, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == check, done.stderr
    return done


def replicas():
    (factory,) = json.loads(command("status", "--json").stdout)["factories"]
    assert factory["ready"]
    return sorted(row["name"] for row in factory["processes"] if row["state"] == "ready")


@pytest.mark.processes
def test_up_scale_apply_and_down_with_real_processes(tmp_path, state_dir):
    path = tmp_path / "factory.yaml"
    path.write_text(FACTORY)
    try:
        assert "Tokenmill serves tiny at http://127.0.0.1:" in command("up", str(path)).stdout
        assert replicas() == ["decode-0", "frontend-0", "prefill-0"]
        assert "trip" in command("status").stdout
        command("scale", "trip", "decode=2")
        assert replicas() == ["decode-0", "decode-1", "frontend-0", "prefill-0"]
        assert "no stage" in command("scale", "trip", "dcode=2", check=2).stderr
        path.write_text(FACTORY.replace("role: prefill,", "role: prefill, replicas: 2,"))
        command("up", str(path))
        assert {"prefill-0", "prefill-1"} <= set(replicas())
    finally:
        assert command("down", str(path)).stdout == "trip is down\n"
    assert command("status").stdout == "nothing is running\n"
    assert not (state_dir / "trip" / "supervisor.json").exists()


@pytest.mark.processes
def test_up_of_a_factory_that_cannot_start_says_why(tmp_path):
    path = tmp_path / "factory.yaml"
    path.write_text(
        FACTORY.replace("role: decode,", "role: decode, dtype: float7, engine_args: {speed: fast},")
    )
    done = command("up", str(path), check=1)
    assert done.stderr.splitlines()[-1].startswith("tokenmill: error: decode-0: ")
    assert command("status").stdout == "nothing is running\n"


@pytest.mark.processes
def test_serve_in_the_foreground_prints_the_url_and_drains_on_ctrl_c():
    argv = [sys.executable, "-m", "tokenmill", "serve", "--engine", "sim", "--port", "0", "--both", "1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout.readline().startswith(
                "Tokenmill serves tokenmill-mini at http://127.0.0.1:"
            )
            process.send_signal(2)
            assert process.wait(60) == 0
        finally:
            process.kill()
