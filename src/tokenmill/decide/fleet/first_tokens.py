"""How long first tokens take on a group of equal workers: prompts in steps, steps in lines.

Exists so that prefill workers and those that do both share one account of it. It must not know batches of
decodes beyond their number and length. Times in milliseconds, rates in requests a millisecond.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenmill.decide.fleet.queueing import FirstToken, Own, Wait, pooled_wait, wait_chance
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.workload import Workload

ROUTED = 1.4
"""A router sends each request to a worker at once, by reports that are some 50 ms old; waits are so many
times as long as in one line before all workers. Seen with router and scheduler on a virtual clock: 1.2 to
1.5 times."""

SYNERGY = 1.15
"""Prompts are computed in batches where a full step of them is so many times quicker than one by one."""


class Prompts(NamedTuple):
    """Prompts on one kind of worker: by shape their share, their part of a lane's time (full steps, shared
    with others) and their own time alone; ``mean_ms``, ``scv`` of the parts."""

    parts: tuple[tuple[float, float, float], ...]
    mean_ms: float
    scv: float


def prompts_of(
    replica: Replica, workload: Workload, chunk: float, sequences: float, decode_context: float
) -> Prompts:
    """Return the prompts' times in steps of ``chunk`` tokens that decode ``sequences`` as well."""
    parts = []
    mean_ms = square = 0.0
    for shape in workload.shapes:
        context = shape.mean_context
        full_ms = replica.step_ms(chunk, chunk * context, sequences, decode_context)
        part_ms = shape.new_tokens / chunk * full_ms
        parts.append((shape.share, part_ms, replica.prompt_ms(shape, chunk, sequences, decode_context)))
        mean_ms += shape.share * part_ms
        square += shape.share * part_ms * part_ms
    return Prompts(tuple(parts), mean_ms, max(0.0, square / mean_ms**2 - 1))


def first_token(
    replica: Replica,
    count: int,
    workload: Workload,
    chunk: float,
    rate: float,
    *,
    sequences: float = 0.0,
    decode_context: float = 0.0,
) -> FirstToken | None:
    """Return the law of first tokens at ``rate`` over ``count`` replicas; None when they cannot keep up."""
    lanes = count * replica.lanes
    prompts = prompts_of(replica, workload, chunk, sequences, decode_context)
    wait = pooled_wait(rate, lanes, prompts.mean_ms, prompts.scv, workload.burstiness)
    if wait is None:
        return None
    alone = [(share, own_ms) for share, _, own_ms in prompts.parts]
    gate = _gate(replica, workload, chunk, rate / lanes, wait.chance, lanes, sequences, decode_context)
    own = tuple(Own(share, own_ms, max(own_ms, gate.batch_ms)) for share, own_ms in alone)
    mean_ms = wait.mean_ms * (ROUTED if lanes > 1 else 1.0)
    return FirstToken(Wait(wait.chance, mean_ms, gate.chance, gate.ms), own)


class _Gate(NamedTuple):
    """A running step that must end first; ``batch_ms``: the step after it."""

    chance: float
    ms: float
    batch_ms: float


def _gate(
    replica: Replica,
    workload: Workload,
    chunk: float,
    lane_rate: float,
    line: float,
    lanes: int,
    sequences: float,
    decode_context: float,
) -> _Gate:
    """Prompts that fill the device alone: who was in line ends with a step that others share. Shorter ones:
    those that come during a step are computed together in the next, for little more than one."""
    most = chunk / workload.new_tokens
    alone_ms = _batch_ms(replica, workload, 1.0, sequences, decode_context)
    if most < 2 or most * alone_ms < SYNERGY * _batch_ms(replica, workload, most, sequences, decode_context):
        ms = min(1.0, most) * alone_ms
        gate = _Gate(line, ms, 0.0)
    else:
        batch, chance = _batch(replica, workload, lane_rate, lanes, most, sequences, decode_context)
        ms = _batch_ms(replica, workload, batch, sequences, decode_context)
        # Batches fluctuate, the more so the closer to the limit, and large ones are what most requests see.
        slope = lane_rate * (_batch_ms(replica, workload, batch + 1, sequences, decode_context) - ms)
        swing = 1 / max(1e-3, 1 - slope * slope) - 1
        seen = min(most, lane_rate * ms + 1 + swing / lanes)
        seen_ms = _batch_ms(replica, workload, seen, sequences, decode_context)
        gate = _Gate(chance, seen_ms if chance == 1 else ms, seen_ms)
    if sequences:
        # A decode step is always running.
        step_ms = replica.step_ms(0, 0, sequences, decode_context)
        if gate.chance * gate.ms < step_ms:
            gate = _Gate(1.0, step_ms, 0.0)
    return gate


def _batch_ms(
    replica: Replica, workload: Workload, batch: float, sequences: float, decode_context: float
) -> float:
    new = batch * workload.new_tokens
    context = sum(s.share * s.new_tokens * s.mean_context for s in workload.shapes)
    return replica.step_ms(new, batch * context, sequences, decode_context)


def _batch(
    replica: Replica,
    workload: Workload,
    lane_rate: float,
    lanes: int,
    most: float,
    sequences: float,
    decode_context: float,
) -> tuple[float, float]:
    """Return how many prompts a step computes, and the chance to find one running: a step's length is how
    many come during it (the fixed point that Inoue 2021 bounds, "Queueing analysis of GPU-based inference
    servers with dynamic batching")."""
    busy = lane_rate * _batch_ms(replica, workload, 1.0, sequences, decode_context)
    if busy < 1:
        return 1.0, wait_chance(lanes, busy * lanes)
    batch = 1.0
    for _ in range(50):
        larger = min(most, lane_rate * _batch_ms(replica, workload, batch, sequences, decode_context))
        if larger <= batch * 1.001:
            break
        batch = larger
    return batch, 1.0
