"""What can be known to fail before the first process is started."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.plant import check_count
from tokenmill.operate.deploy.shared_port import can_share_ports
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.gpus import VARIABLE
from tokenmill.serve.engines.remote.keys import grounded_key, read_key
from tokenmill.serve.frontend.http_settings import cors, tls_context
from tokenmill.spec.derive import is_text_model, models_of, to_frontend_config
from tokenmill.spec.factory import Factory, Model
from tokenmill.spec.mixes import stages_without_partner
from tokenmill.spec.models import resolve_model
from tokenmill.spec.placement import assign_gpus

_DEVICES: Final = Path("/dev")

_VERSION_TIMEOUT_S: Final = 30.0
"""A Python on a cold network disk takes seconds to say which packages it has."""

_TELLING_EVENTS: Final = ("vllm", "sglang")
"""Engines that tell their KV events over ZMQ."""

_TLS: Final = ("tls_cert", "tls_key", "tls_client_ca")


def grounded(factory: Factory, folder: Path) -> Factory:
    """Return the factory with absolute paths of its models, certificates and keys; relative ones are seen
    from ``folder``.

    A model that is no folder and does not look like one is left alone: a hub id. Raises ConfigError.
    """
    front = factory.frontend
    files = {
        name: str(folder / Path(getattr(front, name)).expanduser()) for name in _TLS if getattr(front, name)
    }
    if files:
        factory = msgspec.structs.replace(factory, frontend=msgspec.structs.replace(front, **files))
    models = [_grounded(factory, model, folder) for model in models_of(factory)]
    stages = [
        msgspec.structs.replace(
            stage,
            attach_key=grounded_key(stage.attach_key, folder),
            **{
                name: str(folder / Path(path).expanduser())
                for name in ("profile", "step_times")
                if (path := getattr(stage, name))
            },
        )
        for stage in factory.stages
    ]
    factory = msgspec.structs.replace(factory, stages=stages)
    if factory.models:
        return msgspec.structs.replace(factory, models=models)
    return msgspec.structs.replace(factory, model=models[0])


def _grounded(factory: Factory, model: Model, folder: Path) -> Model:
    path = model.path
    if not path or is_text_model(factory, model):
        return model
    found = folder / Path(path).expanduser()
    if found.is_dir():
        return msgspec.structs.replace(model, path=str(found.resolve()))
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        what = f"models: {model.name}" if factory.models else "model"
        raise ConfigError(f"{what}.path: no such folder: {found}; name a checkpoint folder")
    return model


def check_place(factory: Factory, *, ports: bool = True) -> None:
    """Raise ConfigError for what this machine lacks. ``ports``: also where the ports must be free."""
    check_count(factory)
    check_engines(factory)
    check_cpus(factory)
    check_gpus(factory, os.environ)
    check_handoffs(factory)
    check_keys(factory, os.environ)
    check_model(factory)
    check_front_door(factory)
    if ports:
        replicas = factory.frontend.replicas if factory.frontend.port else 0
        for replica in range(min(1, replicas) if can_share_ports() else replicas):
            check_port(factory.frontend.host, factory.frontend.port + replica)


def check_engines(factory: Factory) -> None:
    """Raise ConfigError if a stage's engine is not installed."""
    for stage in factory.stages:
        if stage.engine == "torch" and not (_installed("torch") and _installed("transformers")):
            raise ConfigError(
                f"stage {stage.name}: engine torch is not installed: pip install 'tokenmill[torch]', "
                "or use the simulated engine: --engine sim"
            )
        if stage.engine in _TELLING_EVENTS and not _installed("zmq"):
            raise ConfigError(
                f"stage {stage.name}: engine {stage.engine} needs the package pyzmq: "
                f"pip install 'tokenmill[{stage.engine}]'"
            )


def check_cpus(factory: Factory) -> None:
    """Raise ConfigError if a stage is pinned to cores that this process may not use."""
    if not hasattr(os, "sched_getaffinity"):
        return
    usable = os.sched_getaffinity(0)
    for stage in factory.stages:
        if missing := sorted(set(stage.cpus) - usable):
            raise ConfigError(
                f"stage {stage.name}: cpus: no core {missing[0]} here; there are {sorted(usable)}"
            )


def check_gpus(factory: Factory, environment: Mapping[str, str]) -> None:
    """Raise ConfigError if launched engines need more GPUs than this machine is known to have."""
    here = gpus_here(environment)
    if not here:
        return  # engines for other devices, which are not counted
    for (stage, replica), gpus in assign_gpus(factory).items():
        launched = next(each for each in factory.stages if each.name == stage)
        if not launched.attach and gpus and max(gpus) >= here:
            wanted = ", ".join(map(str, gpus))
            raise ConfigError(
                f"stage {stage}: GPUs {wanted} are for replica {replica}, and {here} can be seen here; "
                "lower replicas or parallel, or let stages share with gpus"
            )


def gpus_here(environment: Mapping[str, str], devices: Path = _DEVICES) -> int:
    """Return how many GPUs of NVIDIA this machine lets us see; 0: none, or not known."""
    if (seen := environment.get(VARIABLE)) is not None:
        return len([name for name in seen.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()])


def check_model(factory: Factory) -> None:
    """Raise ConfigError if a model cannot be found; one that its servers read themselves need not be here."""
    for model in models_of(factory):
        if not is_text_model(factory, model):
            resolve_model(model.path)


def check_handoffs(factory: Factory) -> None:
    """Raise ConfigError if the versions of the engines that are installed here cannot hand over to each
    other.

    What the file itself tells was checked when it was read.
    """
    launched = [stage for stage in factory.stages if stage.role is not Role.BOTH and not stage.attach]
    pythons = {stage.engine_python for stage in launched}
    if len(pythons) < 2:
        return  # one environment has one version
    versions = {stage.name: _version_of(stage.engine, stage.engine_python) for stage in launched}
    for _, why in stages_without_partner(factory, versions):
        raise ConfigError(why)


def check_keys(factory: Factory, environment: Mapping[str, str]) -> None:
    """Raise ConfigError if a key is not where it is said to be kept."""
    for stage in factory.stages:
        try:
            read_key(stage.attach_key, environment)
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error.message}") from None


def _version_of(engine: str, python: str) -> str:
    """Return which version of an engine an environment has; empty: not known."""
    package = {"trtllm": "tensorrt_llm"}.get(engine, engine)
    if not python:
        return ""
    words = [python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
    try:
        done = subprocess.run(  # noqa: S603 - the environment that the user names
            words, capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def check_front_door(factory: Factory) -> None:
    """Raise ConfigError if the certificates or the web origins are not what they must be."""
    config = to_frontend_config(factory)
    tls_context(config)
    cors(config)


def check_port(host: str, port: int) -> None:
    """Raise ConfigError if ``port`` cannot be listened on."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise ConfigError(f"--host {host}: no such address; use 127.0.0.1 or 0.0.0.0") from None
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise ConfigError(f"port {port} needs more rights; choose one above 1023 with --port") from None
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port, "
                "or see what runs with: tokenmill status"
            ) from None


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
