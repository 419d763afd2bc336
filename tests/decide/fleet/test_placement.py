"""Plans for real GPUs and a real model: what is chosen, why others lose, what is said when nothing does."""

import msgspec
import pytest
from tests.decide.fleet.fleets import ask, fleet, group, llama_70b, source

from tokenmill.decide.fleet import enumeration, milp
from tokenmill.decide.fleet.candidates import find_candidates, parallels
from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.fleet.options import board_of
from tokenmill.decide.fleet.placement import place, solve
from tokenmill.decide.fleet.problem import undominated
from tokenmill.decide.perf.model_config import shape_of
from tokenmill.protocol.ids import Role

H100 = group("H100")
needs_solver = pytest.mark.skipif(not milp.available(), reason="needs the extra [plan]")


def planned(asked, *groups, **more):
    inventory, candidates, unfit = fleet(*groups, **more)
    return place(asked, candidates, inventory, unfit)


def test_a_plan_keeps_the_level_on_the_fleet_that_is_there():
    plan = planned(ask(rate=6.0), H100)
    best = plan.best
    assert best.rate_per_s == 6.0 <= best.most_rate_per_s
    assert best.ttft_ms <= 1000
    assert best.itl_ms <= 30
    assert best.within >= 0.9
    assert best.gpus == sum(stage.gpus for stage in best.stages) <= 8
    assert best.dollars_per_hour == pytest.approx(best.gpus * H100.dollars_per_hour)
    assert best.tokens_per_s_per_gpu == pytest.approx(6.0 * 150 / best.gpus)
    for stage in best.stages:
        assert stage.replicas * stage.parallel.tp == stage.gpus
        assert 0 < stage.load <= 1.002
        assert 0 < stage.busy <= 1.002


def test_the_money_of_a_plant_is_what_its_tokens_bring_in():
    for asked in (ask(rate=6.0), ask(rate=3.0, cached=2000), ask(rate=4.0, itl=60, ttft=3000)):
        best = planned(asked, H100).best
        load, prices = asked.workload, best.dollars_per_million
        income = load.new_tokens * prices.input + load.output_tokens * prices.output
        income += load.cached_tokens * (prices.cached or 0.0)
        assert income * asked.rate_per_s * 3600 / 1e6 == pytest.approx(best.dollars_per_hour)
        assert (prices.cached is None) == (load.cached_tokens == 0)


def test_a_cached_token_costs_less_than_a_new_one():
    prices = planned(ask(rate=3.0, cached=2000), H100).best.dollars_per_million
    assert 0 < prices.cached < prices.input


def test_kinds_are_compared_at_the_same_level():
    plan = planned(ask(itl=25), H100)
    kinds = {plan.best.kind} | {each.what for each in plan.runners_up}
    assert {"aggregated", "disaggregated"} <= kinds
    for each in plan.runners_up:
        assert each.why
        assert each.plant.rate_per_s <= plan.best.rate_per_s * 1.02
        assert each.plant.ttft_ms <= 1000
        assert each.plant.itl_ms <= 25


def test_disaggregation_pays_where_the_time_between_tokens_is_tight_and_not_where_outputs_are_all():
    tight = planned(ask(isl=3000, osl=150, itl=25), H100)
    assert Role.PREFILL in {stage.role for stage in tight.best.stages}
    (aggregated,) = [each.plant for each in tight.runners_up if each.what == "aggregated"]
    assert tight.best.rate_per_s > 1.1 * aggregated.rate_per_s
    long_answers = planned(ask(isl=100, osl=1000, itl=50, ttft=3000), H100).best
    assert long_answers.kind == "aggregated"


@needs_solver
def test_cheap_gpus_decode_while_quick_ones_read():
    """The mixed fleet beats the best that either type does alone."""
    asked = ask(rate=8.0, itl=30)
    plan = planned(asked, group("H100", dollars=4.0), group("A100", nodes=2, dollars=1.2))
    gpus = {stage.gpu for stage in plan.best.stages}
    assert len(gpus) == 2
    alone = [each for each in plan.runners_up if each.what.endswith("only") and each.plant is not None]
    assert alone
    assert all(each.plant.dollars_per_hour > plan.best.dollars_per_hour for each in alone)


