"""Bad files, and single things that are carried over or lost."""

from __future__ import annotations

import pytest

from tokenmill.spec.imports.importing import Imported, import_factory
from tokenmill.spec.imports.options import draft, read_options
from tokenmill.spec.imports.tree import MAX_VALUES
from tokenmill.spec.problems import FactoryError

GRAPH = """\
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: g}
spec:
  services:
    w:
      componentType: worker
      extraPodSpec: {mainContainer: {command: [python3, -m, dynamo.vllm], args: [--model, a/b, WORDS]}}
"""

SERVICE = """\
kind: LLMInferenceService
metadata: {name: s}
spec:
  model: {uri: URI, name: NAME}
"""


def graph(*words: str) -> Imported:
    return import_factory(GRAPH.replace("WORDS", ", ".join(words) or "--enforce-eager"), "g.yaml")


def whys(imported: Imported) -> list[str]:
    return [f"{loss.path}: {loss.why}" for loss in imported.losses]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1:1: there is no DynamoGraphDeployment and no LLMInferenceService here; it is empty."),
        ("a: 1", 'it has no "kind:"'),
        ("[1]", 'it has no "kind:"'),
        ("kind: DynamoGraphDeploymentRequest", 'has DynamoGraphDeploymentRequest. Did you mean "Dynam'),
        ("kind: DynamoGraphDeployment\nmetadata: {{ x }}-a", "f.yaml:2:18: not valid YAML"),
        ("kind: DynamoGraphDeployment\nmetadata: {name: a", "f.yaml:2:19: not valid YAML"),
        ("kind: DynamoGraphDeployment", 'f.yaml:1:1: is missing; add "spec:"'),
        ("kind: LLMInferenceService", 'f.yaml:1:1: is missing; add "spec:"'),
        (
            "kind: DynamoGraphDeployment\nspec: {a: 1}",
            'f.yaml:2:7: spec: has neither "services" (v1alpha1) nor "components" (v1beta1)',
        ),
        ("kind: DynamoGraphDeployment\nspec:\n  services: [a]", "f.yaml:3:13: spec.services: must be"),
        ("kind: DynamoGraphDeployment\nspec:\n  components: {a: 1}", "f.yaml:3:15: spec.components: must"),
        (
            "kind: DynamoGraphDeployment\nspec:\n  services:\n    w: {replicas: two}",
            'f.yaml:4:19: spec.services.w.replicas: must be a whole number, 0 or more, not "two"',
        ),
        (
            "kind: DynamoGraphDeployment\nspec:\n  services: {f: {componentType: frontend}}",
            "f.yaml:3:3: spec: nothing here runs an engine that Tokenmill knows",
        ),
        ("kind: DynamoGraphDeployment\nspec: {components: [{type: w}]}", "spec.components[0]: is missing"),
        ("kind: LLMInferenceService\nspec: {replicas: 1}", "spec: the model's uri is missing"),
        (GRAPH.replace("WORDS", "--is-prefill-worker"), "mainContainer.args: prefill workers alone make"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_told_with_its_line(text, message):
    with pytest.raises(FactoryError) as raised:
        import_factory(text, "f.yaml")
    assert message in raised.value.message


def test_all_that_is_wrong_is_told_at_once():
    text = GRAPH.replace("WORDS", "-x").replace(
        "componentType: worker", "componentType: [a]\n      replicas: x"
    )
    with pytest.raises(FactoryError) as raised:
        import_factory(text, "f.yaml")
    assert [problem.place.line for problem in raised.value.problems] == [7, 8]


def test_a_file_that_repeats_itself_without_bound_is_refused():
    lines = ["kind: DynamoGraphDeployment", "x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(FactoryError, match=f"unfolds to more than {MAX_VALUES} values"):
        import_factory("\n".join(lines), "f.yaml")


def test_of_several_deployments_one_is_named():
    two = GRAPH.replace("WORDS", "-x") + "---\n" + GRAPH.replace("WORDS", "-x").replace("name: g", "name: h")
    with pytest.raises(FactoryError, match="its deployments are g, h; name one of them with --name"):
        import_factory(two, "f")
    one = import_factory(two, "f", "h")
    assert one.factory.metadata.name == "h"
    assert "DynamoGraphDeployment g: only the deployment itself is read" in whys(one)


def test_references_and_merges_are_unfolded():
    text = (
        GRAPH.replace("WORDS", "-x").replace("    w:", "    w: &w").rstrip()
        + "\n    v:\n      <<: *w\n      replicas: 3\n"
    )
    stages = import_factory(text, "f").factory.stages
    assert [(stage.name, stage.replicas) for stage in stages] == [("w", 1), ("v", 3)]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--tensor-parallel-size=4"], "parallel.tp", 4),
        (["-tp", "'4'"], "parallel.tp", 4),
        (["--data-parallel-size", "'2'", "--enable-expert-parallel"], "parallel.ep", 2),
        (["--max-num-seqs", "'7'"], "max_sequences", 7),
        (["--max-model-len", "32k"], "engine_args", {"max_model_len": "32k"}),
        (["--no-enable-prefix-caching"], "prefix_cache", False),
        (["--dtype", "float16"], "dtype", "float16"),
        (["--enforce-eager"], "engine_args", {"enforce_eager": "true"}),
        (["--no-async-scheduling"], "engine_args", {"async_scheduling": "false"}),
        (["--seed", "'1'", "--seed=2"], "engine_args", {"seed": "2"}),
        (["--host", "0.0.0.0", "--port", "'80'"], "engine_args", {}),
    ],
)
def test_options(words, field, value):
    found = graph(*words).factory.stages[0]
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("config", "kept", "why"),
    [
        ('{"kv_connector":"NixlConnector","kv_role":"kv_both"}', False, ""),
        ('{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_device":"cpu"}', True, ""),
        (
            '{"kv_connector":"OtherConnector","kv_role":"kv_both"}',
            False,
            "does not hand over through OtherConnector",
        ),
        ("{", False, "is no JSON object"),
    ],
)
def test_connectors(config, kept, why):
    drafted = draft("vllm", ["--kv-transfer-config", config], lambda _: None)
    assert ("kv_transfer_config" in drafted.engine_args) == kept
    assert [text for _, text in drafted.losses if why in text] == [text for _, text in drafted.losses]
    assert bool(drafted.losses) == bool(why)


