"""What a tree of processes has used so far, from ``/proc``: Linux only, nothing installed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TICKS_S = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """``root`` and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(_stat(int(entry.name))[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found.extend(children.get(process, ()))
    return found


def cpu_s(processes: list[int]) -> float:
    """User plus system time of all threads of these processes, in seconds."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fields = _stat(process)
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS_S


def memory_mib(processes: list[int]) -> dict[str, float]:
    """RSS and PSS (shared pages counted in parts) of these processes, in MiB."""
    sums = {"Rss": 0, "Pss": 0}
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in sums:
                    sums[name] += int(value.split()[0])
    return {f"{name.lower()}_mib": round(kib / 1024, 1) for name, kib in sums.items()}


def command(process: int) -> list[str]:
    """The command line; empty for one that is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _stat(process: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name, which may hold spaces."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