@needs_solver
def test_one_stage_may_stand_on_several_types():
    plan = planned(ask(isl=100, osl=1000, itl=50, ttft=3000), H100, group("H200"))
    (role,) = {stage.role for stage in plan.best.stages}
    assert role is Role.BOTH
    assert len({stage.gpu for stage in plan.best.stages}) == 2
    assert sum(stage.rate_per_s for stage in plan.best.stages) == pytest.approx(plan.best.rate_per_s)
    names = [stage.name for stage in plan.best.stages]
    assert len(set(names)) == len(names)


@needs_solver
def test_what_is_least_follows_the_objective():
    groups = (group("H100", dollars=2.0), group("H200", dollars=9.0))
    cost, gpus, power = (planned(ask(rate=5.0, objective=o), *groups).best for o in ("cost", "gpus", "power"))
    assert cost.dollars_per_hour <= min(gpus.dollars_per_hour, power.dollars_per_hour) + 1e-9
    assert gpus.gpus <= min(cost.gpus, power.gpus)
    assert power.power_w <= min(cost.power_w, gpus.power_w) + 1e-9


@needs_solver
def test_what_is_paid_for_anyway_is_used_first():
    owned = group("A100", nodes=1, availability="reserved", dollars=5.0)
    best = planned(ask(rate=0.5, ttft=3000, itl=50), group("H100", dollars=2.0), owned).best
    assert {stage.gpu for stage in best.stages} == {owned.gpu.name}


def test_as_much_as_the_fleet_can():
    most = planned(ask(), H100).best
    again = planned(ask(rate=most.rate_per_s * 0.98), H100).best
    assert again is not None
    assert planned(ask(rate=most.rate_per_s * 1.05), H100).best is None


def test_a_busier_plant_needs_no_fewer_gpus():
    sizes = [
        planned(ask(rate=rate, objective="gpus"), group("H100", nodes=2)).best.gpus for rate in (1, 4, 8, 14)
    ]
    assert sizes == sorted(sizes)