def test_words_are_split_into_options_and_others():
    alone, options = read_options(["m", "--a", "--b", "1", "--c=d=e", "-n", "-1", "last"])
    assert alone == ["m", "last"]
    assert options == {"a": "true", "b": "1", "c": "d=e", "n": "-1"}


@pytest.mark.parametrize(
    ("uri", "name", "path", "served", "lost"),
    [
        ("hf://a/b", "a/b", "a/b", "", []),
        (
            "hf://a/b:v1",
            "c",
            "a/b",
            "c",
            ["spec.model.uri: the revision, v1: model.path is whatever revision is"],
        ),
        (
            "pvc://p/d",
            "a/b",
            "a/b",
            "",
            ["spec.model.uri: pvc:// is storage of the cluster; model.path is the mo"],
        ),
        (
            "s3://p/d",
            "c",
            "./d",
            "c",
            ["spec.model.uri: s3:// is storage of the cluster; put the checkpoint into ./d"],
        ),
    ],
)
def test_where_a_service_has_its_model(uri, name, path, served, lost):
    imported = import_factory(SERVICE.replace("URI", uri).replace("NAME", name), "f")
    assert (imported.factory.model.path, imported.factory.model.name) == (path, served)
    told = [why for why in whys(imported) if why.startswith("spec.model")]
    assert [why.startswith(start) for why, start in zip(told, lost, strict=True)] == [True] * len(lost)


def test_a_service_whose_words_no_shell_would_take():
    env = '[{name: VLLM_ADDITIONAL_ARGS, value: "--a \'b"}]'
    text = SERVICE.replace("URI", "hf://a/b") + f"  template: {{containers: [{{name: main, env: {env}}}]}}\n"
    with pytest.raises(
        FactoryError, match=r"f:5:46: .*env\[0\]: VLLM_ADDITIONAL_ARGS is not what a shell takes"
    ):
        import_factory(text, "f")


def test_several_models_become_several():
    text = GRAPH.replace("WORDS", "-x")
    other = text[text.index("    w:") :].replace("    w:", "    v:").replace("a/b", "c/d")
    factory = import_factory(text + other, "f").factory
    assert [model.name for model in factory.models] == ["a/b", "c/d"]
    assert [stage.model for stage in factory.stages] == ["a/b", "c/d"]
