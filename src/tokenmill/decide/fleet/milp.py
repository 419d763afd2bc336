"""Placement as a mixed-integer linear program: exact up to a stated gap, for fleets too large to try all.

Exists for hundreds of GPUs of several types. It must not know anything but the problem. Needs ``highspy``
(extra ``[plan]``), which is imported when it is used.

For each option and each piece of its curve: whether that piece is used (binary) and how many replicas
(integer). Requests served by decoding options and caches moved from place to place are continuous.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from tokenmill.decide.fleet.flow import throughput
from tokenmill.decide.fleet.problem import Option, Problem, Solution
from tokenmill.errors import ConfigError

_SOLVER: Final = "highspy"

GAP: Final = 1e-3
"""Solutions at most this share above the optimum are taken for it, where nobody asks for better."""

_PIECE_COST: Final = 1e-6
"""Of equal plants the one with fewer groups, as a share of what the dearest option costs."""


class _Model:
    """Columns and rows, collected for the solver."""

    def __init__(self) -> None:
        highspy: Any = importlib.import_module(_SOLVER)
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("threads", 1)
        self._integer = highspy.HighsVarType.kInteger
        self._optimal = highspy.HighsModelStatus.kOptimal
        self._infinite = highspy.kHighsInf
        self._columns = 0

    @property
    def infinite(self) -> float:
        return float(self._infinite)

    def column(self, high: float, *, cost: float = 0.0, integer: bool = False) -> int:
        self._solver.addVar(0.0, high)
        index, self._columns = self._columns, self._columns + 1
        if cost:
            self._solver.changeColCost(index, cost)
        if integer:
            self._solver.changeColIntegrality(index, self._integer)
        return index

    def row(self, terms: Mapping[int, float], *, low: float | None = None, high: float | None = None) -> None:
        self._solver.addRow(
            -self._infinite if low is None else low,
            self._infinite if high is None else high,
            len(terms),
            list(terms),
            list(terms.values()),
        )

    def solve(self, gap: float) -> list[float] | None:
        """Return the columns' values; None when there is no solution."""
        self._solver.setOptionValue("mip_rel_gap", gap)
        self._solver.run()
        if self._solver.getModelStatus() != self._optimal:
            return None
        return list(self._solver.getSolution().col_value)


def available() -> bool:
    """Return whether the solver is installed. Does not import it."""
    return importlib.util.find_spec(_SOLVER) is not None


def cheapest(problem: Problem, rate: float, *, gap: float = GAP) -> Solution | None:
    """Return the cheapest set that serves ``rate``; None: there is none. Raises ConfigError without the
    solver."""
    return _solve(problem, rate, gap)


def largest(problem: Problem, *, gap: float = GAP) -> Solution | None:
    """Return the set that serves most; None: nothing is served. Raises ConfigError without the solver."""
    return _solve(problem, None, gap)


def _solve(problem: Problem, rate: float | None, gap: float) -> Solution | None:
    if not available():
        raise ConfigError(
            "fleet: a plan for this many GPUs needs the solver: pip install 'tokenmill[plan]'", param="fleet"
        )
    model = _Model()
    dearest = max((option.cost for option in problem.options), default=1.0) or 1.0
    weight = 1.0 if rate is not None else 1e-6 / dearest
    pieces = [_pieces(model, problem, option, weight, dearest) for option in problem.options]
    for pool, gpus in problem.pools.items():
        used = {
            replicas: float(option.gpus)
            for option, of_option in zip(problem.options, pieces, strict=True)
            if option.pool == pool
            for _, replicas, _, _, _ in of_option
        }
        if used:
            model.row(used, high=float(gpus))
    for marks in problem.required:
        of_group = [of_option for of_option, mark in zip(pieces, marks, strict=True) if mark]
        model.row({replicas: 1.0 for each in of_group for _, replicas, _, _, _ in each}, low=1.0)
    served = _flows(model, problem, pieces, 0.0 if rate is not None else -1.0)
    if rate is not None:
        if not served:
            return None
        model.row(dict.fromkeys(served, 1.0), low=rate)
    values = model.solve(gap)
    if values is None:
        return None
    counts = tuple(sum(round(values[replicas]) for _, replicas, _, _, _ in of_option) for of_option in pieces)
    found = throughput(problem, counts).rate
    return Solution(counts, found, problem.cost(counts)) if found > 0 else None


_Piece = tuple[int, int, float, int, float]
"""Columns of its switch and its replicas; rate a replica along it; where it begins, and the rate there."""


def _pieces(model: _Model, problem: Problem, option: Option, weight: float, dearest: float) -> list[_Piece]:
    """Add a curve: between two neighbouring points of it a piece, beginning at a whole number of replicas."""
    most = problem.most(option)
    points = [(count, rate) for count, rate in option.curve.points if count <= most]
    if not points:
        return []
    if points[-1][0] < most:
        points.append((most, option.curve.rate(most)))
    if points[0][0] > 1:
        points.insert(0, (1, option.curve.rate(1)))
    pieces: list[_Piece] = []
    spans = list(pairwise(points)) or [(points[0], points[0])]
    for (low, low_rate), (high, high_rate) in spans:
        switch = model.column(1.0, cost=weight * dearest * _PIECE_COST, integer=True)
        replicas = model.column(float(high), cost=weight * option.cost, integer=True)
        model.row({replicas: 1.0, switch: -float(low)}, low=0.0)
        model.row({replicas: 1.0, switch: -float(high)}, high=0.0)
        slope = (high_rate - low_rate) / (high - low) if high > low else 0.0
        pieces.append((switch, replicas, slope, low, low_rate))
    model.row({switch: 1.0 for switch, *_ in pieces}, high=1.0)
    return pieces


def _capacity(of_option: list[_Piece]) -> dict[int, float]:
    """What an option's replicas serve, as terms of a row, with the sign of a limit."""
    terms: dict[int, float] = {}
    for switch, replicas, slope, low, low_rate in of_option:
        terms[replicas] = -slope
        terms[switch] = -(low_rate - slope * low)
    return terms


def _flows(model: _Model, problem: Problem, pieces: list[list[_Piece]], cost: float) -> list[int]:
    """Add what is served and what is moved; return the columns of what is served."""
    columns: list[int] = []
    leaving: dict[str, dict[int, float]] = {}
    links: dict[tuple[str, str], dict[int, float]] = {}
    places = {option.place for option in problem.options if option.prefill}
    for option, of_option in zip(problem.options, pieces, strict=True):
        if option.prefill or not of_option:
            continue
        served = model.column(model.infinite, cost=cost)
        columns.append(served)
        model.row({served: 1.0, **_capacity(of_option)}, high=0.0)
        if option.remote:
            arriving = {served: -option.remote}
            for place in sorted(places & option.accepts):
                moved = model.column(model.infinite)
                arriving[moved] = 1.0
                leaving.setdefault(place, {})[moved] = 1.0
                links.setdefault((place, option.place), {})[moved] = 1.0
            model.row(arriving, low=0.0, high=0.0)
    for place, terms in leaving.items():
        for option, of_option in zip(problem.options, pieces, strict=True):
            if option.prefill and option.place == place:
                terms.update(_capacity(of_option))
        model.row(terms, high=0.0)
    for pair, terms in links.items():
        if pair in problem.links:
            model.row(terms, high=problem.links[pair])
    return columns
