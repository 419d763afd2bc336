"""What can be known to fail before the first process is started."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.plant import check_count
from tokenmill.spec.factory import Factory
from tokenmill.spec.models import resolve_model


def grounded(factory: Factory, folder: Path) -> Factory:
    """Return the factory with its model's folder as an absolute path; a relative one is seen from ``folder``.

    What is no folder and does not look like one is left alone: a hub id. Raises ConfigError.
    """
    path = factory.model.path
    if not path:
        return factory
    found = folder / Path(path).expanduser()
    if found.is_dir():
        model = msgspec.structs.replace(factory.model, path=str(found.resolve()))
        return msgspec.structs.replace(factory, model=model)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"model.path: no such folder: {found}; name a checkpoint folder")
    return factory


def check_place(factory: Factory, *, ports: bool = True) -> None:
    """Raise ConfigError for what this machine lacks. ``ports``: also where the ports must be free."""
    check_count(factory)
    check_engines(factory)
    check_cpus(factory)
    check_model(factory)
    if ports:
        for replica in range(factory.frontend.replicas if factory.frontend.port else 0):
            check_port(factory.frontend.host, factory.frontend.port + replica)


def check_engines(factory: Factory) -> None:
    """Raise ConfigError if a stage's engine is not installed."""
    for stage in factory.stages:
        if stage.engine == "torch" and not (_installed("torch") and _installed("transformers")):
            raise ConfigError(
                f"stage {stage.name}: engine torch is not installed: pip install 'tokenmill[torch]', "
                "or use the simulated engine: --engine sim"
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


def check_model(factory: Factory) -> None:
    """Raise ConfigError if the model cannot be found."""
    resolve_model(factory.model.path)


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
