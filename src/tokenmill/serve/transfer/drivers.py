"""Which ways of moving KV blocks there are, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, HandoffFailed
from tokenmill.serve.transfer.base import KvTransport
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


def open_transports(
    names: Sequence[str], *, host: str, run_dir: Path | None, clock: Clock, checksums: bool = False
) -> list[KvTransport]:
    """Return a transport for each name: exports of each can be pulled in that way only."""
    return [
        open_transport([name], host=host, run_dir=run_dir, clock=clock, checksums=checksums) for name in names
    ]


def find_transport(transports: Iterable[KvTransport], name: str) -> KvTransport:
    """Return the one that can pull a handoff written by transport ``name`` ("shm", "tcp", "shm+tcp").

    Raises HandoffFailed when none shares a way with it.
    """
    offered = set(name.split("+"))
    ours = list(transports)
    for transport in ours:
        if offered & set(transport.name.split("+")):
            return transport
    raise HandoffFailed(
        f"the sender offers {name}, we have {', '.join(t.name for t in ours) or 'no transport'}"
    )
