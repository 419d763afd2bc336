"""Several models in one file, and engines mixed stage by stage: what is taken, what is refused and why."""

from __future__ import annotations

import textwrap

import pytest

from tokenmill.protocol.handoffs import HANDOFFS, Side, why_not
from tokenmill.spec.derive import (
    model_of,
    names_of_models,
    stages_of,
    to_frontend_config,
    worker_config,
)
from tokenmill.spec.load import dump_factory, parse_factory
from tokenmill.spec.mixes import stages_without_partner
from tokenmill.spec.problems import FactoryError

from .worker_configs import worker_configs

TWO = """
metadata: {name: two}
models:
  - {name: big, path: /models/big}
  - {name: small, path: /models/small}
stages:
  - {name: big-p, model: big, role: prefill}
  - {name: big-d, model: big, role: decode, replicas: 2}
  - {name: small, model: small, engine: sim}
"""


def read(text: str):
    return parse_factory(textwrap.dedent(text), "f")


def refused(text: str) -> list[str]:
    with pytest.raises(FactoryError) as caught:
        read(text)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def test_each_worker_is_told_its_model_and_the_front_door_all():
    factory = read(TWO)
    assert [(each.stage, each.model_name, each.model) for each in worker_configs(factory)] == [
        ("big-p", "big", "/models/big"),
        ("big-d", "big", "/models/big"),
        ("big-d", "big", "/models/big"),
        ("small", "small", "/models/small"),
    ]
    front = to_frontend_config(factory)
    assert (front.model, front.model_name) == ("", "")
    assert front.model_paths == {"big": "/models/big", "small": "/models/small"}
    assert names_of_models(factory) == ["big", "small"]
    assert [stage.name for stage in stages_of(factory, factory.models[0])] == ["big-p", "big-d"]
    assert parse_factory(dump_factory(factory), "f") == factory


def test_one_model_in_the_list_is_the_same_as_one_beside_it():
    listed = read("metadata: {name: a}\nmodels: [{name: m, path: /m}]\nstages: [{name: w}]")
    alone = read("metadata: {name: a}\nmodel: {name: m, path: /m}\nstages: [{name: w, model: m}]")
    assert to_frontend_config(listed) == to_frontend_config(alone)
    assert worker_configs(listed) == worker_configs(alone)
    assert model_of(listed, listed.stages[0]).path == "/m"


def test_models_behind_servers_of_text_need_no_checkpoint():
    factory = read(
        """
        metadata: {name: a}
        models:
          - {name: own, path: /m}
          - {name: hosted, path: vendor/model-large}
        stages:
          - {name: own, model: own}
          - {name: hosted, model: hosted, engine: openai, attach: "https://host/v1", attach_key: env:KEY,
             price: {input: 0.5, output: 1.5}}
        """
    )
    front = to_frontend_config(factory)
    assert (front.model_paths, front.text_models) == ({"own": "/m"}, ["hosted"])
    worker = worker_config(factory, factory.stages[1], 0)
    assert (worker.model, worker.model_name, worker.attach_key) == ("vendor/model-large", "hosted", "env:KEY")
    assert (worker.price_input, worker.price_cached, worker.price_output) == (0.5, -1, 1.5)


def test_a_server_of_text_without_a_name_for_its_model_offers_all_that_it_lists():
    factory = read('metadata: {name: a}\nstages: [{name: w, engine: openai, attach: "http://h:1"}]')
    assert to_frontend_config(factory).text_models == ["*"]
    assert names_of_models(factory) == ["*"]


@pytest.mark.parametrize(
    ("models", "stages", "problem"),
    [
        (
            "[{name: a}, {name: b}]",
            "[{name: w, model: a}]",
            'models[1]: no stage makes its tokens; give one "model: b", or remove it',
        ),
        (
            "[{name: a}, {name: a}]",
            "[{name: w, model: a}]",
            'models[1].name: "a" is also the name of models[0]; choose another',
        ),
        (
            "[{name: a}, {path: /b}]",
            "[{name: w, model: a}]",
            "models[1].name: is missing; of several models each needs a name",
        ),
        (
            "[{name: alpha}, {name: beta}]",
            "[{name: w, model: alpha}, {name: v, model: betta}]",
            'stages[1].model: "betta" is not the name of a model here: alpha or beta. Did you mean "beta"?',
        ),
        (
            "[{name: a}, {name: b}]",
            "[{name: w, model: a}, {name: v}]",
            "stages[1].model: is missing; say which of the models it serves: a or b",
        ),
        (
            "[{name: a}, {name: b}]",
            "[{name: w, model: a}, {name: p, model: b, role: prefill}]",
            "stages[1].role: a prefill stage needs a decode stage beside it; add one, or use role: both",
        ),
        (
            "[{name: a}]",
            '[{name: w}, {name: t, engine: openai, attach: "http://h:1"}]',
            (
                'stages[1].engine: engine "openai" takes text, and stage w (torch) of the same model takes '
                "token ids; make it a model of its own under models"
            ),
        ),
        (
            "[{name: a}]",
            "[{name: t, engine: openai}]",
            'stages[0].attach: is missing; engine "openai" needs the address of a server, say https://host/v1',
        ),
    ],
)
def test_what_does_not_fit_together_is_named(models, stages, problem):
    assert refused(f"metadata: {{name: x}}\nmodels: {models}\nstages: {stages}") == [problem]


