"""Mixed plants: the router computes the share of prompts on decode workers that the plan counts on."""

import random

import pytest
from tests.decide.fleet.fleets import ask, fleet, group

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.fleet.comparison import score
from tokenmill.decide.fleet.placement import place
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.scene import LinkScene, Scene, StageScene
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace, TracedRequest

LINK = LinkScene(bytes_per_s=3e11, latency_s=0.0005)
REQUESTS = 1200


def planned_mixed(asked):
    """The best mixed plant, and the engines behind its stages."""
    inventory, candidates, unfit = fleet(group("H100"))
    plan = place(asked, candidates, inventory, unfit)
    plants = [plan.best, *(each.plant for each in plan.runners_up if each.plant is not None)]
    plant = min((each for each in plants if each.kind == "mixed"), key=lambda each: score(asked, each))
    engines = [
        next(c for c in candidates if (c.group.name, c.parallel) == (stage.group, stage.parallel))
        for stage in plant.stages
    ]
    return plant, engines


def stage_of(planned, engine):
    batching = BatchingConfig(
        total_blocks=int(engine.replica.kv_capacity_tokens / 64),
        block_tokens=64,
        max_model_len=4000,
        role=planned.role,
        token_budget=planned.chunk_tokens + planned.max_sequences,
        prefill_budget=planned.chunk_tokens,
        max_sequences=planned.max_sequences,
    )
    return StageScene(
        name=planned.name,
        role=planned.role,
        workers=planned.replicas,
        batching=batching,
        times=ModelTimes(engine.replica.times),
        kv_bytes_per_token=engine.kv_bytes_per_token,
    )


def ran(asked, plant, engines, local_share):
    chance, at_s, traced = random.Random(3), 0.0, []
    for _ in range(REQUESTS):
        at_s += chance.expovariate(plant.rate_per_s)
        traced.append(TracedRequest(at_s, 3000, 150))
    scene = Scene(
        stages=[stage_of(*each) for each in zip(plant.stages, engines, strict=True)],
        links=LINK,
        same_host=LINK,
        router=RouterSettings(local_share=local_share, itl_ms=asked.promise.itl_ms),
        seed=1,
    )
    run = simulate(scene, Trace(traced))
    return run.requests[REQUESTS // 6 :]


def share(seen):
    return sum(each.prefill_worker == each.decode_worker for each in seen) / len(seen)


@pytest.mark.parametrize(("ttft", "itl"), [(1000, 25), (2000, 60)])
def test_a_planned_mixed_plant_does_as_planned(ttft, itl):
    asked = ask(ttft=ttft, itl=itl)
    plant, engines = planned_mixed(asked)
    assert any(stage.role is Role.PREFILL for stage in plant.stages)
    assert 0 < plant.local_share < 1
    seen = ran(asked, plant, engines, plant.local_share)
    assert share(seen) == pytest.approx(plant.local_share, abs=0.04)
    kept = sum(each.ttft_ms <= ttft and each.tpot_ms <= itl for each in seen) / len(seen)
    assert kept >= 0.9


def test_by_itself_the_router_sends_more_prompts_away():
    asked = ask(ttft=1000, itl=25)
    plant, engines = planned_mixed(asked)
    assert share(ran(asked, plant, engines, 0.0)) < plant.local_share - 0.05
