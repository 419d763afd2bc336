"""Runs the double as ``trtllm-serve`` is run: ``python -m tokenmill.testing.trtllm_double serve MODEL
...``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from tokenmill.clock import SystemClock
from tokenmill.testing.trtllm_double.options import BadUsage, CommandLine, read_command_line
from tokenmill.testing.trtllm_double.server import TrtllmDouble


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    try:
        line = read_command_line(sys.argv[1:], os.environ)
    except (BadUsage, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asyncio.run(_serve(line))
    return 0


async def _serve(line: CommandLine) -> None:
    """Serve until a signal. Cancelled: it stops."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    double = TrtllmDouble(SystemClock(), line.model, line.engine, line.quirks)
    await double.start(line.host, line.port)
    sys.stderr.write(f"the double serves {double.model} at {double.url}\n")
    try:
        await stopped.wait()
    finally:
        await double.stop()


if __name__ == "__main__":
    sys.exit(main())