@needs_solver
def test_too_few_gpus_are_named_and_what_would_do_does():
    plan = planned(ask(rate=30.0), H100)
    assert plan.best is None
    assert any(words.startswith("GPUs: 8 are too few") for words in plan.binding)
    nearest = {each.change: each.value for each in plan.nearest}
    assert planned(ask(rate=nearest["rate_per_s"]), H100).best is not None
    needed = -(-int(nearest["gpus"]) // 8)
    assert planned(ask(rate=30.0), group("H100", nodes=needed + 1)).best is not None


@pytest.mark.parametrize(("limit", "asked"), [("ttft_ms", ask(ttft=20)), ("itl_ms", ask(itl=4))])
def test_a_level_out_of_reach_is_named_and_the_nearest_is_in_reach(limit, asked):
    plan = planned(asked, H100)
    assert plan.best is None
    assert [words.partition(":")[0] for words in plan.binding] == [limit]
    (nearest,) = plan.nearest
    assert nearest.change == limit
    key = limit.removesuffix("_ms")
    assert planned(ask(**{key: nearest.value}), H100).best is not None
    assert planned(ask(**{key: nearest.value * 0.7}), H100).best is None


def test_a_model_that_fits_nowhere_says_what_it_lacks():
    inventory = Inventory([group("L40S", gpus_per_node=1)], {})
    candidates, unfit = find_candidates(llama_70b(), inventory, source(), longest=4000)
    assert candidates == []
    plan = place(ask(rate=1.0), candidates, inventory, unfit)
    assert plan.best is None
    assert plan.binding[0].startswith("memory:")
    assert plan.nearest == ()


def test_a_sequence_that_no_cache_holds_is_refused_with_the_numbers():
    inventory = Inventory([group("H100", gpus_per_node=2)], {})
    candidates, unfit = find_candidates(llama_70b(), inventory, source(), longest=1e7)
    assert candidates == []
    assert any("the longest request has 10000000" in each.reason for each in unfit)


@needs_solver
def test_a_slow_way_between_zones_keeps_stages_together():
    """Prompts computed in one zone and decoded in another need a link that carries them."""
    zones = (group("H100", zone="east", dollars=4.0), group("A100", zone="west", dollars=1.0))
    asked = ask(rate=7.0, itl=30)
    fast = planned(asked, *zones, zone_links={("east", "west"): Link(gb_per_s=50.0, latency_ms=1.0)}).best
    slow = planned(asked, *zones, zone_links={("east", "west"): Link(gb_per_s=0.5, latency_ms=1.0)}).best
    assert {stage.zone for stage in fast.stages} == {"east", "west"}
    assert fast.handing[0].per_s == pytest.approx(7.0, rel=0.3)
    moved = sum(
        each.per_s for each in slow.handing if each.sender.split("/")[0] != each.receiver.split("/")[0]
    )
    assert moved <= 0.5 * 0.5e9 / (3000 * 163_840)
    assert slow.dollars_per_hour > fast.dollars_per_hour


@needs_solver
def test_small_fleets_are_solved_alike_by_trying_all_and_by_the_linear_program():
    inventory, candidates, _ = fleet(H100, group("A100", gpus_per_node=4))
    for rate in (2.0, 6.0, 9.0):
        board = board_of(ask(rate=rate), candidates, inventory, quick=True)
        problem = board.only(undominated(board.problem)).problem
        tried = enumeration.cheapest(problem, rate)
        solved = milp.cheapest(problem, rate, gap=0.0)
        assert solved.cost == pytest.approx(tried.cost)


@needs_solver
def test_a_thousand_gpus_of_six_types():
    groups = [
        group(gpu, nodes=nodes)
        for gpu, nodes in (
            ("H100", 20),
            ("A100", 25),
            ("L40S", 30),
            ("H200", 15),
            ("B200", 10),
            ("MI300X", 25),
        )
    ]
    plan = planned(ask(rate=150.0), *groups)
    assert plan.best.within >= 0.9
    assert plan.best.most_rate_per_s >= 150 * 0.998
    dearer = [each.plant.dollars_per_hour for each in plan.runners_up if each.plant is not None]
    assert dearer
    assert min(dearer) >= plan.best.dollars_per_hour * (1 - 2 * milp.GAP)


def test_without_the_solver_a_refusal_still_says_what_would_do(monkeypatch):
    monkeypatch.setattr(milp, "available", lambda: False)
    plan = planned(ask(rate=500.0), H100)
    most, gpus = plan.nearest
    assert most.change == "rate_per_s"
    assert gpus.change == "gpus"
    assert gpus.value >= 8 * 500 / most.value
    assert "times" in gpus.words


def test_of_plants_that_are_as_good_the_simplest_wins():
    for asked in (ask(ttft=2000, itl=50), ask(itl=25), ask(rate=7.0)):
        plan = planned(asked, H100)
        for each in plan.runners_up:
            if each.plant is not None and len(each.plant.stages) < len(plan.best.stages):
                worse = each.plant.rate_per_s < plan.best.rate_per_s * 0.99
                assert worse or each.plant.dollars_per_hour > plan.best.dollars_per_hour * 1.01


def test_without_the_solver_large_fleets_say_what_to_install(monkeypatch):
    monkeypatch.setattr(milp, "available", lambda: False)
    inventory, candidates, _ = fleet(group("H100", nodes=30), group("A100", nodes=30))
    problem = board_of(ask(rate=50.0), candidates, inventory).problem
    with pytest.raises(Exception, match=r"tokenmill\[plan\]"):
        solve(problem, 50.0)


def test_ways_to_spread_an_engine():
    dense = [(p.tp, p.pp, p.dp, p.ep) for p in parallels(llama_70b(), group("H100", nodes=4))]
    assert dense == [(1, 1, 1, 1), (2, 1, 1, 1), (4, 1, 1, 1), (8, 1, 1, 1), (8, 2, 1, 1), (8, 4, 1, 1)]
    experts = shape_of(
        "experts",
        {
            "num_hidden_layers": 36,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 201088,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "model_type": "gpt_oss",
        },
    )
    spread = {(p.tp, p.dp, p.ep) for p in parallels(experts, H100)}
    assert {(8, 1, 1), (8, 1, 8), (1, 8, 8)} <= spread


def test_a_plan_is_data():
    plan = planned(ask(rate=6.0), H100)
    again = msgspec.json.decode(msgspec.json.encode(plan), type=type(plan))
    assert again == plan
    assert {stage.role for stage in again.best.stages} <= set(Role)
