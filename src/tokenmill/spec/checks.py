"""What a factory's fields must be together; single fields are checked where they are read."""

from __future__ import annotations

from typing import Final

from tokenmill.spec.derive import FRONTEND
from tokenmill.spec.factory import Factory
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.model_checks import check_models
from tokenmill.spec.nodes import Reader
from tokenmill.spec.placement import gpus_of_replica
from tokenmill.spec.plugins import ROUTER_POLICIES, installed
from tokenmill.spec.problems import did_you_mean, one_of, repeated
from tokenmill.spec.stage import Parallel, Stage

ENGINES: Final = (*EMBEDDED_ENGINES, "vllm", "sglang", "trtllm", "openai")
"""What this version can run."""

POLICIES: Final = ("kv", "least-loaded", "power-of-two", "round-robin", "random", "session")
"""What the router brings along; others may be installed."""

TRANSPORTS: Final = ("shm", "tcp")
KV_CONNECTORS: Final = ("nixl", "tokenmill")


def check_factory(factory: Factory, reader: Reader) -> None:
    """Note what does not fit together; as a whole it can be judged only where all of it was read."""
    if not reader.problems:
        _check_whole(factory, reader)
        for index, stage in enumerate(factory.stages):
            _check_stage(stage, reader, f"stages[{index}]")
    policy = factory.router.policy
    if policy not in POLICIES and policy not in (own := installed(ROUTER_POLICIES)):
        known = (*POLICIES, *own)
        hint = did_you_mean(policy, known)
        reader.blame_field("router.policy", f'"{policy}" is not {one_of(known)}.{hint}')
    last_port = factory.frontend.port + factory.frontend.replicas - 1
    if factory.frontend.port and last_port > 65535:
        message = (
            "where ports cannot be shared replica i listens on port + i, "
            f"and {last_port} is above 65535; choose a lower port"
        )
        reader.blame_field("frontend.port", message)


def _check_whole(factory: Factory, reader: Reader) -> None:
    if not factory.stages:
        reader.blame_field(
            "stages", "is empty; declare at least one stage, for example {name: worker, role: both}"
        )
    names = [stage.name for stage in factory.stages]
    for index, name, first in repeated(names):
        reader.blame_field(
            f"stages[{index}].name", f'"{name}" is also the name of stages[{first}]; choose another'
        )
    if FRONTEND in names:
        path = f"stages[{names.index(FRONTEND)}].name"
        reader.blame_field(path, f'"{FRONTEND}" names the front door; choose another')
    check_models(factory, reader.blame_field)


def _check_stage(stage: Stage, reader: Reader, path: str) -> None:
    if stage.engine not in ENGINES:
        hint = did_you_mean(stage.engine, ENGINES)
        reader.blame_field(f"{path}.engine", f'"{stage.engine}" is not {one_of(ENGINES)}.{hint}')
    elif stage.engine in EMBEDDED_ENGINES and stage.parallel != Parallel():
        message = f'engine "{stage.engine}" runs on one device; remove "parallel"'
        reader.blame_field(f"{path}.parallel", message)
    _check_gpus(stage, reader, f"{path}.gpus")
    for index, name in enumerate(stage.transports):
        if name not in TRANSPORTS:
            hint = did_you_mean(name, TRANSPORTS)
            reader.blame_field(f"{path}.transports[{index}]", f'"{name}" is not {one_of(TRANSPORTS)}.{hint}')
    _check_connector(stage, reader, f"{path}.kv_connector")


def _check_connector(stage: Stage, reader: Reader, path: str) -> None:
    if stage.kv_connector not in KV_CONNECTORS:
        hint = did_you_mean(stage.kv_connector, KV_CONNECTORS)
        reader.blame_field(path, f'"{stage.kv_connector}" is not {one_of(KV_CONNECTORS)}.{hint}')
    elif stage.engine != "vllm" and stage.kv_connector != Stage(name="any").kv_connector:
        reader.blame_field(path, f'is for engine "vllm", not "{stage.engine}"; remove it')


def _check_gpus(stage: Stage, reader: Reader, path: str) -> None:
    if not stage.gpus:
        return
    needed = gpus_of_replica(stage)
    if not needed:
        message = f"are for engines of their own; remove it, or write device: cuda:{stage.gpus[0]}"
        reader.blame_field(path, message)
    elif len(set(stage.gpus)) < len(stage.gpus):
        reader.blame_field(path, "name one twice; name each once")
    elif len(stage.gpus) % needed:
        message = f"are {len(stage.gpus)}, and each replica needs {needed}; list so many, or a multiple"
        reader.blame_field(path, message)
