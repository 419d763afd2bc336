"""The registry: who is there, and what they agreed on.

Users name a driver by URL and see only the seam in ``registry_base``.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from tokenmill.errors import ConfigError
from tokenmill.serve.fabric.registry_base import SYNCED, Change, Lease, Registry, Watch
from tokenmill.serve.fabric.registry_file import FileRegistry
from tokenmill.serve.fabric.registry_memory import MemoryRegistry

__all__ = ["SYNCED", "Change", "Lease", "Registry", "Watch", "open_registry"]


def open_registry(url: str) -> Registry:
    """Return the registry that ``url`` names, not started yet.

    "memory:" is a new one inside this process (share the object); "file:///folder" is shared by the processes
    of one host. Raises ConfigError for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory" and not (parts.netloc or parts.path):
        return MemoryRegistry()
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and len(parts.path) > 1:
        return FileRegistry(Path(unquote(parts.path)))
    raise ConfigError(f'registry {url!r}: write "memory:" or "file:///folder"', param="registry")
