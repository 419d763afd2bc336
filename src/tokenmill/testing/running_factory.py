"""A factory of real processes, started as a user starts it, for tests from the outside. Needs psutil."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

import psutil

from tokenmill.clock import SystemClock

_CLOCK = SystemClock()


class RunningFactory:
    """A ``tokenmill serve`` and what a test asks about it. Its output is in ``folder / "log"``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    @classmethod
    def start(cls, folder: Path, *flags: str) -> Self:
        """Run ``tokenmill serve`` with these flags on a free port; state and log are kept in ``folder``."""
        port = _free_port()
        return cls._run(folder, port, "serve", *flags, "--port", str(port))

    @classmethod
    def up(cls, folder: Path, factory: str) -> Self:
        """Run ``tokenmill up --foreground`` with a factory file of this text; its ``port: PORT`` becomes a
        free one."""
        port = _free_port()
        file = folder / "factory.yaml"
        file.write_text(factory.replace("port: PORT", f"port: {port}"))
        return cls._run(folder, port, "up", str(file), "--foreground")

    @classmethod
    def _run(cls, folder: Path, port: int, *words: str) -> Self:
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tokenmill", *words],
                env={**os.environ, "TOKENMILL_STATE_DIR": str(folder / "state")},
                stdout=out,
                stderr=out,
            )
        return cls(process, port, log)

    def log(self) -> str:
        """Return what the processes wrote so far."""
        return self._log.read_text(errors="replace")

    def workers(self, role: str) -> list[psutil.Process]:
        """The worker processes of a role."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                command = child.cmdline()
                if "worker" not in command:
                    continue
                roles = [flag for flag in command if flag.startswith("--role=")] or ["--role=both"]
                if roles == [f"--role={role}"]:
                    found.append(child)
        return found

    def frontends(self) -> list[psutil.Process]:
        """The frontend processes."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "frontend" in child.cmdline():
                    found.append(child)
        return found

    def get(self, path: str) -> tuple[int, str]:
        """GET a path; returns status and body, also for errors."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def worker_loads(self) -> list[dict[str, object]]:
        """What ``/health`` says of each worker."""
        workers: list[dict[str, object]] = json.loads(self.get("/health")[1])["worker_list"]
        return workers

    def wait_for_mode(self, mode: str, timeout_s: float = 60) -> None:
        """Wait until ``/health`` says that requests are served in this mode: "disaggregated", say."""
        deadline = _CLOCK.now() + timeout_s
        while (seen := json.loads(self.get("/health")[1])["mode"]) != mode:
            assert _CLOCK.now() < deadline, f"still {seen} after {timeout_s} s:\n{self.log()}"
            time.sleep(0.05)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Wait until ``/ready`` answers 200; AssertionError with the log if it ends or takes longer."""
        deadline = _CLOCK.now() + timeout_s
        while _CLOCK.now() < deadline:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
            with contextlib.suppress(OSError):
                if self.get("/ready")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log()}")

    def stop(self) -> int:
        """Ask it to end, if it still runs; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
