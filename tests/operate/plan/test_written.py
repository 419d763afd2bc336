"""What a written plan says beyond its stages: the share of prompts, and unequal workers' step times."""

import msgspec
import pytest
from tests.decide.fleet.fleets import ask, fleet, group

from tokenmill.decide.fleet.placement import place
from tokenmill.operate.plan.written import planned_factory, tables_of
from tokenmill.protocol.ids import Role
from tokenmill.spec.factory import Factory, Metadata, Model, Slo
from tokenmill.spec.stage import Stage


@pytest.fixture(scope="module")
def planned():
    inventory, candidates, unfit = fleet(group("H100"))
    plan = place(ask(ttft=2000, itl=60), candidates, inventory, unfit)
    plants = [plan.best, *(each.plant for each in plan.runners_up if each.plant is not None)]
    return {plant.kind: plant for plant in plants}, candidates


def factory():
    return Factory(
        metadata=Metadata(name="f"),
        model=Model(name="m", path="m"),
        stages=[Stage(name="worker", role=Role.BOTH, engine="vllm", gpu="H100")],
    )


def written(plant, files=None):
    declared = factory()
    return planned_factory(declared, declared.model, Slo(), plant, files)


def test_a_mixed_plant_says_what_share_of_prompts_it_counts_on(planned):
    plants, _ = planned
    assert written(plants["mixed"]).router.local_share == pytest.approx(plants["mixed"].local_share, abs=1e-3)
    assert 0 < plants["mixed"].local_share < 1
    assert written(plants["disaggregated"]).router.local_share == 0
    assert written(plants["aggregated"]).router.local_share == 0


def unequal(plant):
    """The plant's decoding stage twice, on two engines."""
    stage = next(each for each in plant.stages if each.role is not Role.PREFILL)
    others = [each for each in plant.stages if each.role is Role.PREFILL]
    twice = [msgspec.structs.replace(stage, name=name) for name in ("one", "other")]
    return msgspec.structs.replace(plant, stages=(*others, *twice))


def test_only_unequal_workers_tell_step_times(planned):
    plants, candidates = planned
    plant = plants["disaggregated"]
    assert tables_of(plant, candidates) == {}
    tables = tables_of(unequal(plant), candidates)
    assert set(tables) == {"one", "other"}
    decode = next(each for each in plant.stages if each.role is Role.DECODE)
    engine = next(c for c in candidates if c.parallel == decode.parallel)
    assert tables["one"] == engine.replica.times.table


def test_stages_name_their_files(planned):
    plants, _ = planned
    stages = written(unequal(plants["disaggregated"]), {"one": "p.one.steps.json"}).stages
    assert {each.name: each.step_times for each in stages if each.role is Role.DECODE} == {
        "one": "p.one.steps.json",
        "other": "",
    }
