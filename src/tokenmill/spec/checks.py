"""What a factory's fields must be together; single fields are checked where they are read."""

from __future__ import annotations

from typing import Final

from tokenmill.protocol.ids import Role
from tokenmill.spec.factory import Factory
from tokenmill.spec.nodes import Reader
from tokenmill.spec.plugins import ROUTER_POLICIES, installed
from tokenmill.spec.problems import Place, did_you_mean, one_of
from tokenmill.spec.process import EMBEDDED_BLOCK_TOKENS
from tokenmill.spec.stage import Stage

EMBEDDED_ENGINES: Final = ("torch", "sim")
"""Engines that run in the worker."""

ENGINES: Final = (*EMBEDDED_ENGINES, "vllm")
"""What this version can run."""

LATER_ENGINES: Final = ("sglang", "trtllm", "openai")
"""What the file format knows, but this version cannot run."""

POLICIES: Final = ("kv", "least-loaded", "power-of-two", "round-robin", "random", "session")
"""What the router brings along; others may be installed."""

TRANSPORTS: Final = ("shm", "tcp")


def check_factory(factory: Factory, reader: Reader, *, complete: bool) -> None:
    """Note what does not fit together. ``complete``: all of it was read and can be judged as a whole."""
    if complete:
        _check_whole(factory, reader)
        for index, stage in enumerate(factory.stages):
            _check_stage(stage, reader, f"stages[{index}]")
    policy = factory.router.policy
    if policy not in POLICIES and policy not in (own := installed(ROUTER_POLICIES)):
        known = (*POLICIES, *own)
        hint = did_you_mean(policy, known)
        _blame(reader, "router.policy", f'"{policy}" is not {one_of(known)}.{hint}')
    last_port = factory.frontend.port + factory.frontend.replicas - 1
    if factory.frontend.port and last_port > 65535:
        message = (
            "where ports cannot be shared replica i listens on port + i, "
            f"and {last_port} is above 65535; choose a lower port"
        )
        _blame(reader, "frontend.port", message)


def _check_whole(factory: Factory, reader: Reader) -> None:
    if not factory.stages:
        _blame(
            reader, "stages", "is empty; declare at least one stage, for example {name: worker, role: both}"
        )
    names: dict[str, int] = {}
    for index, stage in enumerate(factory.stages):
        if stage.name in names:
            message = f'"{stage.name}" is also the name of stages[{names[stage.name]}]; choose another'
            _blame(reader, f"stages[{index}].name", message)
        elif stage.name == "frontend":
            _blame(reader, f"stages[{index}].name", '"frontend" names the front door; choose another')
        names.setdefault(stage.name, index)
    roles = {stage.role for stage in factory.stages}
    for has, lacks in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
        if has in roles and lacks not in roles and Role.BOTH not in roles:
            index = next(i for i, stage in enumerate(factory.stages) if stage.role is has)
            message = f"a {has} stage needs a {lacks} stage beside it; add one, or use role: both"
            _blame(reader, f"stages[{index}].role", message)
    _check_block_sizes(factory, reader)


def _check_block_sizes(factory: Factory, reader: Reader) -> None:
    """KV blocks are handed over as they are, so that their sizes must agree."""
    sizes = [_block_tokens(stage) for stage in factory.stages]
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            message = f"{size} differs from stages[0]; make it {sizes[0]} too"
            _blame(reader, f"stages[{index}].block_tokens", message)


def _block_tokens(stage: Stage) -> int:
    return stage.block_tokens or (EMBEDDED_BLOCK_TOKENS if stage.engine in EMBEDDED_ENGINES else 0)


def _check_stage(stage: Stage, reader: Reader, path: str) -> None:
    if stage.engine in LATER_ENGINES:
        message = f'engine "{stage.engine}" is not built into this version; use {one_of(ENGINES)}'
        _blame(reader, f"{path}.engine", message)
    elif stage.engine not in ENGINES:
        hint = did_you_mean(stage.engine, ENGINES)
        _blame(reader, f"{path}.engine", f'"{stage.engine}" is not {one_of(ENGINES)}.{hint}')
    elif stage.parallel.tp * stage.parallel.pp * stage.parallel.dp * stage.parallel.ep > 1:
        message = f'engine "{stage.engine}" runs on one device; remove "parallel"'
        _blame(reader, f"{path}.parallel", message)
    for index, name in enumerate(stage.transports):
        if name not in TRANSPORTS:
            hint = did_you_mean(name, TRANSPORTS)
            _blame(reader, f"{path}.transports[{index}]", f'"{name}" is not {one_of(TRANSPORTS)}.{hint}')


def _blame(reader: Reader, path: str, message: str) -> None:
    """Point at the field, or where it is not written, at what it belongs to."""
    spot = path
    while spot and spot not in reader.places:
        spot = spot.rpartition(".")[0]
    reader.blame(reader.places.get(spot, Place(1, 1)), path, message)
