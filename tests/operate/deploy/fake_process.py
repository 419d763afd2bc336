"""A stand-in for a worker or front door: keeps the readiness and parent protocol, and behaves as it is told.

Started as ``fake_process.py KIND NAME MODE PARENT_FD READY_FD TRACE``. MODE: good, crash-after-ready (once),
crash, fault, mute-fault, stubborn, slow-drain, noisy.
"""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path


def main():
    kind, name, mode, parent_fd, ready_fd, trace = sys.argv[1:]
    parent_fd, ready_fd = int(parent_fd), int(ready_fd)

    def note(what):
        line = f"{what} {name} {os.getpid()} {os.environ.get('OMP_NUM_THREADS', '-')}\n"
        file = os.open(trace, os.O_WRONLY | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)

    def say(**facts):
        os.write(ready_fd, json.dumps(facts).encode() + b"\n")
        os.close(ready_fd)

    wake_read, wake_write = os.pipe()

    def on_term(*_):
        if mode == "stubborn":
            note("ignored")
        else:
            os.write(wake_write, b"t")

    signal.signal(signal.SIGTERM, on_term)
    note("start")
    if mode == "crash":
        sys.stdout.write("a traceback\nRuntimeError: boom\n")
        sys.exit(1)
    if mode == "fault":
        say(ready=False, error="no such model", fatal=True)
        sys.exit(2)
    if mode == "mute-fault":
        sys.stderr.write("tokenmill: error: --dtype: no float7\n")
        sys.exit(2)
    if mode == "noisy":
        sys.stdout.write("x" * 100_000 + "\n")
    facts = {"url": "http://127.0.0.1:1"} if kind == "frontend" else {}
    note("ready")
    say(ready=True, **facts)
    first = Path(trace).read_text().count(f"start {name} ") == 1
    if mode == "crash-after-ready" and first:
        sys.exit(3)
    readable, _, _ = select.select([parent_fd, wake_read], [], [], 60)
    if parent_fd in readable:
        note("orphaned")
        return
    if mode == "slow-drain":
        time.sleep(0.3)
    note("stop")


main()
