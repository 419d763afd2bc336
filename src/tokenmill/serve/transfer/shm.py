"""Driver "shm": peers on this host, whose memory we map. It must not know what is copied, nor when.

A Unix socket, in the abstract namespace where there is one, carries the control messages and once a peer the
descriptor of its memory file: nothing in the file system outlives a killed process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path

from tokenmill.errors import ConfigError, HandoffFailed
from tokenmill.serve.transfer.base import KvLayout

_BACKLOG = 256
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ShmDriver:
    """Listens on a Unix socket; outside Linux in ``run_dir``, or in the folder for temporary files."""

    name = "shm"

    def __init__(self, run_dir: Path | None) -> None:
        self._run_dir = run_dir
        self._path: Path | None = None
        self._host = _host_id()

    def listen(self) -> tuple[socket.socket, str]:
        """Open the listening socket. Raises ConfigError when ``run_dir`` does not take one."""
        name = f"tokenmill-kv-{secrets.token_hex(8)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if sys.platform == "linux":
                listener.bind(f"\0{name}")
                where = f"@{name}"
            else:
                self._path = (self._run_dir or Path(tempfile.gettempdir())) / f"{name}.sock"
                listener.bind(str(self._path))
                where = str(self._path)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise ConfigError(f"no Unix socket for KV transfers in {self._run_dir}: {error}") from error
        listener.setblocking(False)
        return listener, f"{self._host}|{where}"

    def reachable(self, address: str) -> bool:
        """Whether the address is of this host, since it last booted."""
        return address.split("|", 1)[0] == self._host

    async def connect(self, address: str) -> socket.socket:
        """Connect to a peer. Raises OSError, also for a peer in another network namespace of this host."""
        where = address.split("|", 1)[1]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            target = f"\0{where[1:]}" if where.startswith("@") else where
            await asyncio.get_running_loop().sock_connect(sock, target)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Remove the socket file, if there is one."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class PeerMemory:
    """A peer's KV memory, mapped to be read. Implements the reading half of ``base.KvMemory``.

    Takes ``fd`` over. Raises HandoffFailed when the file is smaller than the layout says.
    """

    def __init__(self, fd: int, layout: KvLayout, blocks: int) -> None:
        self.layout = layout
        self.blocks = blocks
        size = layout.planes * blocks * layout.block_bytes
        try:
            if os.fstat(fd).st_size < size:
                raise HandoffFailed("the peer's memory is smaller than its descriptor says")
            self._mapping = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise HandoffFailed(f"cannot map the peer's memory: {error}") from error
        finally:
            os.close(fd)
        self.region = memoryview(self._mapping)
        self.fd = None

    def close(self) -> None:
        """Unmap. No thread may be copying."""
        with contextlib.suppress(BufferError):  # then the last view does it
            self.region.release()
            self._mapping.close()

    def read(self, plane: int, block: int, tokens: int) -> bytes:
        """Copy the first ``tokens`` tokens of a block in one plane out."""
        start = (plane * self.blocks + block) * self.layout.block_bytes
        return bytes(self.region[start : start + tokens * self.layout.token_bytes])

    def write(self, plane: int, block: int, data: bytes | memoryview, first_token: int = 0) -> None:
        """Refuse with TypeError: it is the peer's."""
        raise TypeError(
            f"a peer's memory is read-only: {len(data)} bytes for {plane=}, {block=}, {first_token=}"
        )


class _BufferView(ctypes.Structure):
    """``Py_buffer`` of CPython's C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(region: memoryview) -> int:
    """Return where a region's bytes begin, read-only ones too; valid while the caller keeps ``region``."""
    buffer = _BufferView()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(region), ctypes.byref(buffer), 0)
    address = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return int(address or 0)


def read_only(fd: int) -> int:
    """Return another descriptor of a memory file; where possible one that cannot be written."""
    with contextlib.suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    return os.dup(fd)


def _host_id() -> str:
    """Name this host and boot: equal for two processes exactly if they share memory."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
