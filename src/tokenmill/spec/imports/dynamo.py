"""Dynamo's ``DynamoGraphDeployment``: v1alpha1 with ``services``, v1beta1 with ``components``.

Read against Dynamo 1.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tokenmill.spec.front import Frontend, Router
from tokenmill.spec.imports.assembling import Engine, Found, drafted, engine_of
from tokenmill.spec.imports.option_files import OptionFiles
from tokenmill.spec.imports.options import read_options
from tokenmill.spec.imports.pods import (
    Environment,
    engine_environment,
    gpu_kind,
    program_of,
    read_container,
    read_environment,
    read_gpus,
)
from tokenmill.spec.imports.shell import Command, Script
from tokenmill.spec.imports.tree import Item

KIND: Final = "DynamoGraphDeployment"

_POLICIES: Final = {name: name for name in ("kv", "round-robin", "random", "power-of-two", "least-loaded")}

_TRIFLES: Final = {
    "set", "test", "[", "{", "}", "exit", "echo", "printf", "if", "fi", "then", "else", "for", "do", "done",
    "true", "ls", "tee", "date", "env", "mkdir", ":", "trap", "touch", "cat", "command",
}  # fmt: skip
"""Commands of scripts that change nothing for the engine."""

_OTHERS: Final = {
    "planner": "scales by its own rules; a factory keeps the replicas that it declares",
    "epp": "is a plug-in of a Kubernetes gateway; the frontend routes by itself",
}
"""Types of components that are no workers."""

_FRONTEND_TAKEN: Final = {
    "kv_cache_block_size", "router_kv_events", "model_name", "model_path", "trust_remote_code", "router_mode",
    "http_port", "http_host", "no_kv_events", "no_router_kv_events",
}  # fmt: skip
"""Options of Dynamo's frontend that are carried over, or that follow from the workers."""


@dataclass(frozen=True)
class _Component:
    """One of ``services`` or ``components``, whichever way it is written."""

    name: str
    item: Item
    type: str
    container: Item | None
    pod: Item | None
    resources: Item | None
    environment: Environment


def read_graph(root: Item, files: OptionFiles) -> Found:
    """Return what a deployment declares. ``files``: that its engines may read."""
    for field in ("apiVersion", "kind"):
        if item := root.get(field):
            item.take()
    name, spec = root.get("metadata", "name"), root.get("spec")
    found = Found(
        name=name.text() if name is not None else "", at=spec or root, router=Router(policy="round-robin")
    )
    found.files = files
    if spec is None:
        root.blame('is missing; add "spec:"')
        return found
    if framework := spec.get("backendFramework"):
        framework.take()
    shared = [item for item in (spec.get("env"), spec.get("envs")) if item is not None]
    for component in _components(spec, shared):
        _read(component, found)
    return found


def _components(spec: Item, shared: list[Item]) -> Iterator[_Component]:
    services, components = spec.get("services"), spec.get("components")
    if services is not None:
        for name, item in services.entries().items():
            yield _service(name, item, shared)
    if components is not None:
        for item in components.items():
            yield _new_component(item, shared)
    if services is None and components is None:
        spec.blame('has neither "services" (v1alpha1) nor "components" (v1beta1)')


def _service(name: str, item: Item, shared: list[Item]) -> _Component:
    kind, finer = item.get("componentType"), item.get("subComponentType")
    words = [each.text() for each in (kind, finer) if each is not None]
    if namespace := item.get("dynamoNamespace"):
        namespace.take()
    pod = item.get("extraPodSpec")
    container = pod.get("mainContainer") if pod is not None else None
    own = container.get("env") if container is not None else None
    return _Component(
        name=name,
        item=item,
        type=words[-1] if words else "",
        container=container,
        pod=pod,
        resources=item.get("resources"),
        environment=read_environment(*shared, item.get("envs"), own),
    )


def _new_component(item: Item, shared: list[Item]) -> _Component:
    name, kind = item.get("name"), item.get("type")
    if name is None:
        item.blame('is missing; add "name:"')
    pod = item.get("podTemplate", "spec")
    listed = pod.get("containers") if pod is not None else None
    containers = listed.items() if listed is not None else []
    main = next((each for each in containers if (label := each.get("name")) and label.text() == "main"), None)
    return _Component(
        name=name.text() if name is not None else "",
        item=item,
        type=kind.text() if kind is not None else "",
        container=main,
        pod=pod,
        resources=main.get("resources") if main is not None else None,
        environment=read_environment(*shared, main.get("env") if main is not None else None),
    )


