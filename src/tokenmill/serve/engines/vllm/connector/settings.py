"""What the connector is told: one schema for the launch that writes it and the engine that reads it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tokenmill.errors import ConfigError

CONNECTOR = "TokenmillConnector"
MODULE = "tokenmill_connector"
"""The module in ``on_path`` that vLLM imports."""


class ConnectorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's ``kv_connector_extra_config``.

    ``transports``: drivers, best first; ``host``: where tcp listens, which takers must be able to reach;
    ``run_dir``: for sockets where there are no abstract ones; ``lease_s``: how long blocks are kept for a
    taker that does not come; ``checksums``: compare what came with what was sent (for debugging).
    """

    transports: tuple[str, ...] = ("shm", "tcp")
    host: str = "127.0.0.1"
    run_dir: str = ""
    lease_s: float = 30.0
    checksums: bool = False


def read_settings(extra: Mapping[str, object]) -> ConnectorSettings:
    """Return the settings in ``kv_connector_extra_config``. Raises ConfigError."""
    try:
        settings = msgspec.convert(extra, ConnectorSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"kv_connector_extra_config: {error}") from error
    if not settings.lease_s > 0:
        raise ConfigError("kv_connector_extra_config: lease_s must be above 0")
    return settings


def transfer_config(settings: ConnectorSettings, kv_role: str) -> dict[str, object]:
    """Return vLLM's ``--kv-transfer-config`` for this connector.

    A failed load fails the request, so that the worker sees it, counts it and sends it again.
    """
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": kv_role,
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": msgspec.to_builtins(settings),
    }
