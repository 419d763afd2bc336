"""A map of keys to bytes in a folder that several processes of one host share. Blocking; no asyncio.

    lock       held (flock) by whoever changes anything; the kernel frees it when its holder dies.
               Holds the revision, 8 bytes, which every change raises: readers poll only that.
    keys/      one file a key: a line of JSON about it, then the value
    leases/    one file a lease: who holds it; its modification time is the last sign of life, on the
               host's monotonic clock, so that setting the wall clock ends no lease
    new        what is being written, renamed into place when whole; only the lock's holder uses it

Crash safety: a rename is atomic, so that a killed process leaves the old file or the new one. A record
without a lease is also synced to disk before and after. One with a lease is not: it cannot outlive this boot,
for its process does not. If power fails, such a file may be torn; a torn or foreign file is skipped with a
warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, DeadlineExceeded
from tokenmill.serve.fabric.process_mark import ProcessMark, is_gone, own_mark

LOCK_TIMEOUT_S = 5.0
_LOCK_RETRY_S = 0.002
_NAME_CHARS = 200
"""File names may have 255 bytes; longer keys are named by their hash."""
_WARNED_MAX = 1000

Signature = tuple[bytes, int]
"""Revision, and modification time of ``keys`` in ns (for files that people drop there by hand)."""


class RecordHead(msgspec.Struct, frozen=True):
    """The first line of a key's file. ``size`` and ``crc32`` are of the value."""

    key: str
    size: int
    crc32: int
    lease: str = ""


class LeaseRecord(msgspec.Struct, frozen=True):
    """A lease's file."""

    ttl_s: float
    owner: ProcessMark


