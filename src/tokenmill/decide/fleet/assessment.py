"""What a solution's plant does at the load: latencies, loads, memory, prices.

Exists as the way from replicas' numbers back to figures for people, computed by the queueing formulas
themselves and not by the curves that a solver saw. It must not search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenmill.decide.fleet.capacity import CHUNKS, Capacity
from tokenmill.decide.fleet.even_split import even_split
from tokenmill.decide.fleet.flow import Flow, throughput
from tokenmill.decide.fleet.options import Ask, Board, Role
from tokenmill.decide.fleet.plans import Handing, Kind, PlantPlan, StagePlan, stage_names, stage_role
from tokenmill.decide.fleet.pricing import StageCost, cached_share, prompts_share, token_prices
from tokenmill.decide.fleet.problem import Solution
from tokenmill.decide.fleet.queueing import FirstToken, bisect, miss_share, normal_beyond
from tokenmill.decide.fleet.stages import DecodeGroup, DecodePoint, PrefillGroup

_LEAST_PROMPTS = 8
"""Most sequences of a prefill worker: at least so many, lest long prompts run one by one."""

_SLACK = 1.002
"""Between its points a curve may promise a little more than there is."""


class _Served(NamedTuple):
    """A stage at its load: requests a second, the laws of what they see, and how full it is."""

    role: Role
    replicas: int
    rate: float
    most: float
    binding: str
    chunk_tokens: float
    first_token: FirstToken | None
    decode: DecodePoint | None
    busy: float
    max_sequences: int


def kind_of(board: Board, counts: Sequence[int]) -> Kind:
    """Return which kind of plant so many replicas of each option are."""
    shares = {
        role.local_share
        for role, count in zip(board.roles, counts, strict=True)
        if count and not role.prefill
    }
    if shares == {1.0}:
        return "aggregated"
    return "disaggregated" if shares == {0.0} else "mixed"


def assess(ask: Ask, board: Board, solution: Solution) -> PlantPlan | None:
    """Return what a plant does at the ask's rate, or at the most it can serve; None when it does not hold."""
    flow = throughput(board.problem, solution.counts)
    rate = flow.rate if ask.rate_per_s is None else ask.rate_per_s
    if rate <= 0 or flow.rate * _SLACK < rate:
        return None
    at_load = flow.scaled(rate / flow.rate)
    shares = _shares(ask, board, solution.counts, at_load)
    if shares is None:
        return None
    served = []
    for role, count, share in zip(board.roles, solution.counts, shares, strict=True):
        if count and share > 0:
            stage = _served(ask, role, count, share)
            if stage is None:
                return None
            served.append(stage)
    return _plant(ask, kind_of(board, solution.counts), served, rate, flow.rate, at_load)


def decoding(board: Board, counts: Sequence[int]) -> list[int]:
    """Return the options of a plant that decode: what a router evens out."""
    roles = zip(board.roles, counts, strict=True)
    return [index for index, (role, count) in enumerate(roles) if count and not role.prefill]


def _shares(ask: Ask, board: Board, counts: Sequence[int], flow: Flow) -> list[float] | None:
    """Requests a second by option; None where what the router sends is more than some can decode within the
    service level."""
    shares = [
        computed if role.prefill else served
        for role, computed, served in zip(board.roles, flow.computed, flow.served, strict=True)
    ]
    indexes = [index for index in decoding(board, counts) if shares[index] > 0]
    if len(indexes) > 1:
        groups = [_group(ask, board.roles[index], counts[index]) for index in indexes]
        split = even_split(groups, sum(shares[index] for index in indexes), ask.promise)
        if split is None or not split.holds:
            return None
        for index, share in zip(indexes, split.rates, strict=True):
            shares[index] = share
    return shares


def _group(ask: Ask, role: Role, count: int) -> DecodeGroup:
    return DecodeGroup(
        replica=role.candidate.replica,
        count=count,
        workload=ask.workload,
        chunk_tokens=role.capacity(count, CHUNKS, ask).chunk_tokens,
        local_share=role.local_share,
        handoff_ms=role.handoff_ms,
    )


def _served(ask: Ask, role: Role, count: int, rate: float) -> _Served | None:
    capacity = role.capacity(count, CHUNKS, ask)
    if capacity.rate * _SLACK < rate:
        return None
    return (
        _computing(ask, role, count, rate, capacity)
        if role.prefill
        else _decoding(ask, role, count, rate, capacity)
    )


def _computing(ask: Ask, role: Role, count: int, rate: float, capacity: Capacity) -> _Served | None:
    replica, chunk = role.candidate.replica, capacity.chunk_tokens
    group = PrefillGroup(
        replica=replica, count=count, workload=ask.workload, chunk_tokens=chunk, handoff_ms=role.handoff_ms
    )
    point = group.at(rate / 1000)
    if point is None:
        return None
    # Twice what a step computes and what is on its way: arrivals are uneven.
    moving = rate / count / replica.lanes * role.handoff_ms / 1000
    at_a_time = max(_LEAST_PROMPTS, 2 * math.ceil(chunk / ask.workload.new_tokens + moving)) * replica.lanes
    return _Served(
        role=role,
        replicas=count,
        rate=rate,
        most=capacity.rate,
        binding=capacity.binding,
        chunk_tokens=chunk,
        first_token=point.first_token,
        decode=None,
        busy=point.busy,
        max_sequences=at_a_time,
    )


