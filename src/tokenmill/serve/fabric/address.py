"""Where a server listens: "unix:/path" or "tcp://host:port".

It knows how addresses are written and nothing of what is said there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from tokenmill.errors import ConfigError

UNIX_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""The kernel's limit for a socket's path (``sun_path`` less its final zero)."""


@dataclass(frozen=True)
class UnixAddress:
    """A socket file."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class TcpAddress:
    """``host``: a name, an IPv4 or an IPv6 address (without brackets). ``port`` 0: any, for servers."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


Address: TypeAlias = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Return what ``text`` says. Raises ConfigError that says how to write it right."""
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("tcp://"):
        return _parse_tcp(text)
    raise ConfigError(f'address {text!r}: write "unix:/path" or "tcp://host:port"', param="address")


def _parse_unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path.removeprefix("//")
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f'address {text!r}: "unix:" is followed by an absolute path', param="address")
    length = len(os.fsencode(path))
    if length > UNIX_PATH_BYTES:
        raise ConfigError(
            f"address {text!r}: the path has {length} bytes, a Unix socket's may have {UNIX_PATH_BYTES}; "
            "use a shorter folder, such as one below /tmp or /run",
            param="address",
        )
    return UnixAddress(path)


def _parse_tcp(text: str) -> TcpAddress:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"address {text!r}: {error}", param="address") from error
    extra = parts.path or parts.query or parts.fragment or parts.username or parts.password
    if not parts.hostname or port is None or extra:
        raise ConfigError(
            f'address {text!r}: write "tcp://host:port", with brackets around an IPv6 address',
            param="address",
        )
    return TcpAddress(parts.hostname, port)
