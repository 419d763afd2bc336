"""Run the double as a process, as ``python -m sglang.launch_server`` would run SGLang."""

from __future__ import annotations

import asyncio
import signal
import sys

from tokenmill.testing.sglang_double.double import SglangDouble
from tokenmill.testing.sglang_double.settings import DoubleSettings, parse_arguments


async def _serve(settings: DoubleSettings) -> None:
    """Serve until told to end."""
    double = SglangDouble(settings)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await double.start()
    sys.stderr.write(f"The server is fired up and ready to roll! {double.url}\n")
    sys.stderr.flush()
    try:
        await told.wait()
    finally:
        await double.close()


if __name__ == "__main__":
    asyncio.run(_serve(parse_arguments(sys.argv[1:])))
