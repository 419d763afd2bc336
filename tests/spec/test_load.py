"""Factory files: what is read, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.spec import factory as parts
from tokenmill.spec.checks import ENGINES
from tokenmill.spec.load import dump_factory, load_factory, parse_factory
from tokenmill.spec.problems import FactoryError, one_of

GOOD = """\
apiVersion: tokenmill/v1
kind: Factory
metadata: {name: llama-70b}
model: {name: llama-3.3-70b, path: meta-llama/Llama-3.3-70B-Instruct}
slo: {ttft_ms: 500, itl_ms: 30.5, percentile: 95}
frontend: {port: 8000, replicas: 1}
router: {policy: least-loaded}
stages:
  - {name: prefill, role: prefill, replicas: 2, gpu: H100}
  - {name: decode, role: decode, gpu: H200, engine_args: {share: 0.9, eager: true}, cpus: [0, 1]}
planner: {mode: off}
"""


STAGE_FIELDS = ", ".join(parts.Stage.__struct_fields__)


def complaints(text):
    with pytest.raises(FactoryError) as caught:
        parse_factory(textwrap.dedent(text), "f.yaml")
    assert [str(each) for each in caught.value.problems] == str(caught.value).splitlines()
    return str(caught.value).splitlines()


def test_reads_the_designs_example():
    factory = parse_factory(GOOD, "f.yaml")
    assert factory.metadata.name == "llama-70b"
    assert factory.slo == parts.Slo(ttft_ms=500.0, itl_ms=30.5, percentile=95.0)
    assert factory.planner.mode == "off"
    prefill, decode = factory.stages
    assert (prefill.role, prefill.replicas, prefill.engine) == (Role.PREFILL, 2, "torch")
    assert decode.engine_args == {"share": "0.9", "eager": "true"}
    assert decode.cpus == [0, 1]


def test_the_smallest_file_gets_sensible_defaults():
    factory = parse_factory("metadata: {name: a}\nstages: [{name: w}]", "f.yaml")
    assert factory.stages == [parts.Stage(name="w", role=Role.BOTH, replicas=1, engine="torch")]
    assert factory.frontend.port == 8000
    assert factory.router.policy == "kv"


def test_all_that_is_wrong_is_said_at_once_with_its_place():
    assert complaints("""\
        apiVersion: tokenmill/v2
        kind: Factory
        metadata: {name: Llama_70b}
        model: {name: llama, pth: foo}
        frontend: {port: 80000, replicas: "1"}
        router: {prefill: locl}
        slo: {ttft_ms: 0}
        stages:
          - {name: prefill, role: prefill, replicas: -1}
          - name: decode
            role: decoder
            threads: 2
            threads: 3
            prefix_cache: maybe
            cpus: 3
            engine_args: []
            wrong: 1
    """) == [
        'f.yaml:1:13: apiVersion: "tokenmill/v2" is not tokenmill/v1. Did you mean "tokenmill/v1"?',
        (
            "f.yaml:3:18: metadata.name: \"Llama_70b\" must be 1 to 63 lower-case letters, digits and '-', "
            "with '-' neither first nor last, for example \"llama-70b\""
        ),
        'f.yaml:4:22: model.pth: unknown field. Did you mean "path"?',
        "f.yaml:5:18: frontend.port: must be 65535 or less, not 80000",
        'f.yaml:5:35: frontend.replicas: must be a whole number, not "1"; remove the quotes',
        'f.yaml:6:19: router.prefill: "locl" is not auto, local or remote. Did you mean "local"?',
        "f.yaml:7:16: slo.ttft_ms: must be more than 0, not 0",
        "f.yaml:9:46: stages[0].replicas: must be 0 or more, not -1",
        'f.yaml:11:11: stages[1].role: "decoder" is not prefill, decode or both. Did you mean "decode"?',
        "f.yaml:13:5: stages[1].threads: is here twice (first on line 12); remove one",
        'f.yaml:14:19: stages[1].prefix_cache: must be true or false, not "maybe"',
        'f.yaml:15:11: stages[1].cpus: must be a list, not "3"',
        "f.yaml:16:18: stages[1].engine_args: must be a mapping (key: value), not a list",
        f"f.yaml:17:5: stages[1].wrong: unknown field. Known here: {STAGE_FIELDS}.",
    ]


HEAD = "metadata: {name: a}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f:1:1: the file is empty; a factory has metadata and stages"),
        ("- 1", "f:1:1: must be a mapping (key: value), not a list"),
        ("kind: Factory\nstages: [{name: w}]", 'f:1:1: metadata: is missing; add "metadata:"'),
        (HEAD, 'f:1:1: stages: is missing; add "stages:"'),
        (HEAD + "stages:", 'f:1:1: stages: is missing; add "stages:"'),
        (
            HEAD + "stages: []",
            "f:2:9: stages: is empty; declare at least one stage, for example {name: worker, role: both}",
        ),
        (HEAD + "stages: [{role: both}]", 'f:2:10: stages[0].name: is missing; add "name:"'),
        (
            HEAD + "stages: [{name: p, role: prefill}]",
            (
                "f:2:26: stages[0].role: a prefill stage needs a decode stage beside it; "
                "add one, or use role: both"
            ),
        ),
        (
            HEAD + "stages: [{name: w}, {name: w}]",
            'f:2:28: stages[1].name: "w" is also the name of stages[0]; choose another',
        ),
        (
            HEAD + "stages: [{name: frontend}]",
            'f:2:17: stages[0].name: "frontend" names the front door; choose another',
        ),
        (
            HEAD + "router: {policy: sesion}\nstages: [{name: w}]",
            (
                'f:2:18: router.policy: "sesion" is not kv, least-loaded, power-of-two, round-robin, random '
                'or session. Did you mean "session"?'
            ),
        ),
        (
            HEAD + "stages: [{name: w, engine: trch}]",
            f'f:2:28: stages[0].engine: "trch" is not {one_of(ENGINES)}. Did you mean "torch"?',
        ),
        (
            HEAD + "stages: [{name: w, parallel: {tp: 4}}]",
            'f:2:30: stages[0].parallel: engine "torch" runs on one device; remove "parallel"',
        ),
        (
            HEAD + "stages: [{name: w, transports: [rdma]}]",
            'f:2:33: stages[0].transports[0]: "rdma" is not shm or tcp.',
        ),
        (
            HEAD + "frontend: {port: 65535, replicas: 2}\nstages: [{name: w}]",
            (
                "f:2:18: frontend.port: where ports cannot be shared replica i listens on port + i, "
                "and 65536 is above 65535; "
                "choose a lower port"
            ),
        ),
        ("a: [", "f:1:5: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n---\nb: 2", "f:3:1: a second document begins here; a file has one factory"),
        ("a: \x01", "f:1:1: not valid YAML: character #x0001 is not allowed"),
        ("[" * 5000, "f:1:1: is nested too deeply"),
    ],
)
def test_golden_messages(text, expected):
    with pytest.raises(FactoryError) as caught:
        parse_factory(text, "f")
    assert str(caught.value) == expected


def test_json_is_read_with_tabs_too():
    factory = parse_factory('{"metadata": {\n\t"name": "x"},\n\t"stages": [{"name": "w"}]}', "f.json")
    assert factory.metadata.name == "x"


def test_merge_keys_and_scratch_fields_help_to_say_things_once():
    factory = parse_factory(
        "x-common: &common {engine: sim, max_sequences: 8}\n"
        + HEAD
        + "stages: [{<<: *common, name: a}, {<<: *common, name: b, max_sequences: 9}]",
        "f",
    )
    assert [(stage.engine, stage.max_sequences) for stage in factory.stages] == [("sim", 8), ("sim", 9)]


def test_a_mapping_that_merges_itself_is_refused_not_followed():
    text = HEAD + "stages: [&self {<<: *self, name: w, oops: 1}]"
    with pytest.raises(FactoryError, match=r"stages\[0\].oops: unknown field"):
        parse_factory(text, "f")


def test_bare_words_are_texts_where_texts_are_wanted():
    factory = parse_factory(HEAD + "model: {name: 3.10}\nstages: [{name: 007, dtype: off}]", "f")
    assert (factory.model.name, factory.stages[0].name, factory.stages[0].dtype) == ("3.10", "007", "off")


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_factory(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_factory(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"metadata: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_factory(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="not a factory file"):
        load_factory(tmp_path / "big.yaml")


def test_what_is_written_leaves_defaults_out():
    assert dump_factory(parse_factory(HEAD + "stages: [{name: w, replicas: 2}]", "f")) == (
        "apiVersion: tokenmill/v1\nkind: Factory\nmetadata:\n  name: a\nstages:\n- name: w\n  replicas: 2\n"
    )


NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?\Z").filter(lambda name: name != "frontend")
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=20)
COUNTS = st.integers(0, 10**9)
SECONDS = st.floats(1e-6, 1e9, allow_nan=False)
STAGES = st.builds(
    parts.Stage,
    name=NAMES,
    replicas=st.integers(0, 5),
    engine=st.sampled_from(["torch", "sim"]),
    gpu=TEXTS,
    engine_args=st.dictionaries(TEXTS, TEXTS, max_size=3),
    cpus=st.lists(st.integers(0, 500), max_size=3),
    device=TEXTS.filter(bool),
    threads=COUNTS,
    kv_memory_mb=COUNTS,
    prefix_cache=st.booleans(),
    transports=st.lists(st.sampled_from(["shm", "tcp"]), max_size=2),
    lease_s=SECONDS,
)
FACTORIES = st.builds(
    parts.Factory,
    metadata=st.builds(parts.Metadata, name=NAMES),
    model=st.builds(parts.Model, name=TEXTS, path=TEXTS),
    slo=st.builds(parts.Slo, ttft_ms=SECONDS, percentile=st.floats(0.1, 100)),
    frontend=st.builds(parts.Frontend, port=st.integers(0, 60000), host=TEXTS, idle_timeout_s=SECONDS),
    router=st.builds(parts.Router, policy=st.just("least-loaded")),
    stages=st.lists(STAGES, min_size=1, max_size=3, unique_by=lambda stage: stage.name),
    planner=st.builds(parts.Planner, mode=st.sampled_from(["off", "advise", "auto"])),
)


@given(FACTORIES)
@settings(max_examples=100, deadline=None)
def test_what_is_written_reads_back_the_same(factory):
    assert parse_factory(dump_factory(factory), "f") == factory


@given(st.text(max_size=60) | st.from_regex(r"[\[\]{}:,&*<?!|>'\"a \n-]{0,40}"))
@settings(max_examples=150, deadline=None)
def test_no_text_does_worse_than_a_complaint(text):
    for source in (text, HEAD + "stages: " + text):
        with contextlib.suppress(FactoryError):
            assert parse_factory(source, "f").stages
