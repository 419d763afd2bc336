from __future__ import annotations

import string
from dataclasses import fields, replace

import pytest
from cyclopts import App, CycloptsError
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.flags import config_command, parse_pairs, to_argv, to_environment, to_flags
from tokenmill.operate.deploy.plant import process_specs
from tokenmill.protocol.ids import Role
from tokenmill.spec.load import parse_factory
from tokenmill.spec.plain_flags import read_plain
from tokenmill.spec.process import ENVIRONMENT_PREFIX, FrontendConfig, WorkerConfig


def parsed(kind, words):
    seen = []
    app = App()
    app.default(config_command(kind, lambda config: seen.append(config) or 0))
    app(words, exit_on_error=False, print_error=False, result_action="return_value")
    return seen[0]


WORDS = st.text(string.ascii_letters + string.digits + "-_=/: .,", min_size=1, max_size=12).filter(
    lambda word: word.strip() == word
)
CONFIGS = st.builds(
    WorkerConfig,
    model=st.just("") | WORDS,
    role=st.sampled_from(Role),
    replica=st.integers(0, 99),
    gpus=st.lists(st.integers(0, 15), max_size=3),
    parent_fd=st.none() | st.integers(3, 99),
    lease_s=st.floats(0.001, 1e6),
    prefix_cache=st.booleans(),
    transports=st.lists(st.sampled_from(["shm", "tcp"]), min_size=1, max_size=2, unique=True),
    engine_args=st.dictionaries(WORDS.filter(lambda word: "=" not in word), WORDS, max_size=3),
)


@given(CONFIGS)
@settings(max_examples=60, deadline=None)
def test_flags_read_back_as_the_same_config(config):
    assert parsed(WorkerConfig, to_flags(config)) == config


@given(st.dictionaries(WORDS, st.floats(0.001, 1e6), max_size=3))
@settings(max_examples=30, deadline=None)
def test_pairs_of_numbers_read_back(weights):
    config = FrontendConfig(admission_tenant_weights=weights)
    assert parsed(FrontendConfig, to_flags(config)) == config


@pytest.mark.parametrize("words", ["a", "a=b", "=1", "a="])
def test_a_pair_that_has_no_number_names_the_flag(words):
    with pytest.raises(ConfigError, match="--admission-tenant-weight"):
        parsed(FrontendConfig, [f"--admission-tenant-weight={words}"])


def test_defaults_need_no_flags():
    assert to_flags(WorkerConfig()) == []
    assert to_argv(FrontendConfig(port=1))[1:] == ["-m", "tokenmill", "frontend", "--port=1"]
    assert to_argv(WorkerConfig(role=Role.DECODE))[1:] == ["-m", "tokenmill", "worker", "--role=decode"]


def test_the_environment_sets_what_no_flag_sets(monkeypatch):
    monkeypatch.setenv("TOKENMILL_THREADS", "3")
    monkeypatch.setenv("TOKENMILL_DTYPE", "float32")
    config = parsed(WorkerConfig, ["--dtype", "bfloat16"])
    assert (config.threads, config.dtype) == (3, "bfloat16")


def test_bad_flags_say_which(capsys):
    for words, message in (
        (["--rol", "x"], "--role"),
        (["--role", "x"], '"prefill", "decode", "both"'),
        (["--threads", "x"], "--threads"),
    ):
        with pytest.raises(CycloptsError, match=message):
            parsed(WorkerConfig, words)
    with pytest.raises(ConfigError, match='--engine-arg: "x" is not KEY=VALUE'):
        parsed(WorkerConfig, ["--engine-arg", "x"])


def test_pairs_split_at_the_first_equals_sign():
    assert parse_pairs(["a=b=c", "d="], "X") == {"a": "b=c", "d": ""}


def specs(text, cores=8):
    return {spec.name: spec for spec in process_specs(parse_factory(text, "f"), cores)}


