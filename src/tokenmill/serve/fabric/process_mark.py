"""Which process wrote this, and is it provably gone?

A pid alone is no answer: pids are used again, and mean something else in another container.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

_PROC = Path("/proc")


class ProcessMark(msgspec.Struct, frozen=True):
    """One process of one boot. Empty texts: this system does not say (only Linux has /proc).

    ``started``: start time in clock ticks since boot. ``namespace``: of pids.
    """

    pid: int
    started: str = ""
    boot: str = ""
    namespace: str = ""


def own_mark() -> ProcessMark:
    """Return the mark of this process."""
    pid = os.getpid()
    status = _read_status(pid)
    return ProcessMark(pid, status[1] if status else "", read_boot(), _read_namespace())


def read_boot() -> str:
    """Return a name for this boot of the machine."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_gone(mark: ProcessMark, reader: ProcessMark) -> bool:
    """Return True where ``reader`` can prove that the process of ``mark`` is no more; False proves nothing.

    A zombie is gone: it runs no code.
    """
    if mark.boot != reader.boot:
        return True
    if mark.namespace != reader.namespace:
        return False
    if not mark.started:
        return not _answers(mark.pid)
    status = _read_status(mark.pid)
    return status is None or status[1] != mark.started or status[0] in "ZXx"


def _read_status(pid: int) -> tuple[str, str] | None:
    """Return (state, start time), or None if there is no such process or no /proc."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _read_namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
