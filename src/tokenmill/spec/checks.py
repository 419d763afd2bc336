"""What a factory's fields must be together; single fields are checked where they are read."""

from __future__ import annotations

from functools import partial
from typing import Final

from tokenmill.spec.factory import Factory
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.model_checks import check_models
from tokenmill.spec.nodes import Reader
from tokenmill.spec.placement import gpus_of_replica
from tokenmill.spec.plugins import ROUTER_POLICIES, installed
from tokenmill.spec.problems import Place, did_you_mean, one_of
from tokenmill.spec.stage import Parallel, Stage

ENGINES: Final = (*EMBEDDED_ENGINES, "vllm", "sglang", "trtllm", "openai")
"""What this version can run."""

POLICIES: Final = ("kv", "least-loaded", "power-of-two", "round-robin", "random", "session")
"""What the router brings along; others may be installed."""

TRANSPORTS: Final = ("shm", "tcp")
KV_CONNECTORS: Final = ("nixl", "tokenmill")


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
    check_models(factory, partial(_blame, reader))


def _check_stage(stage: Stage, reader: Reader, path: str) -> None:
    if stage.engine not in ENGINES:
        hint = did_you_mean(stage.engine, ENGINES)
        _blame(reader, f"{path}.engine", f'"{stage.engine}" is not {one_of(ENGINES)}.{hint}')
    elif stage.engine in EMBEDDED_ENGINES and stage.parallel != Parallel():
        message = f'engine "{stage.engine}" runs on one device; remove "parallel"'
        _blame(reader, f"{path}.parallel", message)
    _check_gpus(stage, reader, f"{path}.gpus")
    for index, name in enumerate(stage.transports):
        if name not in TRANSPORTS:
            hint = did_you_mean(name, TRANSPORTS)
            _blame(reader, f"{path}.transports[{index}]", f'"{name}" is not {one_of(TRANSPORTS)}.{hint}')
    _check_connector(stage, reader, f"{path}.kv_connector")


def _check_connector(stage: Stage, reader: Reader, path: str) -> None:
    if stage.kv_connector not in KV_CONNECTORS:
        hint = did_you_mean(stage.kv_connector, KV_CONNECTORS)
        _blame(reader, path, f'"{stage.kv_connector}" is not {one_of(KV_CONNECTORS)}.{hint}')
    elif stage.engine != "vllm" and stage.kv_connector != Stage(name="any").kv_connector:
        _blame(reader, path, f'is for engine "vllm", not "{stage.engine}"; remove it')


def _check_gpus(stage: Stage, reader: Reader, path: str) -> None:
    if not stage.gpus:
        return
    needed = gpus_of_replica(stage)
    if not needed:
        message = f"are for engines of their own; remove it, or write device: cuda:{stage.gpus[0]}"
        _blame(reader, path, message)
    elif len(set(stage.gpus)) < len(stage.gpus):
        _blame(reader, path, "name one twice; name each once")
    elif len(stage.gpus) % needed:
        message = f"are {len(stage.gpus)}, and each replica needs {needed}; list so many, or a multiple"
        _blame(reader, path, message)


def _blame(reader: Reader, path: str, message: str) -> None:
    """Point at the field, or where it is not written, at what it belongs to."""
    spot = path
    while spot and spot not in reader.places:
        spot = spot.rpartition(".")[0]
    reader.blame(reader.places.get(spot, Place(1, 1)), path, message)