class FileStore:
    """The folder. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._lock = folder / "lock"
        self._keys = folder / "keys"
        self._leases = folder / "leases"
        self._clock = clock
        self._mark = own_mark()
        self._warned: set[str] = set()
        self._records: dict[str, LeaseRecord] = {}
        """Lease files once read: only their times change, and no id comes twice. Those gone are dropped."""

    def prepare(self) -> None:
        """Make the folders. Raises ConfigError where that cannot be."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise ConfigError(f"registry folder {self._folder}: {error}", param="registry") from error

    # Keys

    def get(self, key: str) -> bytes | None:
        """Return a key's value if its lease holds."""
        found = self._read(self._path(key))
        if found is None or not self._holds(found[0].lease):
            return None
        return found[1]

    def read_all(self, prefix: str = "") -> dict[str, bytes]:
        """Return all keys whose lease holds, in order of key."""
        holds: dict[str, bool] = {}
        values: dict[str, bytes] = {}
        for path in _entries(self._keys):
            found = self._read(path)
            if found is None or not found[0].key.startswith(prefix):
                continue
            head, value = found
            if head.lease not in holds:
                holds[head.lease] = self._holds(head.lease)
            if holds[head.lease]:
                values[head.key] = value
        return dict(sorted(values.items()))

    def put(self, key: str, value: bytes, lease_id: str) -> None:
        """Set a key. Raises DeadlineExceeded if the lease has ended."""
        with self._locked() as lock:
            self._set(key, value, lease_id, lock)

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        with self._locked() as lock:
            present = self._current(key, lock) is not None
            self._remove(self._path(key), lock)
            return present

    def compare_and_swap(self, key: str, expected: bytes | None, value: bytes | None, lease_id: str) -> bool:
        """Set (None: delete) a key if it is as expected."""
        with self._locked() as lock:
            if self._current(key, lock) != expected:
                return False
            if value is not None:
                self._set(key, value, lease_id, lock)
            elif expected is not None:
                self._remove(self._path(key), lock)
            return True

    def poll(self, seen: Signature | None) -> tuple[Signature, dict[str, bytes]] | None:
        """Clear away dead leases; return all keys if anything changed since ``seen``."""
        self.reap()
        signature = self.signature()
        if signature == seen:
            return None
        return signature, self.read_all()

    def signature(self) -> Signature:
        """Return what changes whenever a key does. Raises OSError."""
        try:
            lock = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(lock, 8, 0), self._keys.stat().st_mtime_ns
            finally:
                os.close(lock)
        except FileNotFoundError:
            return b"", 0

    # Leases

    def create_lease(self, ttl_s: float) -> str:
        """Return the id of a new lease."""
        lease_id = f"{self._mark.pid}-{secrets.token_hex(8)}"
        with self._locked():
            record = msgspec.json.encode(LeaseRecord(ttl_s, self._mark))
            self._write(self._leases / lease_id, record, stamp_ns=self._now_ns())
        return lease_id

    def renew(self, lease_id: str) -> bool:
        """Give a sign of life. False: it has ended, for good: who stood still too long may be replaced."""
        with self._locked() as lock:
            if self._holds(lease_id):
                stamp_ns = self._now_ns()
                os.utime(self._leases / lease_id, ns=(stamp_ns, stamp_ns))
                return True
            self._end(lease_id, lock)
            return False

    def end_lease(self, lease_id: str) -> None:
        """Delete a lease and its keys."""
        with self._locked() as lock:
            self._end(lease_id, lock)

    def reap(self) -> None:
        """Delete leases whose process is gone or silent, with their keys."""
        present = [path.name for path in _entries(self._leases)]
        for lease_id in set(self._records.copy()).difference(present):
            self._records.pop(lease_id, None)
        dead = [lease_id for lease_id in present if not self._holds(lease_id)]
        if not dead:
            return
        with self._locked() as lock:
            for lease_id in dead:
                if not self._holds(lease_id):
                    self._end(lease_id, lock)

    def _holds(self, lease_id: str) -> bool:
        if not lease_id:
            return True
        path = self._leases / lease_id
        try:
            stamp_ns = path.stat().st_mtime_ns
            record = self._records.get(lease_id)
            if record is None:
                record = msgspec.json.decode(path.read_bytes(), type=LeaseRecord)
                self._records[lease_id] = record
        except FileNotFoundError:
            self._records.pop(lease_id, None)
            return False
        except msgspec.MsgspecError as error:
            self._warn(path, error)
            return False
        silent_s = (self._now_ns() - stamp_ns) / 1e9
        return silent_s <= record.ttl_s and not is_gone(record.owner, self._mark)

    def _end(self, lease_id: str, lock: int) -> None:
        # The lease goes last: if we are killed halfway it is still dead, and the next reader goes on.
        for path in _entries(self._keys):
            found = self._read(path)
            if found is not None and found[0].lease == lease_id:
                path.unlink(missing_ok=True)
        (self._leases / lease_id).unlink(missing_ok=True)
        self._raise_revision(lock)

    # Records

    def _current(self, key: str, lock: int) -> bytes | None:
        """Return a key's value, under the lock. A silent lease found on the way is ended, so that its owner
        cannot wake up and believe that it still holds what is given to another now."""
        found = self._read(self._path(key))
        if found is None:
            return None
        if not self._holds(found[0].lease):
            self._end(found[0].lease, lock)
            return None
        return found[1]

    def _set(self, key: str, value: bytes, lease_id: str, lock: int) -> None:
        if not self._holds(lease_id):
            raise DeadlineExceeded(f"lease {lease_id} has ended: take a new one")
        head = RecordHead(key, len(value), zlib.crc32(value), lease_id)
        self._write(self._path(key), msgspec.json.encode(head) + b"\n" + value, durable=not lease_id)
        self._raise_revision(lock)

    def _remove(self, path: Path, lock: int) -> None:
        path.unlink(missing_ok=True)
        _sync_folder(self._keys)
        self._raise_revision(lock)

    def _write(
        self, path: Path, content: bytes, *, durable: bool = False, stamp_ns: int | None = None
    ) -> None:
        new = self._folder / "new"
        with new.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if stamp_ns is not None:
            os.utime(new, ns=(stamp_ns, stamp_ns))
        new.replace(path)
        if durable:
            _sync_folder(path.parent)

    def _read(self, path: Path) -> tuple[RecordHead, bytes] | None:
        try:
            head_line, newline, value = path.read_bytes().partition(b"\n")
            head = msgspec.json.decode(head_line, type=RecordHead)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            self._warn(path, error)
            return None
        whole = newline and len(value) == head.size and zlib.crc32(value) == head.crc32
        if not whole or path != self._path(head.key):
            self._warn(path, ValueError("the value is torn, or the file has another key's name"))
            return None
        return head, value

    def _path(self, key: str) -> Path:
        name = "k." + quote(key, safe="")
        if len(name) > _NAME_CHARS:
            name = "h." + hashlib.sha256(key.encode()).hexdigest()
        return self._keys / name

    # Lock and revision

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock; yields its file. Raises DeadlineExceeded after ``LOCK_TIMEOUT_S``, OSError."""
        for folder in (self._folder, self._keys, self._leases):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait_for(lock)
            try:
                yield lock
            finally:
                # Said, not left to close: a child forked meanwhile would keep the lock with its copy.
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        deadline = self._clock.now() + LOCK_TIMEOUT_S
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._clock.now() > deadline:
                    raise DeadlineExceeded(
                        f"the lock of registry {self._folder} was not free for {LOCK_TIMEOUT_S} s: "
                        "look for a stopped process that holds it"
                    ) from None
                pause.wait(_LOCK_RETRY_S)
            else:
                return

    def _raise_revision(self, lock: int) -> None:
        # After the change: who reads the old revision reads again.
        revision = int.from_bytes(os.pread(lock, 8, 0), "little")
        os.pwrite(lock, ((revision + 1) % 2**64).to_bytes(8, "little"), 0)

    def _now_ns(self) -> int:
        return int(self._clock.now() * 1e9)

    def _warn(self, path: Path, error: Exception) -> None:
        """Once a file, for the first thousand."""
        if str(path) not in self._warned and len(self._warned) < _WARNED_MAX:
            self._warned.add(str(path))
            structlog.get_logger(__name__).warning("skipped a file", path=str(path), error=str(error))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