def _decoding(ask: Ask, role: Role, count: int, rate: float, capacity: Capacity) -> _Served | None:
    replica, chunk = role.candidate.replica, capacity.chunk_tokens
    group = DecodeGroup(
        replica=replica,
        count=count,
        workload=ask.workload,
        chunk_tokens=chunk,
        local_share=role.local_share,
        handoff_ms=role.handoff_ms,
    )
    point = group.at(rate / 1000)
    if point is None:
        return None
    most = group.batch_within(ask.promise.itl_ms)
    return _Served(
        role=role,
        replicas=count,
        rate=rate,
        most=capacity.rate,
        binding=capacity.binding,
        chunk_tokens=chunk,
        first_token=point.first_token,
        decode=point,
        busy=point.batch * replica.lanes / most,
        max_sequences=most,
    )


class _Seen(NamedTuple):
    """What requests see of a plant: by its share of requests, each stage's laws."""

    first: list[tuple[float, FirstToken]]
    decode: list[tuple[float, DecodePoint]]

    def late(self, limit_ms: float) -> float:
        """Return the share of requests whose first token takes longer."""
        return sum(share * first.beyond(limit_ms) for share, first in self.first)

    def slow(self, limit_ms: float) -> float:
        """Return the share of requests whose tokens take longer."""
        return sum(share * normal_beyond(limit_ms, d.itl_ms, d.itl_sd_ms) for share, d in self.decode)


def _plant(
    ask: Ask, kind: Kind, served: Sequence[_Served], rate: float, most_rate: float, flow: Flow
) -> PlantPlan:
    promise, miss = ask.promise, miss_share(ask.promise.percentile)
    seen = _seen(served, rate)
    names = stage_names(
        [(stage_role(each.role.prefill, each.role.local_share), each.role.candidate) for each in served]
    )
    stages = tuple(_stage(ask, name, each) for name, each in zip(names, served, strict=True))
    gpus = sum(stage.gpus for stage in stages)
    costs = [_cost(ask, stage, each) for stage, each in zip(stages, served, strict=True)]
    moved = sorted(flow.moved.items())
    return PlantPlan(
        kind=kind,
        stages=stages,
        rate_per_s=rate,
        most_rate_per_s=most_rate,
        ttft_ms=_quantile([first.quantile(miss) for _, first in seen.first], seen.late, miss),
        ttft_mean_ms=sum(share * first.mean() for share, first in seen.first),
        itl_ms=_quantile([d.itl_quantile(miss) for _, d in seen.decode], seen.slow, miss),
        itl_mean_ms=sum(share * d.itl_ms for share, d in seen.decode),
        within=max(0.0, 1 - seen.late(promise.ttft_ms) - seen.slow(promise.itl_ms)),
        gpus=gpus,
        dollars_per_hour=sum(stage.dollars_per_hour for stage in stages),
        added_dollars_per_hour=sum(
            stage.dollars_per_hour
            for stage, each in zip(stages, served, strict=True)
            if each.role.candidate.group.availability != "reserved"
        ),
        power_w=sum(stage.power_w for stage in stages),
        tokens_per_s_per_gpu=rate * ask.workload.output_tokens / gpus,
        dollars_per_million=token_prices(costs, ask.workload, rate),
        handing=tuple(Handing(sender=start, receiver=end, per_s=per_s) for (start, end), per_s in moved),
    )


def _seen(served: Sequence[_Served], rate: float) -> _Seen:
    first = [
        (each.rate * (1.0 if each.role.prefill else each.role.local_share) / rate, each.first_token)
        for each in served
        if each.first_token is not None
    ]
    return _Seen(first, [(each.rate / rate, each.decode) for each in served if each.decode is not None])


def _quantile(parts: Sequence[float], beyond: Callable[[float], float], miss: float) -> float:
    """Return the quantile of a mixture: between those of its parts."""
    low, high = min(parts), max(parts)
    if high - low <= 1e-6 * high:
        return high
    return bisect(lambda limit_ms: beyond(limit_ms) > miss, low, high)


def _stage(ask: Ask, name: str, each: _Served) -> StagePlan:
    role, candidate, group = each.role, each.role.candidate, each.role.candidate.group
    miss, gpus = miss_share(ask.promise.percentile), each.replicas * candidate.gpus
    tokens = ask.workload.new_tokens if role.prefill else ask.workload.output_tokens
    kv_share = 0.0
    if each.decode is not None:
        kv_share = each.decode.kv_tokens / candidate.replica.lane_kv_tokens
    return StagePlan(
        name=name,
        role=stage_role(role.prefill, role.local_share),
        group=group.name,
        gpu=group.gpu.name,
        zone=group.zone,
        parallel=candidate.parallel,
        replicas=each.replicas,
        gpus=gpus,
        rate_per_s=each.rate,
        local_share=role.local_share,
        ttft_ms=each.first_token.quantile(miss) if each.first_token is not None else None,
        itl_ms=each.decode.itl_quantile(miss) if each.decode is not None else None,
        busy=each.busy,
        load=each.rate / each.most,
        binding=each.binding,
        chunk_tokens=int(each.chunk_tokens),
        max_sequences=each.max_sequences,
        kv_tokens=int(candidate.replica.kv_capacity_tokens),
        kv_share=kv_share,
        dollars_per_hour=gpus * group.dollars_per_hour,
        power_w=gpus * group.power_w,
        tokens_per_s_per_gpu=each.rate * tokens / gpus,
        times_from=candidate.origin,
        expected_error=candidate.expected_error,
    )


def _cost(ask: Ask, stage: StagePlan, each: _Served) -> StageCost:
    replica = each.role.candidate.replica
    cached = cached_share(replica, ask.workload, each.chunk_tokens)
    if each.decode is None:
        return StageCost(stage.dollars_per_hour, 1.0, cached)
    batch = each.max_sequences / replica.lanes
    prompts = prompts_share(replica, ask.workload, each.role.local_share, batch)
    return StageCost(stage.dollars_per_hour, prompts, cached)
