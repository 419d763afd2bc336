"""``tokenmill doctor``: can this machine run a factory, and if not, what mends it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy.attached import attached_stages, what_server_has
from tokenmill.operate.deploy.preflight import (
    check_cpus,
    check_engines,
    check_gpus,
    check_handoffs,
    check_keys,
    check_model,
    check_port,
    grounded,
)
from tokenmill.operate.deploy.state import StateFolder, state_folders, state_root
from tokenmill.operate.deploy.supervisor import usable_cores
from tokenmill.spec.factory import Factory
from tokenmill.spec.models import shipped_model
from tokenmill.spec.process import FrontendConfig
from tokenmill.spec.stage import Stage

Verdict = Literal["ok", "warn", "fail"]

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}
_MIN_FILES: Final = 4096
"""A front door at its default limit of connections needs so many descriptors."""

_MIN_SHM_BYTES: Final = 256 * 1024 * 1024
"""Room for the KV cache of a small model; containers often give 64 MiB."""

_MIN_MEMORY_BYTES: Final = 2 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the table. ``fix``: what to do about it, empty if nothing."""

    topic: str
    verdict: Verdict
    what: str
    fix: str = ""


def doctor(path: Path | None) -> int:
    """Print all findings; returns 1 if one of them keeps a factory from running."""
    from rich.console import Console  # noqa: PLC0415  only for people
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for title in ("check", "", "found", "fix"):
        table.add_column(title, overflow="fold")
    worst = 0
    for each in findings(path):
        style = _STYLES[each.verdict]
        table.add_row(each.topic, f"[{style}]{each.verdict}[/{style}]", *map(_plain, (each.what, each.fix)))
        worst = max(worst, each.verdict == "fail")
    Console(highlight=False).print(table)
    return int(worst)


def findings(path: Path | None) -> Iterator[Finding]:
    """Look at everything; ``path``: a factory file to check, too."""
    yield _python()
    yield from _packages()
    yield Finding("cores", "ok", f"{usable_cores()} usable")
    yield _memory()
    yield from _shared_memory()
    yield _open_files()
    yield _judged("shipped model", "the small model that ships with the package", _shipped_model)
    yield _state_folder()
    yield from _stale()
    if path is None:
        yield _port(FrontendConfig().host, FrontendConfig().port, verdict="warn")
    else:
        yield from _factory(path)


def _python() -> Finding:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "fail", version, "" if good else "use Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    needed = (
        "msgspec",
        "httptools",
        "tokenizers",
        "uvloop",
        "pyyaml",
        "cyclopts",
        "rich",
        "xxhash",
        "structlog",
    )
    missing = [name for name in needed if _version(name) is None]
    if missing:
        yield Finding("packages", "fail", f"missing: {', '.join(missing)}", "pip install tokenmill")
    else:
        yield Finding("packages", "ok", f"all {len(needed)} there")
    for name in ("torch", "transformers"):
        version = _version(name)
        if version is None:
            fix = "pip install 'tokenmill[torch]' (not needed with --engine sim)"
            yield Finding(name, "warn", "not installed", fix)
        else:
            yield Finding(name, "ok", version)


def _memory() -> Finding:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
                low = free < _MIN_MEMORY_BYTES
                fix = "close something, or set --kv-memory-mb low" if low else ""
                return Finding("memory", "warn" if low else "ok", f"{free / 1024**3:.1f} GiB available", fix)
    return Finding("memory", "ok", "not known on this system")


def _shared_memory() -> Iterator[Finding]:
    folder = Path("/dev/shm")  # noqa: S108  looked at, not written
    if not folder.is_dir():
        yield Finding("shared memory", "warn", "no /dev/shm", "KV travels over tcp here; nothing to do")
        return
    free = shutil.disk_usage(folder).free
    low = free < _MIN_SHM_BYTES
    fix = "docker run --shm-size=2g, or transports: [tcp]" if low else ""
    yield Finding("shared memory", "warn" if low else "ok", f"{free / 1024**2:.0f} MiB free in /dev/shm", fix)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = soft != resource.RLIM_INFINITY and soft < _MIN_FILES
    fix = (
        f"ulimit -n {_MIN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MIN_FILES)}" if low else ""
    )
    return Finding("open files", "warn" if low else "ok", f"at most {soft}", fix)


def _shipped_model() -> None:
    config = shipped_model() / "config.json"
    try:
        config.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{config}: {error.strerror}; reinstall: pip install --force-reinstall tokenmill"
        ) from None


def _state_folder() -> Finding:
    root = state_root(os.environ)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        return Finding("state folder", "fail", f"{root}: {error.strerror}", "set TOKENMILL_STATE_DIR")
    return Finding("state folder", "ok", str(root))


def _stale() -> Iterator[Finding]:
    for state in state_folders(state_root(os.environ)):
        if state.stale:
            fix = f"the next start of {state.name} cleans up; or remove {state.path}"
            yield Finding(f"factory {state.name}", "warn", "its supervisor was killed", fix)
        elif state.running:
            yield Finding(f"factory {state.name}", "ok", "running")


def _factory(path: Path) -> Iterator[Finding]:
    from tokenmill.spec.load import load_factory  # noqa: PLC0415

    try:
        factory = grounded(load_factory(path), path.absolute().parent)
    except ConfigError as error:
        for line in error.message.splitlines():
            yield Finding("factory file", "fail", line)
        return
    yield Finding("factory file", "ok", f"{factory.metadata.name}: {len(factory.stages)} stages")
    checks: tuple[tuple[str, Callable[[Factory], None]], ...] = (
        ("engines", check_engines),
        ("pinned cores", check_cpus),
        ("GPUs", lambda factory: check_gpus(factory, os.environ)),
        ("handoffs", check_handoffs),
        ("keys", lambda factory: check_keys(factory, os.environ)),
        ("model", check_model),
    )
    for topic, check in checks:
        yield _judged(topic, "as the file says", lambda check=check: check(factory))  # type: ignore[misc]
    for stage in attached_stages(factory):
        yield _server_of(factory, stage)
    if StateFolder(state_root(os.environ), factory.metadata.name).running:
        return  # its ports are taken by itself
    for replica in range(factory.frontend.replicas if factory.frontend.port else 0):
        yield _port(factory.frontend.host, factory.frontend.port + replica, verdict="fail")


def _server_of(factory: Factory, stage: Stage) -> Finding:
    """Ask a server that is not ours; one that does not answer may come up later."""
    topic = f"stage {stage.name}"
    try:
        return Finding(topic, "ok", what_server_has(factory, stage, os.environ))
    except ConfigError as error:
        return Finding(topic, "fail", error.message)
    except TokenmillError as error:
        return Finding(topic, "warn", error.message, "start it, or check attach")


def _port(host: str, port: int, *, verdict: Verdict) -> Finding:
    return _judged(f"port {port}", f"free on {host}", lambda: check_port(host, port), verdict)


def _judged(topic: str, good: str, check: Callable[[], object], verdict: Verdict = "fail") -> Finding:
    """Run a check; its error's text up to the semicolon is what was found, the rest is the fix."""
    try:
        check()
    except TokenmillError as error:
        what, _, fix = error.message.partition("; ")
        return Finding(topic, verdict, what, fix)
    return Finding(topic, "ok", good)


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
