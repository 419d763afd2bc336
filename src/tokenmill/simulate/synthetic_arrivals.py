"""When the requests of a made-up load come.

Exists so that each arrival process stands by itself. It must not know lengths or prompts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Protocol


class Arrivals(Protocol):
    """What of a load says when requests come; as in ``synthetic.Load``."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def cv(self) -> float: ...  # noqa: D102
    @property
    def times(self) -> float: ...  # noqa: D102
    @property
    def burst_s(self) -> float: ...  # noqa: D102
    @property
    def calm_s(self) -> float: ...  # noqa: D102
    @property
    def swing(self) -> float: ...  # noqa: D102
    @property
    def period_s(self) -> float: ...  # noqa: D102


def arrivals_of(load: Arrivals, chance: random.Random) -> Iterator[float]:
    """Yield arrivals in seconds without end, in order.

    even: one each ``1 / rate`` seconds. poisson, chats: exponential gaps. gamma: gamma-distributed gaps of
    coefficient of variation ``cv``. bursts: Poisson at a high and a low rate by turns, each for an
    exponential time (Markov-modulated). diurnal: Poisson at a rate that follows a cosine over ``period_s``.
    """
    if load.kind == "even":
        return _even(load.rate)
    if load.kind == "gamma":
        return _gamma(load, chance)
    if load.kind == "bursts":
        return _bursts(load, chance)
    if load.kind == "diurnal":
        return _diurnal(load, chance)
    return _poisson(load.rate, chance)


def _even(rate: float) -> Iterator[float]:
    number = 0
    while True:
        yield number / rate
        number += 1


def _poisson(rate: float, chance: random.Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += chance.expovariate(rate)
        yield at_s


def _gamma(load: Arrivals, chance: random.Random) -> Iterator[float]:
    shape = 1 / (load.cv * load.cv)
    at_s = 0.0
    while True:
        at_s += chance.gammavariate(shape, 1 / (shape * load.rate))
        yield at_s


def _bursts(load: Arrivals, chance: random.Random) -> Iterator[float]:
    """The calm rate is such that the mean over time is ``rate``."""
    whole_s = load.burst_s + load.calm_s
    calm_rate = load.rate * whole_s / (load.times * load.burst_s + load.calm_s)
    bursting = chance.random() < load.burst_s / whole_s
    at_s = 0.0
    while True:
        end_s = at_s + chance.expovariate(1 / (load.burst_s if bursting else load.calm_s))
        rate = calm_rate * load.times if bursting else calm_rate
        while (at_s := at_s + chance.expovariate(rate)) < end_s:
            yield at_s
        # Exponential gaps have no memory: the next one may be drawn anew from where the rate changed.
        at_s, bursting = end_s, not bursting


def _diurnal(load: Arrivals, chance: random.Random) -> Iterator[float]:
    """By thinning (Lewis and Shedler 1979)."""
    most = load.rate * (1 + load.swing)
    for at_s in _poisson(most, chance):
        rate = load.rate * (1 - load.swing * math.cos(2 * math.pi * at_s / load.period_s))
        if chance.random() * most < rate:
            yield at_s