def test_torch_workers_share_the_cores_and_others_need_none():
    plan = specs(
        "metadata: {name: a}\nstages:\n"
        "- {name: p, replicas: 2}\n- {name: pinned, cpus: [3, 4], replicas: 3}\n"
        "- {name: own, threads: 5, replicas: 1}\n- {name: s, engine: sim}\n"
    )
    assert {name: spec.threads for name, spec in plan.items()} == {
        "p-0": 1, "p-1": 1, "pinned-0": 1, "pinned-1": 1, "pinned-2": 1, "own-0": 5, "s-0": 1,
        "frontend-0": 0,
    }  # fmt: skip
    assert [plan[f"pinned-{i}"].cpus for i in range(3)] == [(3,), (4,), (3,)]
    two = specs("metadata: {name: a}\nstages: [{name: w, replicas: 2}]")
    assert [two[name].threads for name in ("w-0", "w-1")] == [4, 4]


def test_a_child_sees_its_threads_and_no_settings_meant_for_the_parent():
    spec = specs("metadata: {name: a}\nstages: [{name: w}]", cores=6)["w-0"]
    base = {"PATH": "/bin", "TOKENMILL_DTYPE": "float16", "TOKENMILL_DEBUG": "1", "OMP_NUM_THREADS": "9"}
    environment = to_environment(base, spec)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "6"
    assert "TOKENMILL_DTYPE" not in environment
    assert (environment["TOKENMILL_DEBUG"], environment["PATH"]) == ("1", "/bin")
    assert "OMP_NUM_THREADS" not in to_environment({}, replace(spec, threads=0))


def test_a_key_goes_to_the_process_alone_and_where_it_is_kept_to_all():
    stage = "{name: w, engine: openai, attach: 'http://h:1', attach_key: 'KEY'}"
    for kept, shown in (("sk-1", False), ("env:MY_KEY", True), ("file:/a/key", True)):
        factory = parse_factory(f"metadata: {{name: a}}\nstages: [{stage.replace('KEY', kept)}]", "f")
        worker = process_specs(factory, cores=1)[0]
        assert (f"--attach-key={kept}" in to_argv(worker.config)) is shown
        environment = to_environment({"TOKENMILL_ATTACH_KEY": "old", "MY_KEY": "k"}, worker)
        assert environment.get("TOKENMILL_ATTACH_KEY") == (None if shown else kept)
        assert environment["MY_KEY"] == "k"


def test_models_of_a_front_door_read_back():
    config = FrontendConfig(model_paths={"a": "/m/a", "org/b": ""}, text_models=["far", "*"])
    assert parsed(FrontendConfig, to_flags(config)) == config


@given(CONFIGS)
@settings(max_examples=100, deadline=None)
def test_a_supervisors_flags_are_read_without_the_library_too(config):
    assert read_plain(WorkerConfig, to_flags(config), {}, ENVIRONMENT_PREFIX) == config


@given(st.dictionaries(WORDS, st.floats(0.001, 1e6), max_size=3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_pairs_of_numbers_are_read_without_the_library_too(weights, explain):
    config = FrontendConfig(admission_tenant_weights=weights, peer_sync=explain)
    assert read_plain(FrontendConfig, to_flags(config), {}, ENVIRONMENT_PREFIX) == config


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--port", "80"],
        ["--port=eighty"],
        ["--port=1", "--port=2"],
        ["--prot=80"],
        ["--peer-sync=yes"],
        ["--no-port"],
        ["80"],
        ["--admission-tenant-weight=a"],
    ],
)
def test_what_a_supervisor_would_not_write_is_left_to_the_library(words):
    assert read_plain(FrontendConfig, words, {}, ENVIRONMENT_PREFIX) is None


def test_variables_are_read_where_they_are_words_and_left_to_the_library_where_not():
    assert read_plain(FrontendConfig, [], {"TOKENMILL_HOST": "::1"}, "TOKENMILL_").host == "::1"
    assert read_plain(FrontendConfig, ["--host=a"], {"TOKENMILL_HOST": "::1"}, "TOKENMILL_").host == "a"
    assert read_plain(FrontendConfig, [], {"TOKENMILL_PORT": "80"}, "TOKENMILL_") is None
    assert read_plain(FrontendConfig, ["--port=1"], {"TOKENMILL_PORT": "80"}, "TOKENMILL_").port == 1


@pytest.mark.parametrize("kind", [FrontendConfig, WorkerConfig])
def test_no_two_fields_share_a_flag(kind):
    flags = [
        item.name.removesuffix("s") if item.default_factory is dict else item.name for item in fields(kind)
    ]
    assert len(flags) == len(set(flags))