def test_model_and_models_do_not_go_together():
    problems = refused(
        "metadata: {name: x}\nmodel: {name: a}\nmodels: [{name: b}]\nstages: [{name: w, model: b}]"
    )
    assert problems == ["model: is here beside models; declare all models under models"]


def test_a_server_of_text_hands_no_cache_over():
    assert 'stages[0].role: engine "openai" hands no KV cache over; use role: both' in refused(
        """
            metadata: {name: x}
            stages:
              - {name: p, role: prefill, engine: openai, attach: "http://h:1"}
              - {name: d, role: decode, engine: openai, attach: "http://h:1"}
            """
    )


@pytest.mark.parametrize(
    ("prefill", "decode", "words"),
    [
        ("engine: sim", "engine: torch", ("stage p (sim)", "stage d (torch)", "use one engine for both")),
        ("engine: vllm", "engine: sim", ("stage p (vllm)", "stage d (sim)", "use one engine for both")),
        (
            "transports: [shm]",
            "transports: [tcp]",
            ("no transport in common", "name one for both in transports"),
        ),
        (
            "block_tokens: 32",
            "block_tokens: 8",
            ("32 tokens a block are not 8", "give both the same block_tokens"),
        ),
        ("dtype: float32", "dtype: bfloat16", ("(float32, bfloat16)", "give both the same")),
        (
            "engine: vllm, engine_args: {kv_cache_dtype: fp8}",
            "engine: vllm, engine_args: {kv-cache-dtype: bfloat16}",
            ("(fp8, bfloat16)", "give both the same"),
        ),
    ],
)
def test_an_impossible_mix_names_both_stages_and_the_fix(prefill, decode, words):
    first, *_ = refused(
        f"""
        metadata: {{name: x}}
        stages:
          - {{name: p, role: prefill, {prefill}}}
          - {{name: d, role: decode, {decode}}}
        """
    )
    assert first.startswith("stages[0].engine: ")
    assert all(word in first for word in words), first


def test_engines_mix_where_each_stage_has_a_partner():
    factory = read(
        """
        metadata: {name: x}
        stages:
          - {name: p1, role: prefill, engine: vllm}
          - {name: d1, role: decode, engine: vllm}
          - {name: p2, role: prefill, engine: torch, dtype: float32}
          - {name: d2, role: decode, engine: torch}
          - {name: b, engine: sim, block_tokens: 64}
        """
    )
    assert list(stages_without_partner(factory)) == []


def test_versions_of_one_engine_mix_where_its_handoff_allows_it():
    vllm = read(
        """
        metadata: {name: x}
        stages:
          - {name: p, role: prefill, engine: vllm}
          - {name: d, role: decode, engine: vllm}
        """
    )
    assert list(stages_without_partner(vllm, {"p": "0.31.0"})) == []
    found = [(stage.name, why) for stage, why in stages_without_partner(vllm, {"p": "0.31.0", "d": "0.32.0"})]
    assert [name for name, _ in found] == ["p", "d"]
    assert "stage p (vllm 0.31.0) cannot hand its KV cache over to stage d (vllm 0.32.0)" in found[0][1]
    torch = read("metadata: {name: x}\nstages: [{name: p, role: prefill}, {name: d, role: decode}]")
    assert list(stages_without_partner(torch, {"p": "1", "d": "2"})) == []


def side(engine: str, **fields) -> Side:
    return Side(name="s", engine=engine, **fields)


def test_every_engine_hands_over_to_itself_but_those_that_speak_text():
    for engine, rules in HANDOFFS.items():
        assert (why_not(side(engine), side(engine)) == "") is bool(rules), engine


def test_an_engine_of_ones_own_needs_a_transport_in_common():
    both = side("mine", transports=("rdma", "tcp"))
    assert why_not(both, side("mine", transports=("tcp",))) == ""
    assert "no transport in common" in why_not(both, side("mine", transports=("shm",)))
    assert "models or number formats differ" in why_not(side("mine", meaning="a"), side("mine", meaning="b"))


def test_each_model_may_name_its_tool_parser() -> None:
    two = read(TWO.replace("path: /models/small", "path: /models/small, tool_parser: hermes"))
    config = to_frontend_config(two)
    assert (config.tool_parser, config.model_tool_parsers) == ("auto", {"small": "hermes"})
    one = read("""
    metadata: {name: one}
    model: {path: /models/one, tool_parser: none}
    stages: [{name: all, role: both}]
    """)
    config = to_frontend_config(one)
    assert (config.tool_parser, config.model_tool_parsers) == ("none", {})


def test_tool_parsers_are_checked() -> None:
    (said,) = refused(TWO.replace("path: /models/small", "path: /models/small, tool_parser: herms"))
    assert "tool_parser" in said
    assert "hermes" in said
    (said,) = refused("""
    metadata: {name: text}
    model: {name: m, tool_parser: hermes}
    stages: [{name: all, role: both, engine: openai, attach: "http://127.0.0.1:1/v1"}]
    """)
    assert "model.tool_parser: has no effect" in said
