"""Lets a measurement go before other programs on the same cores, where it cannot have the machine to itself.

Exists so that figures tell of the program, not of its neighbours. Needs root. It does not help against
neighbours that crowd caches and memory.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psutil

_LOOPS, _ENGINES = 2, 1
"""Real-time priorities: of main threads, which run event loops, and of all other threads, which compute. A
loop must not wait for the end of an engine's time slice (100 ms among equals), as it would not otherwise."""

_LOOK_EVERY_S = 0.2


@contextlib.contextmanager
def going_first() -> Iterator[None]:
    """Have this process and all that it starts go before others. Raises PermissionError."""
    _set(os.getpid(), _LOOPS)
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), name="going-first")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _watch(done: threading.Event) -> None:
    """New threads have the priority of the one that starts them: those of engines are put right."""
    known: set[int] = set()
    while not done.wait(_LOOK_EVERY_S):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                for thread in process.threads():
                    if thread.id not in known:
                        known.add(thread.id)
                        _set(thread.id, _LOOPS if thread.id == process.pid else _ENGINES)


def _set(thread: int, priority: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(priority))
