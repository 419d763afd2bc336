"""The linear program and the enumeration against a brute force that knows nothing of either."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.fleet import enumeration, milp
from tokenmill.decide.fleet.capacity import Curve
from tokenmill.decide.fleet.flow import throughput
from tokenmill.decide.fleet.problem import Option, Problem, undominated

highspy = pytest.importorskip("highspy")


@st.composite
def curves(draw, most):
    """A replica more never costs capacity, and adds at least as much as the first."""
    first = draw(st.integers(1, 12)) / 2
    rate, points = 0.0, []
    for count in range(1, most + 1):
        rate += first + draw(st.integers(0, 3)) / 4 * (count > 1)
        points.append((count, rate))
    return Curve(tuple(points))


@st.composite
def problems(draw):
    pools = {f"pool{i}": draw(st.integers(1, 4)) for i in range(draw(st.integers(1, 2)))}
    zones = ["a", "b"][: draw(st.integers(1, 2))]
    options = []
    for index in range(draw(st.integers(1, 4))):
        pool = draw(st.sampled_from(sorted(pools)))
        gpus = draw(st.sampled_from([1, 2]))
        most = pools[pool] // gpus
        if not most:
            continue
        price = int(pool[-1]) * 3 + 2
        prefill = draw(st.booleans())
        options.append(
            Option(
                name=str(index),
                pool=pool,
                gpus=gpus,
                cost=float(gpus * price),
                curve=draw(curves(most)),
                prefill=prefill,
                remote=0.0 if prefill else draw(st.sampled_from([0.0, 0.5, 1.0])),
                place=draw(st.sampled_from(zones)),
                accepts=draw(st.sampled_from([frozenset(zones), frozenset(zones[:1])])),
            )
        )
    links = {}
    if len(zones) == 2 and draw(st.booleans()):
        links = {("a", "b"): draw(st.integers(1, 8)) / 2}
    return Problem(options=tuple(options), pools=pools, links=links)


def all_counts(problem):
    return (
        counts
        for counts in itertools.product(
            *(range(problem.pools[o.pool] // o.gpus + 1) for o in problem.options)
        )
        if all(
            sum(n * o.gpus for n, o in zip(counts, problem.options, strict=True) if o.pool == pool) <= gpus
            for pool, gpus in problem.pools.items()
        )
    )


def flow_by_linear_program(problem, counts):
    """The most that is served, as a linear program of its own with one variable a pair of options."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    served, columns = {}, 0
    handed = {}
    for d, option in enumerate(problem.options):
        if not option.prefill:
            solver.addVar(0.0, option.curve.rate(counts[d]))
            solver.changeColCost(columns, -1.0)
            served[d], columns = columns, columns + 1
    for (p, giver), d in itertools.product(enumerate(problem.options), served):
        if giver.prefill and giver.place in problem.options[d].accepts:
            solver.addVar(0.0, 1e9)
            handed[p, d], columns = columns, columns + 1
    for d, column in served.items():
        gets = [c for (_, taker), c in handed.items() if taker == d]
        solver.addRow(
            0.0, 0.0, 1 + len(gets), [column, *gets], [-problem.options[d].remote, *[1.0] * len(gets)]
        )
    for p, giver in enumerate(problem.options):
        gives = [c for (sender, _), c in handed.items() if sender == p]
        if gives:
            solver.addRow(-1e9, giver.curve.rate(counts[p]), len(gives), gives, [1.0] * len(gives))
    for (start, end), limit in problem.links.items():
        over = [
            c
            for (p, d), c in handed.items()
            if (problem.options[p].place, problem.options[d].place) == (start, end)
        ]
        if over:
            solver.addRow(-1e9, limit, len(over), over, [1.0] * len(over))
    solver.run()
    return -solver.getInfo().objective_function_value


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_the_flow_is_the_most_that_can_flow(problem, data):
    counts = data.draw(st.sampled_from(list(all_counts(problem))))
    flow = throughput(problem, counts)
    assert flow.rate == pytest.approx(flow_by_linear_program(problem, counts), abs=1e-6)
    assert sum(flow.computed) == pytest.approx(sum(flow.moved.values()), abs=1e-9)
    needed = sum(s * o.remote for s, o in zip(flow.served, problem.options, strict=True))
    assert sum(flow.computed) == pytest.approx(needed, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 30))
def test_solvers_find_what_trying_all_finds(problem, rate):
    able = [c for c in all_counts(problem) if throughput(problem, c).rate >= rate - 1e-9]
    least = min((problem.cost(counts) for counts in able), default=None)
    for solution in (enumeration.cheapest(problem, rate), milp.cheapest(problem, rate, gap=0.0)):
        if least is None:
            assert solution is None
        else:
            assert solution.cost == pytest.approx(least)
            assert solution.rate >= rate - 1e-6
            assert problem.fits(solution.counts)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_solvers_find_the_most_that_a_fleet_serves(problem):
    most = max(throughput(problem, counts).rate for counts in all_counts(problem))
    for solution in (enumeration.largest(problem), milp.largest(problem, gap=0.0)):
        assert (solution.rate if solution else 0.0) == pytest.approx(most, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_what_is_required_is_there(problem, data):
    marks = st.lists(st.booleans(), min_size=len(problem.options), max_size=len(problem.options))
    required = tuple(tuple(data.draw(marks)) for _ in range(data.draw(st.integers(1, 2))))
    needing = msgspec.structs.replace(problem, required=required)
    with_all = [
        counts
        for counts in all_counts(problem)
        if all(sum(n for n, mark in zip(counts, group, strict=True) if mark) >= 1 for group in required)
    ]
    most = max((throughput(problem, counts).rate for counts in with_all), default=0.0)
    for solution in (enumeration.largest(needing), milp.largest(needing, gap=0.0)):
        assert (solution.rate if solution else 0.0) == pytest.approx(most, abs=1e-5)
        assert solution is None or solution.counts in with_all


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 30))
def test_leaving_out_dominated_options_loses_nothing(problem, rate):
    kept = problem.only(undominated(problem))
    before, after = enumeration.cheapest(problem, rate), enumeration.cheapest(kept, rate)
    assert (after.cost if after else None) == pytest.approx(before.cost if before else None)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_size_is_the_number_of_combinations(problem):
    assert enumeration.size(problem, most=10**9) == len(list(all_counts(problem)))
