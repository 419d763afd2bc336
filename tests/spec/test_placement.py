"""Which GPUs each replica's engine sees."""

from __future__ import annotations

import pytest

from tokenmill.spec.derive import scaled
from tokenmill.spec.factory import Factory
from tokenmill.spec.load import parse_factory
from tokenmill.spec.placement import HERE, assign_gpus, gpus_of_replica, host_of, shared_gpus
from tokenmill.spec.problems import FactoryError


def factory(*stages: str) -> Factory:
    return parse_factory(
        "\n".join(["metadata: {name: a}", "stages:", *(f"  - {{{s}}}" for s in stages)]), "f"
    )


PREFILL = "name: p, role: prefill, engine: vllm, replicas: 2, parallel: {tp: 2}"
DECODE = "name: d, role: decode, engine: vllm, parallel: {tp: 2, dp: 2, ep: 4}"


def test_each_replica_gets_gpus_of_its_own_in_the_files_order():
    found = assign_gpus(factory(PREFILL, DECODE))
    assert found == {("p", 0): (0, 1), ("p", 1): (2, 3), ("d", 0): (4, 5, 6, 7)}


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ("name: a, engine: sim", 0),
        ("name: a, engine: vllm", 1),
        ("name: a, engine: vllm, device: cpu, parallel: {tp: 2}", 0),
        ("name: a, engine: vllm, parallel: {tp: 2, pp: 3}", 6),
        ("name: a, engine: vllm, parallel: {tp: 2, ep: 2}", 2),
    ],
)
def test_how_many_a_replica_needs(stage, needed):
    assert gpus_of_replica(factory(stage).stages[0]) == needed


def test_listed_ones_go_to_those_who_list_them_and_others_keep_away():
    found = assign_gpus(factory("name: q, engine: vllm, replicas: 2", "name: r, engine: vllm, gpus: [0, 2]"))
    assert found == {("q", 0): (1,), ("q", 1): (3,), ("r", 0): (0,)}


def test_a_list_is_dealt_out_again_where_it_is_too_short():
    one = factory("name: a, engine: vllm, replicas: 3, parallel: {tp: 2}, gpus: [4, 5, 6, 7]")
    found = assign_gpus(one)
    assert [found[("a", replica)] for replica in range(3)] == [(4, 5), (6, 7), (4, 5)]
    assert shared_gpus(one, found) == {(HERE, 4), (HERE, 5)}


def test_engines_on_another_machine_have_its_gpus():
    both = factory("name: a, engine: vllm", "name: b, engine: vllm, attach: 'http://10.0.0.2:80'")
    assert assign_gpus(both) == {("a", 0): (0,), ("b", 0): (0,)}
    assert [host_of(stage) for stage in both.stages] == [HERE, "10.0.0.2"]
    assert shared_gpus(both, assign_gpus(both)) == set()


def test_what_an_engine_found_here_has_is_not_known():
    both = factory("name: a, engine: vllm, attach: 'http://localhost:80'", "name: b, engine: vllm")
    assert assign_gpus(both) == {("b", 0): (0,)}


def test_who_has_gpus_keeps_them_when_others_come():
    before = factory(PREFILL, DECODE)
    after = assign_gpus(scaled(before, {"p": 3}), held=assign_gpus(before))
    assert after == {**assign_gpus(before), ("p", 2): (8, 9)}


def test_what_was_freed_is_given_again():
    before = factory(PREFILL, DECODE)
    held = assign_gpus(before)
    del held[("p", 0)]
    assert assign_gpus(before, held)[("p", 0)] == (0, 1)


def test_who_needs_another_number_gets_others():
    held = {("p", 0): (0,), ("d", 0): (1, 2, 3, 4)}
    found = assign_gpus(factory(PREFILL, DECODE), held)
    assert found[("d", 0)] == (1, 2, 3, 4)
    assert found[("p", 0)] == (0, 5)
    assert found[("p", 1)] == (6, 7)


def test_what_a_stage_lists_is_taken_from_who_has_it():
    before = factory("name: a, engine: vllm")
    after = factory("name: a, engine: vllm", "name: b, engine: vllm, gpus: [0]")
    assert assign_gpus(after, held=assign_gpus(before)) == {("a", 0): (1,), ("b", 0): (0,)}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            "name: a, engine: sim, gpus: [0]",
            "f:3:34: stages[0].gpus: are for engines of their own; remove it",
        ),
        ("name: a, engine: vllm, gpus: [0, 0]", "stages[0].gpus: name one twice"),
        (
            "name: a, engine: vllm, parallel: {tp: 2}, gpus: [0, 1, 2]",
            "stages[0].gpus: are 3, and each replica needs 2",
        ),
        ("name: a, engine: sim, parallel: {tp: 2}", 'stages[0].parallel: engine "sim" runs on one device'),
    ],
)
def test_what_cannot_be(stage, words):
    with pytest.raises(FactoryError) as raised:
        factory(stage)
    assert words in raised.value.message
