"""Processes that live for the duration of a measurement, and questions to them over HTTP.

Exists so that servers and front doors are started, watched and ended alike. It must not know what they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 30.0
POLL_S = 0.1

FAVOURED_NICENESS = -10

_DIES_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the benchmark is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Running:
    """A process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raises RuntimeError with the log's end when the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise RuntimeError(f"{self._log.stem} ended with {status}:\n{self.log_end()}")

    def log_end(self) -> str:
        """The last of what it wrote."""
        return self._log.read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Running]:
    """Run a command with these variables beside ours; it ends with the block, or with this process."""
    wrapped = [sys.executable, "-c", _DIES_WITH_US, str(os.getpid()), *command]
    with log.open("wb") as out:
        process = subprocess.Popen(
            wrapped, env={**os.environ, **environment}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield Running(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it has left behind
        process.wait(STOP_TIMEOUT_S)


def wait_for(condition: Callable[[], bool], watched: Sequence[Running], timeout_s: float) -> None:
    """Return when the condition holds. Raises RuntimeError when a process ends, TimeoutError after that."""
    deadline = time.monotonic() + timeout_s
    while True:
        for process in watched:
            process.check()
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {timeout_s:g} s:\n{watched[-1].log_end()}")
        time.sleep(POLL_S)


def get(url: str, timeout_s: float = 10.0) -> str:
    """GET. Raises OSError and HTTPError."""
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return answer.read().decode()


def post(url: str, body: Mapping[str, object], timeout_s: float = 60.0) -> dict[str, object]:
    """POST a JSON object; returns the answer's, {} for an empty one. Raises OSError and HTTPError."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.loads(answer.read() or b"{}")


class Precedence:
    """Lets processes go before other work of the machine, where it is shared and our rights allow it.

    Linux weighs sessions against each other (autogroups), whatever a process's own niceness is, so that each
    one's session is favoured. ``end`` gives our own session its place back; the others end by themselves.
    """

    def __init__(self, wanted: bool) -> None:
        self.granted = wanted
        self.give([os.getpid()])

    def give(self, processes: Sequence[int]) -> None:
        """Favour these, too."""
        if self.granted:
            try:
                for process in processes:
                    Path(f"/proc/{process}/autogroup").write_text(str(FAVOURED_NICENESS))
            except OSError:
                self.granted = False

    def end(self) -> None:
        """Be as others are."""
        if self.granted:
            Path("/proc/self/autogroup").write_text("0")
