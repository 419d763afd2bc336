from __future__ import annotations

import os
import socket

import msgspec
import pytest

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy import preflight
from tokenmill.operate.deploy.plant import MAX_PROCESSES, process_specs
from tokenmill.operate.deploy.preflight import (
    check_cpus,
    check_front_door,
    check_handoffs,
    check_keys,
    check_model,
    check_place,
    check_port,
    grounded,
)
from tokenmill.spec.derive import scaled
from tokenmill.spec.front import Frontend
from tokenmill.spec.load import parse_factory


def factory(path="", cpus=""):
    return parse_factory(
        f"metadata: {{name: a}}\nmodel: {{path: '{path}'}}\nstages: [{{name: w, cpus: [{cpus}]}}]", "f"
    )


def test_a_relative_model_folder_is_seen_from_the_file(tmp_path):
    (tmp_path / "models" / "m").mkdir(parents=True)
    found = grounded(factory("models/m"), tmp_path).model.path
    assert found == str((tmp_path / "models" / "m").resolve())


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_engines_that_tell_events_need_their_extra(monkeypatch, engine):
    found = parse_factory(f"metadata: {{name: a}}\nstages: [{{name: w, engine: {engine}}}]", "f")
    preflight.check_engines(found)
    monkeypatch.setattr(preflight, "_installed", lambda module: module != "zmq")
    with pytest.raises(ConfigError, match=rf"stage w: .*pyzmq: pip install 'tokenmill\[{engine}\]'"):
        preflight.check_engines(found)


def test_hub_ids_and_the_shipped_model_are_left_alone(tmp_path):
    assert grounded(factory("org/name"), tmp_path).model.path == "org/name"
    assert grounded(factory(), tmp_path).model.path == ""


@pytest.mark.parametrize("path", ["./m", "/no/such/m", "../m", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(tmp_path, path):
    with pytest.raises(ConfigError, match="no such folder"):
        grounded(factory(path), tmp_path)


def test_cores_must_be_there():
    usable = sorted(os.sched_getaffinity(0))
    check_cpus(factory(cpus=str(usable[0])))
    with pytest.raises(ConfigError, match="stage w: cpus: no core 99999 here"):
        check_cpus(factory(cpus="99999"))


def test_ports_must_be_free_and_hosts_known():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be used"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="no such address"):
        check_port("256.256.256.256", 80)


def test_a_machine_is_not_asked_for_more_processes_than_it_can_watch():
    front = 1
    process_specs(scaled(factory(), {"w": MAX_PROCESSES - front}), cores=1)
    too_many = scaled(factory(), {"w": MAX_PROCESSES})
    with pytest.raises(ConfigError, match=f"replicas: {MAX_PROCESSES + front} processes are too many"):
        process_specs(too_many, cores=1)
    with pytest.raises(ConfigError, match="replicas"):
        check_place(too_many, ports=False)


def with_front(**fields):
    return msgspec.structs.replace(factory(), frontend=Frontend(**fields))


def test_relative_certificates_are_seen_from_the_file(tmp_path):
    front = grounded(with_front(tls_cert="tls/cert.pem", tls_key="/etc/key.pem"), tmp_path).frontend
    assert front.tls_cert == str(tmp_path / "tls" / "cert.pem")
    assert front.tls_key == "/etc/key.pem"
    assert front.tls_client_ca == ""


def test_certificates_and_origins_are_checked_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"tls_cert: cannot read .*cert.pem"):
        check_front_door(grounded(with_front(tls_cert="cert.pem"), tmp_path))
    with pytest.raises(ConfigError, match="tls_key: needs a certificate"):
        check_front_door(with_front(tls_key="key.pem"))
    with pytest.raises(ConfigError, match="cors_origins: "):
        check_front_door(with_front(cors_origins=["example.com"]))
    check_front_door(with_front(cors_origins=["https://example.com"]))


TWO = """
metadata: {name: a}
models: [{name: one, path: one}, {name: two, path: NAME}, {name: far, path: vendor/some/large}]
stages:
  - {name: a, model: one}
  - {name: b, model: two}
  - {name: c, model: far, engine: openai, attach: "http://h:1", attach_key: "file:key"}
"""


def test_every_model_and_key_is_seen_from_the_file(tmp_path):
    (tmp_path / "one").mkdir()
    found = grounded(parse_factory(TWO.replace("NAME", "org/two"), "f"), tmp_path)
    assert [model.path for model in found.models] == [str(tmp_path / "one"), "org/two", "vendor/some/large"]
    assert found.stages[2].attach_key == f"file:{tmp_path}/key"
    with pytest.raises(ConfigError, match=r"models: two\.path: no such folder"):
        grounded(parse_factory(TWO.replace("NAME", "./two"), "f"), tmp_path)


def test_each_model_must_be_here_but_those_of_other_servers(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    check_model(grounded(parse_factory(TWO.replace("NAME", "two"), "f"), tmp_path))
    with pytest.raises(ConfigError, match="there is no such folder"):
        check_model(parse_factory(TWO.replace("NAME", "three"), "f"))


def test_a_key_must_be_where_it_is_kept(tmp_path):
    keyed = grounded(parse_factory(TWO.replace("NAME", "org/two"), "f"), tmp_path)
    with pytest.raises(ConfigError, match=r"stage c: attach_key: .*key: No such file"):
        check_keys(keyed, {})
    (tmp_path / "key").write_text("k")
    check_keys(keyed, {})


def environment(folder, version):
    """A Python that says it has this version of vLLM."""
    folder.mkdir()
    python = folder / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    return python


def test_versions_that_cannot_hand_over_are_refused(tmp_path):
    old, new = environment(tmp_path / "old", "0.31.0"), environment(tmp_path / "new", "0.32.0")
    text = """
    metadata: {{name: a}}
    stages:
      - {{name: p, role: prefill, engine: vllm, engine_python: {0}}}
      - {{name: d, role: decode, engine: vllm, engine_python: {1}{2}}}
    """
    why = (
        r"stage p \(vllm 0\.31\.0\) cannot hand its KV cache over to stage d \(vllm 0\.32\.0\): .*; "
        "give both the same version"
    )
    with pytest.raises(ConfigError, match=why):
        check_handoffs(parse_factory(text.format(old, new, ""), "f"))
    check_handoffs(parse_factory(text.format(old, old, ""), "f"))
    check_handoffs(parse_factory(text.format(old, tmp_path / "gone", ""), "f"))
    check_handoffs(parse_factory(text.format(old, new, ", attach: 'http://h:1'"), "f"))


def test_files_of_a_stage_are_seen_from_the_factory_file(tmp_path):
    text = "metadata: {name: a}\nstages: [{name: w, step_times: w.json, profile: /p.json}, {name: v}]"
    one, other = grounded(parse_factory(text, "f"), tmp_path).stages
    assert (one.step_times, one.profile) == (str(tmp_path / "w.json"), "/p.json")
    assert (other.step_times, other.profile) == ("", "")
