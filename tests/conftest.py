"""Whatever a test starts, it ends: leaked threads, processes, descriptors of memory and sockets fail it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("tokenmill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tokenmill")

GRACE_S = 20.0
"""How long something that is ending may take to be gone, on a machine that others keep busy."""


def _threads() -> set[threading.Thread]:
    # Pools that a library keeps for the process's life are not a test's leak.
    shared = ("pytest", "asyncio_", "ThreadPoolExecutor", "tokenizers", "waitpid")
    return {t for t in threading.enumerate() if not t.name.startswith(shared)}


def _children() -> set[int]:
    return {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


def _memory_files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else []:
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if "memfd:tokenmill" in target:
            found.add(f"{entry.name} -> {target}")
    shm = Path("/dev/shm")
    if shm.exists():
        found |= {str(path) for path in shm.iterdir() if "tokenmill" in path.name}
    return found


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare threads, child processes and shared memory before and after each test."""
    before = _threads(), _children(), _memory_files()
    yield
    if "shared_leaks" in request.keywords:
        return
    deadline = time.monotonic() + GRACE_S
    while True:
        left = [
            now - then for now, then in zip((_threads(), _children(), _memory_files()), before, strict=True)
        ]
        if not any(left):
            return
        gc.collect()
        if time.monotonic() > deadline:
            threads, children, files = left
            pytest.fail(f"left behind: threads {threads}, processes {children}, memory {files}")
        time.sleep(0.02)
