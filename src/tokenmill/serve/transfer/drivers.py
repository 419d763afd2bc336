"""Which ways of moving KV blocks there are, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError
from tokenmill.serve.transfer.driver import Driver
from tokenmill.serve.transfer.shm import ShmDriver
from tokenmill.serve.transfer.tcp import TcpDriver
from tokenmill.serve.transfer.transport import StreamTransport


def open_transport(
    names: Sequence[str], *, host: str, run_dir: Path | None, clock: Clock, checksums: bool = False
) -> StreamTransport:
    """Return one transport whose exports can be pulled in each of the named ways, best first.

    ``host``: address that "tcp" listens on and tells peers. ``run_dir``: where sockets go on systems without
    abstract ones. ``checksums``: verify what was pulled (xxh3; for debugging: it costs another pass over
    the bytes on both sides). Raises ConfigError for a name that is unknown or twice there.
    """
    known: dict[str, Callable[[], Driver]] = {
        "shm": lambda: ShmDriver(run_dir),
        "tcp": lambda: TcpDriver(host),
    }
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown KV transport {name!r}: use one of {', '.join(sorted(known))}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"KV transports {list(names)}: name at least one, each once")
    return StreamTransport([known[name]() for name in names], clock=clock, checksums=checksums)
