"""What can be known to fail before the first process is started."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.plant import check_count
from tokenmill.operate.deploy.shared_port import can_share_ports
from tokenmill.serve.frontend.http_settings import cors, tls_context
from tokenmill.spec.derive import to_frontend_config
from tokenmill.spec.factory import Factory
from tokenmill.spec.models import resolve_model

_TLS: Final = ("tls_cert", "tls_key", "tls_client_ca")


def grounded(factory: Factory, folder: Path) -> Factory:
    """Return the factory with absolute paths of its model and certificates; relative ones are seen from
    ``folder``.

    A model that is no folder and does not look like one is left alone: a hub id. Raises ConfigError.
    """
    front = factory.frontend
    files = {
        name: str(folder / Path(getattr(front, name)).expanduser()) for name in _TLS if getattr(front, name)
    }
    if files:
        factory = msgspec.structs.replace(factory, frontend=msgspec.structs.replace(front, **files))
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
