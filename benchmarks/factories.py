"""Factories that run for the duration of a measurement."""

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
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def served(text: str, folder: Path, port: int) -> Iterator[None]:
    """Run the factory that ``text`` declares, with its state below ``folder``."""
    path = folder / "factory.yaml"
    path.write_text(text)
    environment = {**os.environ, "TOKENMILL_STATE_DIR": str(folder / "state")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenmill", "up", str(path), "--foreground"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_ready(port, process)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the frontend answers /ready with 200; raise when the process ends or 90 s have passed."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the factory ended with {process.returncode}")
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            if urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2).status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the factory did not become ready")


def free_port() -> int:
    """Find a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
