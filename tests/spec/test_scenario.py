"""Scenario files: read as the others are, with all that is wrong at once."""

from __future__ import annotations

import pytest

from tokenmill.spec.factory import Slo
from tokenmill.spec.load_scenario import load_scenario, parse_scenario
from tokenmill.spec.problems import FactoryError
from tokenmill.spec.scenario import (
    Failure,
    LinkSetting,
    RequestClass,
    Scaling,
    Scenario,
    SlowLink,
    StageSetting,
    Straggler,
)
from tokenmill.spec.schema import file_schema
from tokenmill.spec.stage import Price

STAGES = {"prefill": 2, "decode": 1}

WHOLE = """
apiVersion: tokenmill/v1
kind: Scenario
metadata: {name: rough-day}
trace: "poisson:rate=5,seconds=600"
speedup: 2
limit: 1000
start_at_s: 10
end_at_s: 100
seed: 7
slo: {ttft_ms: 800, itl_ms: 40, percentile: 90}
start_s: 90
stages:
  decode: {start_s: 30, dollars_per_hour: 4.5, hosts: [a, b]}
events:
  failures: [{at_s: 60, stage: decode, worker: 2, back_after_s: 20}]
  stragglers: [{at_s: 10, until_s: 20, stage: prefill, worker: 1, factor: 3}]
  scaling: [{at_s: 30, stage: decode, workers: 3}]
  slow_links: [{at_s: 5, until_s: 6}]
links:
  between_hosts: {gb_per_s: 12.5, latency_ms: 0.5}
classes:
  - {name: gold, share: 0.25, priority: 5, tenant: a, slo: {ttft_ms: 200}, price: {input: 1, output: 4}}
  - {name: free, share: 0.75}
prices: {H100: 2}
"""


def parse(text: str):
    return parse_scenario(
        text, "s.yaml", stages=STAGES, is_known=lambda name: name in ("H100", "L40S"), known=["H100", "L40S"]
    )


def problems(text: str) -> list[str]:
    with pytest.raises(FactoryError) as caught:
        parse("metadata: {name: s}\n" + text)
    return [str(each) for each in caught.value.problems]


def test_all_of_it_is_read() -> None:
    scenario = parse(WHOLE)
    assert (scenario.metadata.name, scenario.seed, scenario.speedup, scenario.limit) == (
        "rough-day",
        7,
        2,
        1000,
    )
    assert scenario.trace == "poisson:rate=5,seconds=600"
    assert (scenario.start_at_s, scenario.end_at_s, scenario.start_s) == (10, 100, 90)
    assert scenario.slo == Slo(ttft_ms=800, itl_ms=40, percentile=90)
    assert scenario.stages == {"decode": StageSetting(start_s=30, dollars_per_hour=4.5, hosts=["a", "b"])}
    events = scenario.events
    assert events.failures == [Failure(at_s=60, stage="decode", worker=2, back_after_s=20)]
    assert events.stragglers == [Straggler(at_s=10, until_s=20, stage="prefill", worker=1, factor=3)]
    assert events.scaling == [Scaling(at_s=30, stage="decode", workers=3)]
    assert events.slow_links == [SlowLink(at_s=5, until_s=6)]
    assert scenario.links.between_hosts == LinkSetting(gb_per_s=12.5, latency_ms=0.5)
    assert scenario.links.same_host is None
    gold = RequestClass(
        name="gold", share=0.25, priority=5, tenant="a", slo=Slo(ttft_ms=200), price=Price(input=1, output=4)
    )
    assert scenario.classes == [gold, RequestClass(name="free", share=0.75)]
    assert scenario.prices == {"H100": 2}


def test_a_name_is_enough() -> None:
    scenario = parse("metadata: {name: calm}")
    assert (scenario.speedup, scenario.seed, scenario.trace, scenario.slo) == (1.0, 0, "", None)


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems(
        """
speedup: 0
seeds: 3
events:
  failures:
    - {at_s: 1, stage: decod}
    - {at_s: 1, stage: decode, worker: 1}
  stragglers: [{at_s: 5, until_s: 5, stage: prefill}]
  scaling: [{at_s: 1, stage: dcode, workers: 2}]
prices: {H1000: 1}
"""
    )
    assert found == [
        "s.yaml:3:10: speedup: must be more than 0, not 0",
        's.yaml:4:1: seeds: unknown field. Did you mean "seed"?',
        's.yaml:7:24: events.failures[0].stage: the factory has no stage "decod". Did you mean "decode"?',
        "s.yaml:8:40: events.failures[1].worker: is 1; decode has never more than 1 workers, numbered from 0",
        "s.yaml:9:35: events.stragglers[0].until_s: is 5; it must be later than 5",
        's.yaml:10:30: events.scaling[0].stage: the factory has no stage "dcode". Did you mean "decode"?',
        's.yaml:11:17: prices.H1000: "H1000" is not in the catalogue. Did you mean "H100"?',
    ]


def test_entries_behind_an_unreadable_one_are_not_blamed_by_a_wrong_number() -> None:
    found = problems("events: {failures: [{stage: decode}, {at_s: 1, stage: x}]}")
    assert found == ['s.yaml:2:21: events.failures[0].at_s: is missing; add "at_s:"']


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stages: {prefil: {start_s: 1}}", 'stages.prefil: the factory has no stage "prefil". Did you mean'),
        ("events: {scaling: [{at_s: 1, stage: x, workers: 2}]}", "It has prefill or decode"),
        (
            "events: {slow_links: [{at_s: 9, until_s: 3}]}",
            "slow_links[0].until_s: is 3; it must be later than 9",
        ),
        ("start_at_s: 9\nend_at_s: 3", "end_at_s: is 3; it must be later than 9"),
        ("classes: [{name: a}, {name: a}]", 'classes[1].name: "a" is also the name of classes[0]'),
        (
            "classes: [{name: a, share: 0.7}, {name: b, share: 0.7}]",
            "their shares are 1.4 together; at most 1",
        ),
        ("classes: [{name: a, share: 2}]", "classes[0].share: must be 1 or less"),
        ("events: {failures: [{stage: decode}]}", 'events.failures[0].at_s: is missing; add "at_s:"'),
        ("kind: Factory", '"Factory" is not Scenario'),
        ("links: {same_host: {gb_per_s: 0}}", "links.same_host.gb_per_s: must be more than 0"),
    ],
)
def test_each_mistake_names_its_field(text: str, says: str) -> None:
    assert any(says in each for each in problems(text))


def test_scaling_makes_room_for_workers_that_fail() -> None:
    scenario = parse(
        "metadata: {name: s}\nevents: {scaling: [{at_s: 1, stage: decode, workers: 4}], "
        "failures: [{at_s: 2, stage: decode, worker: 3}]}"
    )
    assert scenario.events.failures[0].worker == 3


def test_an_empty_file_and_a_missing_one(tmp_path) -> None:
    with pytest.raises(FactoryError, match="the file is empty"):
        parse("")
    with pytest.raises(Exception, match="no such file; name a scenario file"):
        load_scenario(tmp_path / "none.yaml", stages={}, is_known=lambda _: True, known=[])


def test_editors_are_told_every_field() -> None:
    schema = file_schema(Scenario)
    assert schema["$ref"] == "#/$defs/Scenario"
    for part in schema["$defs"].values():
        assert all(field.get("description") for field in part["properties"].values())
