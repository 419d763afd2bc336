"""Whether the stages of a factory can hand over to each other, as far as its file tells.

Exists so that an impossible mix of engines is refused before anything runs, by the rule that the router obeys
while it runs. It must not know YAML or processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tokenmill.protocol.handoffs import VLLM_TRANSPORTS, Side, why_not
from tokenmill.protocol.ids import Role
from tokenmill.spec.derive import models_of, stages_of
from tokenmill.spec.factory import Factory
from tokenmill.spec.process import EMBEDDED_BLOCK_TOKENS
from tokenmill.spec.stage import Stage

EMBEDDED_ENGINES: Final = ("torch", "sim")
"""Engines that run in the worker."""

_KV_DTYPE: Final = ("kv_cache_dtype", "kv-cache-dtype", "kv_cache_config.dtype")


def stages_without_partner(
    factory: Factory, versions: Mapping[str, str] | None = None
) -> Iterator[tuple[Stage, str]]:
    """Yield stages that must hand over and can do so with no other one, each with the reason and the fix.

    ``versions``: of engines by stage name, where they are known.
    """
    for model in models_of(factory):
        stages = stages_of(factory, model)
        givers = [stage for stage in stages if stage.role is Role.PREFILL]
        takers = [stage for stage in stages if stage.role is Role.DECODE]
        for giver in givers:
            yield from _alone(giver, [(giver, taker) for taker in takers], versions or {})
        for taker in takers:
            yield from _alone(taker, [(giver, taker) for giver in givers], versions or {})


def _alone(
    stage: Stage, pairs: list[tuple[Stage, Stage]], versions: Mapping[str, str]
) -> Iterator[tuple[Stage, str]]:
    whys = [why_not(side_of_stage(giver, versions), side_of_stage(taker, versions)) for giver, taker in pairs]
    if whys and "" not in whys:
        yield stage, whys[0]


def side_of_stage(stage: Stage, versions: Mapping[str, str]) -> Side:
    """Return what a stage's workers will tell of themselves, as far as it is known."""
    embedded = stage.engine in EMBEDDED_ENGINES
    dtype = next((stage.engine_args[name] for name in _KV_DTYPE if name in stage.engine_args), "auto")
    if embedded:
        dtype = stage.dtype
    return Side(
        name=f"stage {stage.name}",
        engine=stage.engine,
        version=versions.get(stage.name, ""),
        transports=_transports(stage, embedded=embedded),
        kv_dtype="" if dtype == "auto" else dtype,
        block_tokens=stage.block_tokens or (EMBEDDED_BLOCK_TOKENS if embedded else 0),
    )


def _transports(stage: Stage, *, embedded: bool) -> tuple[str, ...] | None:
    if stage.engine == "vllm":
        return tuple(VLLM_TRANSPORTS[name] for name in (stage.kv_connector,) if name in VLLM_TRANSPORTS)
    return tuple(stage.transports) if embedded else None