def _read(component: _Component, found: Found) -> None:
    replicas = component.item.get("replicas")
    number = replicas.number() if replicas is not None else 1
    script = read_container(component.container, component.environment) if component.container else None
    if component.type in ("frontend", "main") and not _engine_command(script):
        _read_frontend(component, script, number, found)
        return
    started = _engine_command(script)
    if started is None:
        for item in component.environment.items.values():
            item.take()
        component.item.lose(_why_no_worker(component, script))
        return
    engine, words, command = started
    _note_other_commands(component, script, command)
    assert component.container is not None
    used = script.used if script is not None else set()
    at = component.container.get("args") or component.container
    nodes = component.item.get("multinode", "nodeCount")
    kept = {**engine_environment(component.environment, used), **command.environment}
    found.engines.append(
        Engine(
            name=component.name,
            kind=engine,
            at=at,
            options=drafted(engine, words, at, found.files),
            role=component.type if component.type in ("prefill", "decode") else "",
            replicas=number,
            gpus=read_gpus(component.resources),
            gpu=gpu_kind(*(component.pod.get(name) for name in ("nodeSelector", "affinity")))
            if component.pod is not None
            else "",
            nodes=nodes.number() if nodes is not None else 1,
            environment=kept,
        )
    )


def _engine_command(script: Script | None) -> tuple[str, list[str], Command] | None:
    for command in script.commands if script is not None else ():
        program = program_of(command)
        if program and program[0] not in ("echo", "printf") and (started := engine_of(Command(program))):
            return *started, command
    return None


def _note_other_commands(component: _Component, script: Script | None, command: Command) -> None:
    commands = script.commands if script is not None else []
    others = [each.words[0] for each in commands if each is not command and each.words[0] not in _TRIFLES]
    if others and component.container is not None and (arguments := component.container.get("args")):
        shown = ", ".join(dict.fromkeys(others))
        arguments.note(f"the script also runs: {shown[:200]}")


def _why_no_worker(component: _Component, script: Script | None) -> str:
    if component.type in _OTHERS:
        return f"its type, {component.type}, {_OTHERS[component.type]}"
    if script is None or not script.commands:
        return "it does not say which engine it runs"
    words = " ".join(program_of(script.commands[-1])[:4])
    return f'it runs no engine that Tokenmill knows: "{words[:80]}"'


def _read_frontend(component: _Component, script: Script | None, replicas: int, found: Found) -> None:
    options: dict[str, str] = {}
    for command in script.commands if script is not None else ():
        if "dynamo.frontend" in command.words and program_of(command)[:1] not in (["echo"], ["printf"]):
            options = read_options(command.words[command.words.index("dynamo.frontend") + 1 :])[1]
    used = script.used if script is not None else set()
    mode = component.environment.values.get("DYN_ROUTER_MODE", "")
    if mode:
        used = used | {"DYN_ROUTER_MODE"}
    at = component.container or component.item
    for name in engine_environment(component.environment, used):
        if not _is_shared(component, name):
            component.environment.items[name].lose(f"{name} is not a setting of our frontend")
    mode = options.get("router_mode", mode)
    if mode and mode not in _POLICIES:
        at.note(f'routing "{mode}" is not one of ours; kv is taken', at=" --router-mode")
    for name in sorted(set(options) - _FRONTEND_TAKEN):
        at.note("is not a setting of our frontend or router", at=f" --{name.replace('_', '-')}")
    found.router = Router(policy=_policy(mode), kv_events=_kv_events(options))
    port, host = options.get("http_port", ""), options.get("http_host", "")
    found.frontend = Frontend(
        port=int(port) if port.isdecimal() else Frontend().port,
        host=host or Frontend().host,
        replicas=replicas,
    )


def _is_shared(component: _Component, name: str) -> bool:
    """Whether a variable is the whole deployment's, and so not lost where the frontend has no use for it."""
    return not component.environment.items[name].path.startswith(component.item.path)


def _policy(mode: str) -> str:
    return _POLICIES.get(mode, "kv") if mode else "round-robin"


def _kv_events(options: Mapping[str, str]) -> bool:
    return "no_kv_events" not in options and "no_router_kv_events" not in options
