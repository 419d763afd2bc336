"""Runs a sweep: every point some times, in an order that keeps a slow machine's patience, and gathers steps.

It must not know what it measures, nor what becomes of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

from tokenmill.decide.perf.profile import Method
from tokenmill.operate.profile.points import Limits, Point, decode_points, prefill_points
from tokenmill.operate.profile.probe import Probe
from tokenmill.operate.profile.runs import Step, steps_of


class Effort(NamedTuple):
    """``repeats``: runs of each point after the first. ``longest_step_ms``: a sweep goes no further in a
    direction where a step takes longer."""

    repeats: int
    longest_step_ms: float


Told = Callable[[Point, float], None]
"""Hears each point that is done, and its steps' median, milliseconds."""


async def sweep(probe: Probe, limits: Limits, effort: Effort, method: Method, told: Told) -> list[Step]:
    """Return the steps of all points. Raises what the probe raises. Cancelled: the point under way is
    ended."""
    steps = await _rounds(probe, prefill_points(limits), effort, method, told)
    for batch in _by_batch(decode_points(limits)):
        found = await _rounds(probe, batch, effort, method, told)
        steps += found
        if not found or _too_slow(found[:1], effort):
            break
    return steps


async def _rounds(
    probe: Probe, points: Iterable[Point], effort: Effort, method: Method, told: Told
) -> list[Step]:
    """Run points, the lighter first, until one is too slow; then all of them again, round by round, so that
    what disturbs the machine for a while does not fall on one point alone. The first round only warms up
    what is compiled or cached for a shape."""
    seen: dict[Point, list[Step]] = {}
    for point in points:
        seen[point] = []
        if _too_slow(steps_of(await probe.run(point), method), effort):
            break
    for left in reversed(range(effort.repeats)):
        for point, steps in seen.items():
            steps.extend(steps_of(await probe.run(point), method))
            if steps and not left:
                told(point, median(step.step_ms for step in steps))
    return [step for steps in seen.values() for step in steps]


def _too_slow(steps: list[Step], effort: Effort) -> bool:
    return bool(steps) and median(step.step_ms for step in steps) > effort.longest_step_ms


def _by_batch(points: Iterable[Point]) -> Iterable[list[Point]]:
    batch: list[Point] = []
    for point in points:
        if batch and point.prompts != batch[0].prompts:
            yield batch
            batch = []
        batch.append(point)
    if batch:
        yield batch
