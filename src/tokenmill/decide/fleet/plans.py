"""What a plan says: plants, their stages, and what they do, in figures that people and files can take.

Exists so that command, report and factory file read one object. It must not know how it was found.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenmill.decide.fleet.candidates import Candidate
from tokenmill.protocol.ids import Role as StageRole
from tokenmill.spec.stage import Parallel

Kind = Literal["aggregated", "disaggregated", "mixed"]
"""mixed: some prompts are computed where they are decoded, others on prefill workers."""


class TokenPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars for a million tokens of each class; None where there are none."""

    input: float | None
    cached: float | None
    output: float | None


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One group of equal workers at the planned load.

    ``rate_per_s``: requests that it computes the prompts of (prefill) or decodes. ``local_share``: of a
    decoding stage's prompts, those it computes itself. ``ttft_ms``: of prompts computed here; ``itl_ms``:
    of sequences decoded here; both at the percentile asked for. ``busy``: prefill: the share of time in
    which it computes; decoding: the share of its batch limit in use on average. ``load``: the rate, of the
    most that it could serve within the service level, and ``binding``: what keeps it from more.
    ``chunk_tokens``: prefill tokens of a step. ``max_sequences``: of one replica's batch. ``kv_share``: of
    its KV cache held on average.
    """

    name: str
    role: StageRole
    group: str
    gpu: str
    zone: str
    parallel: Parallel
    replicas: int
    gpus: int
    rate_per_s: float
    local_share: float
    ttft_ms: float | None
    itl_ms: float | None
    busy: float
    load: float
    binding: str
    chunk_tokens: int
    max_sequences: int
    kv_tokens: int
    kv_share: float
    dollars_per_hour: float
    power_w: float
    tokens_per_s_per_gpu: float
    times_from: str
    expected_error: float


class Handing(msgspec.Struct, frozen=True, kw_only=True):
    """Caches that move from one place (zone and speed of its network) to another."""

    sender: str
    receiver: str
    per_s: float


class PlantPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole plant. ``most_rate_per_s``: what it could serve within the service level. ``within``: the
    share of requests predicted to be within both limits. ``tokens_per_s_per_gpu``: output tokens.
    ``added_dollars_per_hour``: without nodes that are reserved, and so paid for in any case."""

    kind: Kind
    stages: tuple[StagePlan, ...]
    rate_per_s: float
    most_rate_per_s: float
    ttft_ms: float
    ttft_mean_ms: float
    itl_ms: float
    itl_mean_ms: float
    within: float
    gpus: int
    dollars_per_hour: float
    added_dollars_per_hour: float
    power_w: float
    tokens_per_s_per_gpu: float
    dollars_per_million: TokenPrices
    handing: tuple[Handing, ...] = ()

    @property
    def local_share(self) -> float:
        """The share of all prompts that are computed where they are decoded."""
        decoding = [stage for stage in self.stages if stage.role is not StageRole.PREFILL]
        return sum(stage.rate_per_s * stage.local_share for stage in decoding) / self.rate_per_s

    @property
    def unequal(self) -> tuple[StagePlan, ...]:
        """The stages that decode, where they are several: a router must know how fast each is."""
        decoding = tuple(stage for stage in self.stages if stage.role is not StageRole.PREFILL)
        return decoding if len(decoding) > 1 else ()

    @property
    def words(self) -> str:
        """The plant in a line."""
        return " + ".join(
            f"{stage.replicas}x {stage.gpu} {parallel_words(stage.parallel)} {role_words(stage)}"
            for stage in self.stages
        )


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """Another plant for the same ask, or why there is none. ``what``: what it is the best of; ``why``: why it
    loses."""

    what: str
    plant: PlantPlan | None
    why: str


class Nearest(msgspec.Struct, frozen=True, kw_only=True):
    """An ask that could be met, by changing one thing of what was asked: which, and to what."""

    change: Literal["rate_per_s", "ttft_ms", "itl_ms", "percentile", "gpus"]
    value: float
    words: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. ``best`` is None where the ask cannot be met; ``binding`` then says which limits each
    alone stand in the way, and ``nearest`` what could be asked for in its place."""

    best: PlantPlan | None
    runners_up: tuple[RunnerUp, ...] = ()
    binding: tuple[str, ...] = ()
    nearest: tuple[Nearest, ...] = ()
    notes: tuple[str, ...] = ()


def parallel_words(parallel: Parallel) -> str:
    """Return "TP2", "TP1 DP8 EP8" and the like."""
    parts = [f"TP{parallel.tp}"]
    parts += [f"{name}{value}" for name, value in (("PP", parallel.pp), ("DP", parallel.dp)) if value > 1]
    return " ".join([*parts, *([f"EP{parallel.ep}"] if parallel.ep > 1 else [])])


def role_words(stage: StagePlan) -> str:
    """Return "prefill", "decode", "aggregated", or what share of prompts a decoding stage computes itself."""
    if stage.role is StageRole.PREFILL:
        return "prefill"
    if stage.local_share == 1:
        return "aggregated"
    return f"decode + {stage.local_share:.0%} of prompts" if stage.local_share else "decode"


def stage_role(prefill: bool, local_share: float) -> StageRole:
    """Return the role that the workers of a stage are given."""
    if prefill:
        return StageRole.PREFILL
    return StageRole.BOTH if local_share == 1 else StageRole.DECODE


def stage_names(candidates: list[tuple[StageRole, Candidate]]) -> list[str]:
    """Name stages after what they do, and after their GPU where several do the same."""
    plain = [{StageRole.BOTH: "worker"}.get(role, role.value) for role, _ in candidates]
    names: list[str] = []
    for name, (_, candidate) in zip(plain, candidates, strict=True):
        full = name
        if plain.count(name) > 1:
            gpu = "".join(c if c.isalnum() else "-" for c in candidate.group.gpu.name.lower())
            full = f"{name}-{gpu}".strip("-")
        number, unique = 2, full
        while unique in names:
            unique, number = f"{full}-{number}", number + 1
        names.append(unique)
    return names
