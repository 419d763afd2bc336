"""``tokenmill import``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.cli import main
from tokenmill.spec.load import load_factory

CASES = Path(__file__).parents[2] / "spec" / "imports" / "cases"
GRAPH = CASES / "dynamo-services.yaml"


def test_the_factory_goes_out_and_the_losses_to_the_side(capsys):
    assert main(["import", str(GRAPH)]) == 0
    said = capsys.readouterr()
    expected = GRAPH.with_suffix(".factory.yaml").read_text()
    assert said.out == f"# Imported from {GRAPH.name} (DynamoGraphDeployment).\n{expected}"
    losses = GRAPH.with_suffix(".losses.txt").read_text().splitlines()
    assert said.err.splitlines()[0] == f"Not carried over, or not for certain ({len(losses)}):"
    assert said.err.splitlines()[1:] == [f"{GRAPH}:{line}" for line in losses]


def test_it_can_be_written_to_a_file(tmp_path, capsys):
    target = tmp_path / "factory.yaml"
    assert main(["import", str(CASES / "kserve-disaggregated.yaml"), "--output", str(target)]) == 0
    assert capsys.readouterr().out == ""
    assert [stage.name for stage in load_factory(target).stages] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.yaml"], "missing.yaml: no such file; name a deployment file (YAML)"),
        ([str(GRAPH), "--name", "other"], "its deployments are small-disagg; name one of them with --name"),
        ([str(GRAPH), "--output", "/proc/no/such"], "--output /proc/no/such: cannot be written"),
    ],
)
def test_what_cannot_be_done_is_told(arguments, words, capsys):
    assert main(["import", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_factory_that_would_be_refused_is_told_and_written_all_the_same(tmp_path, capsys):
    graph = tmp_path / "g.yaml"
    text = GRAPH.read_text().replace("--is-prefill-worker", "--is-prefill-worker --kv-cache-dtype bfloat16")
    graph.write_text(
        text.replace("--tensor-parallel-size 4", "--tensor-parallel-size 4 --kv-cache-dtype fp8")
    )
    assert main(["import", str(graph)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("# Imported from g.yaml")
    assert "It does not load as it is:" in said.err
    assert "their caches' number formats differ" in said.err
