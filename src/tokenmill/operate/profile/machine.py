"""What machine this is and which versions take part, for a profile to say. Reads files of the system only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Final

import tokenmill
from tokenmill.decide.perf.profile import Machine

_PACKAGES: Final = ("torch", "transformers", "vllm", "sglang", "tensorrt_llm")


def this_machine() -> Machine:
    """Return what this machine is, as far as it tells."""
    gpu, gpus = _gpus()
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        memory_gib=round(_memory_bytes() / 2**30, 1),
        gpu=gpu,
        gpus=gpus,
        system=f"{platform.system()} {platform.release()}",
    )


def versions() -> dict[str, str]:
    """Return the versions of what is installed here and may take part."""
    found = {"tokenmill": tokenmill.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _gpus() -> tuple[str, int]:
    """The first NVIDIA GPU's name as its driver writes it, and how many there are."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for line in _read(found[0]).splitlines() if found else ():
        if line.startswith("Model:"):
            return line.partition(":")[2].strip(), len(found)
    return "", len(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
