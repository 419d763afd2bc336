"""How long requests wait and how full batches get at a load: the formulas, each with its source.

Exists because rates alone promise service levels that a queue breaks. It must not know models, devices or
fleets. Times in milliseconds, rates in requests a millisecond.

Waiting for a prefill worker: several equal workers and one line, where the next request goes to the worker
that is free first; a router that sends each request to the least work left gives the same waits. M/G/c by
Erlang's C formula, corrected for how even arrivals and service are (Lee and Longton 1959; Allen 1990,
section 5.2.4), exact for one worker and Poisson arrivals (Pollaczek-Khinchine); the tail is taken as
exponential given that there is a wait (Whitt 1993, "Approximations for the GI/G/m queue", section 4).

Sequences in decode batches: processor sharing whose speed depends on the number of sequences. That number's
law depends on the mean of the outputs' lengths alone (Cohen 1979, "The multiple phase service network with
generalized processor sharing"). It is taken as normal around the fixed point, with the variance of the
linearized birth-death process (Whitt 2002, "Stochastic-Process Limits", chapter 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

LEAST_MISS = 1e-4
"""Models of queues say nothing about rarer misses; a percentile of 100 is taken as 99.99."""


_NOTHING_MS = 1e-6


def miss_share(percentile: float) -> float:
    """Return the share of requests that may miss a service level at ``percentile`` percent."""
    return max(LEAST_MISS, 1 - percentile / 100)


def standard_score(miss: float) -> float:
    """Return how many standard deviations above its mean a normal value lies with chance ``miss``."""
    return NormalDist().inv_cdf(1 - miss)


def normal_beyond(value: float, mean: float, sd: float) -> float:
    """Return the chance that a normal quantity is above ``value``."""
    if sd <= 0:
        return 0.0 if mean <= value else 1.0
    return 0.5 * math.erfc((value - mean) / (sd * math.sqrt(2)))


def wait_chance(servers: int, offered: float) -> float:
    """Return Erlang's C: the chance to wait for one of ``servers`` at ``offered`` load in servers (1 at or
    above their number)."""
    if offered >= servers:
        return 1.0
    inverse_blocking = 1.0
    for number in range(1, servers + 1):
        inverse_blocking = 1.0 + inverse_blocking * number / offered if offered > 0 else math.inf
        if inverse_blocking == math.inf:
            return 0.0
    blocking = 1 / inverse_blocking
    return blocking / (1 - offered / servers * (1 - blocking))


class Wait(NamedTuple):
    """A wait's law: with ``chance`` there is a line, exponential with mean ``mean_ms``. With
    ``gate_chance`` a step that is running must end, too: uniform up to ``gate_ms``. Who waits in line is
    taken to wait at the gate as far as the chances allow, the worse case."""

    chance: float
    mean_ms: float
    gate_chance: float = 0.0
    gate_ms: float = 0.0

    def mean(self) -> float:
        """Return the mean of both together."""
        return self.chance * self.mean_ms + self.gate_chance * self.gate_ms / 2

    def line_beyond(self, limit_ms: float) -> float:
        """Return the chance that who waits in line does so for longer than ``limit_ms``."""
        if limit_ms < 0:
            return 1.0
        return math.exp(-limit_ms / self.mean_ms) if self.mean_ms > 0 else 0.0

    def gate_beyond(self, limit_ms: float) -> float:
        """Return the same of the gate."""
        if limit_ms < 0:
            return 1.0
        return max(0.0, 1 - limit_ms / self.gate_ms) if self.gate_ms > 0 else 0.0

    def both_beyond(self, limit_ms: float) -> float:
        """Return the same of who waits for both: the mean over the gate of the line's tail beyond the
        rest."""
        if limit_ms < 0:
            return 1.0
        if self.gate_ms <= _NOTHING_MS or self.mean_ms <= _NOTHING_MS:
            return max(self.line_beyond(limit_ms), self.gate_beyond(limit_ms))
        covered = min(limit_ms, self.gate_ms)
        ends = math.exp(-(limit_ms - covered) / self.mean_ms) - math.exp(-limit_ms / self.mean_ms)
        return (self.mean_ms * ends + self.gate_ms - covered) / self.gate_ms


def pooled_wait(
    rate: float, servers: int, service_ms: float, service_scv: float, arrival_scv: float = 1.0
) -> Wait | None:
    """Return the wait for one of ``servers``; None when they cannot keep up.

    ``service_scv``, ``arrival_scv``: squared coefficients of variation of service times and of the times
    between arrivals.
    """
    offered = rate * service_ms
    if offered >= servers:
        return None
    chance = wait_chance(servers, offered)
    mean_ms = service_ms / (servers - offered) * (service_scv + arrival_scv) / 2
    return Wait(chance, mean_ms)


class Own(NamedTuple):
    """What one shape of request takes once it runs: its share of requests, its time alone, and its time
    together with what has come while it waited at the gate."""

    share: float
    alone_ms: float
    together_ms: float


class FirstToken(NamedTuple):
    """The law of the time to first token: ``wait``, and then what the request itself takes."""

    wait: Wait
    own: tuple[Own, ...]

    def beyond(self, limit_ms: float) -> float:
        """Return the share of requests whose first token takes longer than ``limit_ms``."""
        wait = self.wait
        both = min(wait.chance, wait.gate_chance)
        line, gate = wait.chance - both, wait.gate_chance - both
        total = 0.0
        for share, alone_ms, together_ms in self.own:
            rest_ms, rest_together_ms = limit_ms - alone_ms, limit_ms - together_ms
            chance = 1 - both - line - gate if rest_ms < 0 else 0.0
            if line:
                chance += line * wait.line_beyond(rest_ms)
            if gate:
                chance += gate * wait.gate_beyond(rest_together_ms)
            if both:
                chance += both * wait.both_beyond(rest_together_ms)
            total += share * chance
        return total

    def mean(self) -> float:
        """Return the mean, ms."""
        gated = self.wait.gate_chance
        own_ms = sum(
            each.share * ((1 - gated) * each.alone_ms + gated * each.together_ms) for each in self.own
        )
        return self.wait.mean() + own_ms

    def own_ms(self) -> float:
        """Return how long a request runs, on average."""
        return sum(each.share * each.together_ms for each in self.own)

    def quantile(self, miss: float) -> float:
        """Return what a share ``miss`` of requests exceeds, ms."""
        high = max(each.together_ms for each in self.own) + self.wait.gate_ms + self.wait.mean_ms
        while self.beyond(high) > miss:
            high *= 2
        return bisect(lambda limit_ms: self.beyond(limit_ms) > miss, 0.0, high)


def bisect(holds: Callable[[float], bool], low: float, high: float, *, steps: int = 30) -> float:
    """Return where ``holds``, true at ``low`` and monotone, ends: the last value found at which it is
    true."""
    if holds(high):
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
        if high - low <= 1e-4 * high:
            break
    return low


class Crowd(NamedTuple):
    """How many sequences are being decoded on all workers together."""

    mean: float
    variance: float


def crowd(mean: float, rate: float, drain_slope: float, arrival_scv: float = 1.0) -> Crowd:
    """Return the law around the number ``mean`` at which sequences end as fast as they come (``rate``).

    ``drain_slope``: by how much the rate of ends grows with one sequence more.
    """
    return Crowd(mean, rate * (1 + arrival_scv) / 2 / max(drain_slope, 1e-12))
