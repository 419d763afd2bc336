"""vLLM's own NIXL connector, with a progress thread that rests between two looks.

Exists for tests on few cores: NIXL's Python wrapper sets the thread's delay to 0, so that each engine keeps
one core busy with nothing to do. vLLM loads this by ``kv_connector_module_path``.
"""

from __future__ import annotations

from typing import Any

from nixl import _api
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import (
    NixlConnector,
    NixlPullConnector,
    NixlPushConnector,
)

__all__ = ["NixlConnector", "NixlPullConnector", "NixlPushConnector"]

DELAY_US = 1000


class _CalmBindings:
    """NIXL's bindings; agents are made with a delay."""

    def __init__(self, bindings: Any) -> None:
        self._bindings = bindings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def nixlAgent(self, name: str, settings: Any) -> Any:  # noqa: N802 - NIXL's name
        settings.pthrDelay = DELAY_US
        return self._bindings.nixlAgent(name, settings)


_api.nixlBind = _CalmBindings(_api.nixlBind)
