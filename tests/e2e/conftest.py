"""Factories of real processes, started as a user starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest


class RunningFactory:
    """A ``tokenmill serve`` and what a test asks about it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def workers(self, role: str) -> list[psutil.Process]:
        """The worker processes of a role."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                command = child.cmdline()
                if "worker" in command and command[command.index("--role") + 1] == role:
                    found.append(child)
        return found

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_ready(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
            with contextlib.suppress(OSError):
                if self.get("/ready")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Serve = Callable[..., RunningFactory]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start factories with ``tokenmill serve`` flags; all are stopped at the module's end."""
    running: list[RunningFactory] = []

    def start(*flags: str, wait: bool = True) -> RunningFactory:
        folder = tmp_path_factory.mktemp("serve")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tokenmill", "serve", *flags, "--port", str(port)],
                env={**os.environ, "TOKENMILL_STATE_DIR": str(folder / "state")},
                stdout=out,
                stderr=out,
            )
        factory = RunningFactory(process, port, log)
        running.append(factory)
        if wait:
            factory.wait_ready()
        return factory

    yield start
    statuses = [factory.stop() for factory in running]
    assert all(status == 0 for status in statuses), statuses
