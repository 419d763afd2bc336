"""KServe's ``LLMInferenceService``, v1alpha1 and v1alpha2.

Its controller starts ``vllm serve`` with options of its own and those that the file adds. Read against KServe
of August 2026.
"""

from __future__ import annotations

import shlex
from typing import Final

from tokenmill.spec.front import Router
from tokenmill.spec.imports.assembling import Engine, Found, drafted, engine_of
from tokenmill.spec.imports.option_files import OptionFiles
from tokenmill.spec.imports.pods import (
    Environment,
    engine_environment,
    gpu_kind,
    program_of,
    read_container,
    read_environment,
    read_gpus,
)
from tokenmill.spec.imports.shell import Command
from tokenmill.spec.imports.tree import Item

KIND: Final = "LLMInferenceService"

_MORE_ARGUMENTS: Final = "VLLM_ADDITIONAL_ARGS"
"""The variable by which files add options to the command of KServe's templates."""

_RANKS: Final = {"tensor": "tp", "pipeline": "pp", "data": "dp"}

_WHY: Final = {
    "scaling": "is KServe's; a factory keeps the replicas that it declares",
    "kvCacheOffloading": "engines of a factory keep their cache in GPU memory",
    "lora": "a factory serves the base model only",
    "baseRefs": "what it refers to is in the cluster; import the merged service for all of it",
    "tracing": "a factory has no tracing settings",
    "storageInitializer": "checkpoints are downloaded before a factory is brought up",
}


def read_service(root: Item, files: OptionFiles) -> Found:
    """Return what a service declares. ``files``: that its engines may read."""
    for field in ("apiVersion", "kind"):
        if item := root.get(field):
            item.take()
    name, spec = root.get("metadata", "name"), root.get("spec")
    found = Found(name=name.text() if name is not None else "", at=spec or root)
    if spec is None:
        root.blame('is missing; add "spec:"')
        return found
    path, served = _model(spec, found.name)
    found.router = Router(policy=_policy(spec))
    prefill = spec.get("prefill")
    if prefill is not None:
        found.engines.append(_engine("prefill", "prefill", prefill, (path, served), files))
    role = "decode" if prefill is not None else ""
    found.engines.append(_engine(role or "worker", role, spec, (path, served), files))
    for workload in (spec, prefill):
        for part, why in _WHY.items():
            if workload is not None and (item := workload.get(part)):
                item.lose(why)
    return found


def _model(spec: Item, default: str) -> tuple[str, str]:
    """Return the checkpoint and the name that clients use."""
    uri, name, lora = spec.get("model", "uri"), spec.get("model", "name"), spec.get("model", "lora")
    served = name.text() if name is not None else default
    if lora is not None:
        lora.lose(_WHY["lora"])
    if uri is None:
        (spec.get("model") or spec).blame("the model's uri is missing")
        return "", served
    kind, _, place = uri.text().partition("://")
    if kind == "hf":
        path, _, revision = place.partition(":")
        if revision:
            uri.lose(f"the revision, {revision}: model.path is whatever revision is downloaded")
        return path, served
    storage = f"{kind}:// is storage of the cluster"
    if "/" in served:
        uri.lose(f"{storage}; model.path is the model's name, {served}")
        return served, served
    folder = f"./{place.rpartition('/')[2]}"
    uri.lose(f"{storage}; put the checkpoint into {folder}, or change model.path")
    return folder, served


def _policy(spec: Item) -> str:
    """With a scheduler, requests are routed by load and cache; else evenly."""
    scheduler = spec.get("router", "scheduler")
    if scheduler is None:
        return "round-robin"
    if scheduler.value == {}:
        scheduler.take()
    elif config := scheduler.get("config"):
        config.lose("its plug-ins and weights have no counterpart; router.policy is kv")
    return "kv"


def _engine(name: str, role: str, workload: Item, model: tuple[str, str], files: OptionFiles) -> Engine:
    container = _main_container(workload)
    environment = read_environment(container.get("env") if container is not None else None)
    words, used = _words(container, environment)
    at = environment.items.get(_MORE_ARGUMENTS) or container or workload
    options = drafted("vllm", words, at, files)
    options.model, options.served = model
    # What the service names goes before what the container's command may say.
    options.role = role
    _read_parallelism(workload, options.parallel)
    replicas = workload.get("replicas") or workload.get("scaling", "minReplicas")
    worker = workload.get("worker")
    template = workload.get("template")
    if worker is not None:
        worker.lose(
            "it is the other machines' part of an engine that spans several; a worker launches one on one"
        )
    gpus = read_gpus(container.get("resources") if container is not None else None)
    return Engine(
        name=name,
        kind="vllm",
        at=at,
        options=options,
        role=role,
        replicas=replicas.number() if replicas is not None else 1,
        gpus=gpus,
        gpu=gpu_kind(*(template.get(each) for each in ("nodeSelector", "affinity")))
        if template is not None
        else "",
        nodes=_nodes(workload, gpus) if worker is not None else 1,
        environment=engine_environment(environment, used),
    )


def _main_container(workload: Item) -> Item | None:
    listed = workload.get("template", "containers")
    for container in listed.items() if listed is not None else ():
        name = container.get("name")
        if name is not None and name.text() == "main":
            return container
    return None


def _words(container: Item | None, environment: Environment) -> tuple[list[str], set[str]]:
    """Return the engine's options, and the variables that were only for them."""
    used: set[str] = set()
    words: list[str] = []
    if container is not None and (script := read_container(container, environment)):
        used |= script.used
        if container.get("command") is None:
            words += script.commands[0].words if script.commands else []
        for command in script.commands if container.get("command") is not None else ():
            if started := engine_of(Command(program_of(command))):
                words += [word for word in started[1] if word.startswith("-") or words]
    if (added := environment.values.get(_MORE_ARGUMENTS)) is not None:
        used.add(_MORE_ARGUMENTS)
        try:
            words += shlex.split(added)
        except ValueError as error:
            environment.items[_MORE_ARGUMENTS].blame(f"{_MORE_ARGUMENTS} is not what a shell takes: {error}")
    return words, used


def _read_parallelism(workload: Item, ranks: dict[str, int]) -> None:
    parallelism = workload.get("parallelism")
    if parallelism is None:
        return
    for name, ours in _RANKS.items():
        if item := parallelism.get(name):
            ranks[ours] = item.number()
    expert, local = parallelism.get("expert"), parallelism.get("dataLocal")
    if expert is not None and expert.text() == "true":
        ranks["ep"] = -1
    if local is not None:
        local.take()
    if port := parallelism.get("dataRPCPort"):
        port.lose("the worker chooses its ports")


def _nodes(workload: Item, gpus: int) -> int:
    """How many machines an engine spans, by its ranks and the GPUs of each."""
    ranks: dict[str, int] = {}
    _read_parallelism(workload, ranks)
    needed = ranks.get("tp", 1) * ranks.get("pp", 1) * ranks.get("dp", 1)
    return max(2, -(-needed // gpus)) if gpus else 2
