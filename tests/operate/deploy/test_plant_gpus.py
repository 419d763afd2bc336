"""GPUs in the plan of what runs on this machine."""

from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.plant import held_gpus, process_specs
from tokenmill.operate.deploy.preflight import check_gpus, gpus_here
from tokenmill.spec.derive import scaled
from tokenmill.spec.load import parse_factory

TWO = """
metadata: {name: a}
frontend: {replicas: 0}
stages:
  - {name: p, role: prefill, engine: vllm, replicas: 2}
  - {name: d, role: decode, engine: vllm, parallel: {tp: 2}}
"""


def factory(text=TWO):
    return parse_factory(text, "f")


def test_workers_hold_the_gpus_that_their_engines_see():
    specs = process_specs(factory(), 4)
    assert [spec.config.gpus for spec in specs] == [[0], [1], [2, 3]]
    assert specs[2].exclusive == {"GPU 2", "GPU 3"}


def test_others_stay_as_they_are_when_a_stage_grows():
    before = process_specs(factory(), 4)
    after = process_specs(scaled(factory(), {"p": 3}), 4, held=held_gpus(before))
    assert [spec for spec in after if spec.name != "p-2"] == list(before)
    assert next(spec.config.gpus for spec in after if spec.name == "p-2") == [4]


def test_what_is_shared_on_purpose_is_nobodys_alone():
    shared = factory(TWO.replace("parallel: {tp: 2}", "gpus: [0]").replace("replicas: 2", "gpus: [0]"))
    specs = process_specs(shared, 4)
    assert [(spec.config.gpus, spec.exclusive) for spec in specs] == [([0], frozenset())] * 2


def test_embedded_and_attached_engines_hold_none():
    text = TWO.replace("engine: vllm", "engine: sim").replace(", parallel: {tp: 2}", "")
    assert [spec.config.gpus for spec in process_specs(factory(text), 4)] == [[], [], []]
    remote = factory(TWO.replace("replicas: 2", "attach: 'http://10.0.0.2:1'"))
    assert [spec.config.gpus for spec in process_specs(remote, 4)] == [[], [0, 1]]


def test_a_machine_that_is_known_to_have_too_few_is_told_at_once():
    check_gpus(factory(), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    check_gpus(factory(), {"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(ConfigError, match="stage d: GPUs 2, 3 are for replica 0, and 3 can be seen here"):
        check_gpus(factory(), {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_gpus_are_counted_by_their_devices(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus_here({}, tmp_path) == 2
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
