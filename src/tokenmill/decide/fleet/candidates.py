"""Which engines could stand where: GPU types and parallelism for a model, as far as it fits into memory.

Exists so that placement chooses among replicas whose times and room are known. It must not know service
levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenmill.decide.fleet.inventory import Inventory, NodeGroup
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.perf.memory import gpus_of
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, StepTimeSource
from tokenmill.spec.stage import Parallel

MOST_TP = 8
"""Tensor parallelism beyond a node's eight GPUs spends its time in all-reduces."""

MOST_NODES = 4
"""Pipelines over more nodes are not tried."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One engine in one group of nodes. ``kv_bytes_per_token``: of its cache; ``weights_gib``: of one GPU;
    ``origin``: where its times are from, ``expected_error`` the share by which they may be off."""

    group: NodeGroup
    parallel: Parallel
    replica: Replica
    kv_bytes_per_token: float
    weights_gib: float = 0.0
    origin: str = ""
    expected_error: float = 0.0
    note: str = ""

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.replica.gpus

    @property
    def most(self) -> int:
        """How many replicas the group has room for."""
        return self.group.replicas_that_fit(self.gpus)


class Unfit(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that cannot be, and why. ``lacking_gib``: memory that each of its GPUs lacks, if that is
    it."""

    group: str
    gpu: str
    parallel: Parallel
    reason: str
    lacking_gib: float = 0.0


def parallels(shape: ModelShape, group: NodeGroup) -> list[Parallel]:
    """Return the ways to spread one engine over GPUs of one group, smallest first.

    Within a node: tensor parallel; with experts also tensor parallel attention over expert parallel experts,
    and data parallel attention over them. Over nodes: a pipeline of whole nodes. Sizes divide each other, so
    that any mix of them that a group has GPUs for also fits into its nodes.
    """
    node = group.gpus_per_node
    sizes = [size for size in (1, 2, 4, 8) if node % size == 0 and size <= MOST_TP]
    ways = [Parallel(tp=size) for size in sizes if shape.attention.heads % size == 0]
    if shape.experts is not None:
        for size in (size for size in sizes if size > 1 and shape.experts.count % size == 0):
            ways.append(Parallel(tp=size, ep=size))
            ways.append(Parallel(dp=size, ep=size))
    whole = next((way for way in reversed(ways) if way.tp == node), None)
    if whole is not None:
        ways.extend(
            msgspec.structs.replace(whole, pp=nodes)
            for nodes in (2, MOST_NODES)
            if nodes <= group.nodes and shape.layers % nodes == 0
        )
    return ways


def find_candidates(
    shape: ModelShape,
    inventory: Inventory,
    source: StepTimeSource,
    *,
    engine: str = "vllm",
    kv_dtype: str = "",
    utilization: float = 0.9,
    longest: float = 0.0,
    allowed: Sequence[Parallel] = (),
) -> tuple[list[Candidate], list[Unfit]]:
    """Return the engines that fit, and those that don't with the reason.

    ``utilization``: the share of a GPU's memory that engines take. ``longest``: tokens of the longest
    sequence, which a replica's cache must hold. ``allowed``: only these ways to spread an engine; empty:
    all. A pipeline over nodes is only tried where nothing smaller fits.
    """
    found: list[Candidate] = []
    unfit: list[Unfit] = []
    for group in inventory.groups:
        fits = False
        for parallel in parallels(shape, group):
            if (allowed and parallel not in allowed) or (parallel.pp > 1 and fits):
                continue
            ask = ReplicaAsk(
                shape=shape,
                gpu=group.gpu,
                parallel=parallel,
                engine=engine,
                kv_dtype=kv_dtype,
                utilization=utilization,
                within=group.within if parallel.pp == 1 else None,
            )
            answer = _candidate(ask, group, source, longest)
            if isinstance(answer, Candidate):
                found.append(answer)
                fits = True
            else:
                unfit.append(answer)
    return found, unfit


def _candidate(
    ask: ReplicaAsk, group: NodeGroup, source: StepTimeSource, longest: float
) -> Candidate | Unfit:
    def no(reason: str, lacking_gib: float = 0.0) -> Unfit:
        return Unfit(
            group=group.name,
            gpu=group.gpu.name,
            parallel=ask.parallel,
            reason=reason,
            lacking_gib=lacking_gib,
        )

    answer = source.replica(ask)
    if isinstance(answer, NoTimes):
        return no(answer.reason)
    memory = answer.memory
    if not memory.fits:
        lacking = memory.lacking_gib()
        return no(f"weights and activations need {lacking:.0f} GiB more on each GPU", lacking)
    parallel = ask.parallel
    lane_tokens = memory.kv_capacity_tokens / (parallel.dp * parallel.pp)
    if lane_tokens < longest:
        return no(f"its KV cache holds {lane_tokens:.0f} tokens, and the longest request has {longest:.0f}")
    replica = Replica(
        times=answer.times,
        kv_capacity_tokens=memory.kv_capacity_tokens,
        gpus=gpus_of(parallel),
        side_by_side=parallel.dp,
        pipelined=parallel.pp,
    )
    return Candidate(
        group=group,
        parallel=parallel,
        replica=replica,
        kv_bytes_per_token=memory.kv_bytes_per_token,
        weights_gib=memory.weights_bytes / 1024**3,
        origin=answer.origin,
        expected_error=answer.expected_error,
        note=answer.note,
    )
