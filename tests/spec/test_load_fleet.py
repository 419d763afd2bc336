"""Fleet files: all that is wrong is said at once, with line, field and fix."""

from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.spec.fleet import Fleet
from tokenmill.spec.load_fleet import load_fleet, parse_fleet
from tokenmill.spec.problems import FactoryError

KNOWN = ["h100-sxm", "l40s"]
OWN = 'Or describe it under "gpus".'
LACKING = "memory_gb_per_s, pcie_gb_per_s, nic_gb_per_s, power_w"


def read(text: str) -> Fleet:
    return parse_fleet(text, "f", is_known=lambda name: name.lower() in KNOWN, known=KNOWN)


def problems(text: str) -> list[str]:
    with pytest.raises(FactoryError) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_small_file() -> None:
    fleet = read("metadata: {name: lab}\nnodes: [{name: a, gpu: L40S, dollars_per_gpu_hour: 1}]\n")
    assert fleet.nodes[0].dollars_per_gpu_hour == 1.0
    assert fleet.nodes[0].availability == "on-demand"
    assert read("metadata: {name: lab}\nnodes: [{name: a, gpu: l40s}]").nodes[0].dollars_per_gpu_hour is None


def test_fields_are_judged_where_they_stand() -> None:
    found = problems(
        """metadata: {name: lab}
nodes:
  - {name: a, gpu: l40s, coutn: 2}
  - {name: b, gpu: l40s, availability: spott}
  - {name: c, gpu: l40s, dollars_per_gpu_hour: -1}
  - {gpu: l40s}
"""
    )
    assert found == [
        'f:3:26: nodes[0].coutn: unknown field. Did you mean "count"?',
        'f:4:40: nodes[1].availability: "spott" is not on-demand, reserved or spot. Did you mean "spot"?',
        "f:5:48: nodes[2].dollars_per_gpu_hour: must be 0 or more, not -1",
        'f:6:5: nodes[3].name: is missing; add "name:"',
    ]


def test_what_does_not_fit_together() -> None:
    found = problems(
        """metadata: {name: lab}
nodes:
  - {name: a, gpu: h10-sxm, zone: east, interruptions_per_day: 1}
  - {name: a, gpu: l40s, zone: west}
links:
  - {zones: [east, wst], gb_per_s: 1}
  - {zones: [east], gb_per_s: 1}
prices: {l40: 2.0}
gpus:
  - {name: mine, memory_gib: 3, tflops: {bf32: 1}}
  - {name: l40s, tflops: {fp8: 1}}
"""
    )
    assert found == [
        f'f:3:20: nodes[0].gpu: "h10-sxm" is not in the catalogue. Did you mean "h100-sxm"? {OWN}',
        "f:3:64: nodes[0].interruptions_per_day: only spot nodes are taken away; these are on-demand",
        'f:4:12: nodes[1].name: "a" is also the name of nodes[0]; choose another',
        'f:6:20: links[0].zones[1]: no nodes are in zone "wst". Did you mean "west"?',
        "f:7:13: links[1].zones: must be two different zones, for example [east, west]",
        f'f:8:15: prices.l40: "l40" is not in the catalogue. Did you mean "l40s"? {OWN}',
        f'f:10:5: gpus[0]: "mine" is not in the catalogue, so that it needs {LACKING} too',
        'f:10:48: gpus[0].tflops.bf32: is not fp32, tf32, bf16, fp16, fp8, int8 or fp4. Did you mean "tf32"?',
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the file is empty"),
        ("metadata: {name: lab}\nnodes: []\n", "give at least one"),
        ("metadata: {name: Lab}\nnodes: [{name: a, gpu: l40s}]", '"Lab" must be'),
        ("kind: Factory\nmetadata: {name: a}\nnodes: [{name: a, gpu: l40s}]", '"Factory" is not Fleet'),
        ("nodes: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "f:3:1: a second document begins here; a file has one fleet"),
    ],
)
def test_other_files_are_refused(text: str, what: str) -> None:
    assert what in problems(text)[0]


def test_a_gpu_of_ones_own_needs_the_wide_rate() -> None:
    own = (
        "{name: m, memory_gib: 1, tflops: {fp8: 1}, "
        + "".join(f"{name}: 1, " for name in LACKING.split(", "))
        + "}"
    )
    found = problems(f"metadata: {{name: l}}\nnodes: [{{name: a, gpu: m}}]\ngpus: [{own}]\n")
    assert len(found) == 1
    assert "needs bf16" in found[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a fleet file"):
        load_fleet(tmp_path / "none.yaml", is_known=lambda _: True, known=[])
