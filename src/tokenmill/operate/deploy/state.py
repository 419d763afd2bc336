"""The state folder: what a running factory leaves on disk for the commands that look after it.

One folder for each factory name: ``lock`` (held as long as its supervisor lives), ``factory.yaml`` (as
applied), ``supervisor.json``, ``control.sock``, ``registry/``, ``log``. A record whose lock is free is stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.errors import ConfigError, TokenmillError

MAX_SOCKET_PATH_BYTES: Final = 100
"""Unix sockets take 104 (macOS) to 108 (Linux) bytes of path."""

_RUN_DIR_PREFIX: Final = "tm-run-"


class SupervisorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """supervisor.json: who looks after the factory. ``started``: seconds since 1970."""

    name: str
    pid: int
    started: float
    run_dir: str
    urls: list[str] = []


def state_root(environment: Mapping[str, str]) -> Path:
    """Where state folders are: TOKENMILL_STATE_DIR, XDG_STATE_HOME/tokenmill or ~/.local/state/tokenmill."""
    if chosen := environment.get("TOKENMILL_STATE_DIR"):
        return Path(chosen).absolute()
    if xdg := environment.get("XDG_STATE_HOME"):
        return Path(xdg) / "tokenmill"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and the system does not know this user
        raise ConfigError("there is no home folder: set TOKENMILL_STATE_DIR to one you can write") from None
    return home / ".local" / "state" / "tokenmill"


class StateFolder:
    """One factory's folder."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.path = root / name
        self.lock = self.path / "lock"
        self.factory = self.path / "factory.yaml"
        self.record = self.path / "supervisor.json"
        self.control = self.path / "control.sock"
        self.registry = self.path / "registry"
        self.log = self.path / "log"

    @property
    def running(self) -> bool:
        """Whether a supervisor holds the lock."""
        with contextlib.suppress(OSError), self.lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def stale(self) -> bool:
        """Whether a supervisor ended without cleaning up."""
        return self.record.exists() and not self.running

    def read_record(self) -> SupervisorRecord | None:
        """Return who looks after the factory; None if nobody says."""
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=SupervisorRecord)
        except (OSError, msgspec.MsgspecError):
            return None

    def write_record(self, record: SupervisorRecord) -> None:
        """Replace the record; readers see the old or the new one, never half of it."""
        fresh = self.record.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        fresh.replace(self.record)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; cleans up what a killed supervisor left, and at the end what this one made.

        Raises TokenmillError if the name runs already or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self.lock.open("ab")
        except OSError as error:
            raise TokenmillError(
                f"state folder {self.path}: {error.strerror}; set TOKENMILL_STATE_DIR to one you can write"
            ) from None
        with file:
            if not _locked(file.fileno()):
                raise self._taken()
            self._clean()
            try:
                yield
            finally:
                self._clean()

    def _taken(self) -> TokenmillError:
        record = self.read_record()
        who = f" (pid {record.pid})" if record else ""
        return TokenmillError(
            f'"{self.name}" is running already{who}; stop it with: tokenmill down {self.name}, '
            "or choose another --name"
        )

    def _clean(self) -> None:
        record = self.read_record()
        if record is not None and Path(record.run_dir).name.startswith(_RUN_DIR_PREFIX):
            shutil.rmtree(record.run_dir, ignore_errors=True)
        shutil.rmtree(self.registry, ignore_errors=True)
        for path in (self.control, self.record):
            path.unlink(missing_ok=True)

    def make_run_dir(self) -> Path:
        """Make the folder of the processes' sockets; a temporary one, whose path is short enough for them."""
        return Path(tempfile.mkdtemp(prefix=_RUN_DIR_PREFIX))


def _locked(fd: int) -> bool:
    """Take the lock. Somebody may be looking whether it is held, which takes it for a moment: try again."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


def state_folders(root: Path) -> list[StateFolder]:
    """All factories that left a trace here, by name."""
    if not root.is_dir():
        return []
    return [StateFolder(root, path.name) for path in sorted(root.iterdir()) if (path / "lock").exists()]


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a path to the same file that fits into a socket address, while one binds or connects."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="tm-") as folder:
        link = Path(folder) / "s"
        link.symlink_to(path.parent, target_is_directory=True)
        yield str(link / path.name)
