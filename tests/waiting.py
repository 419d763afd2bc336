"""Waiting for a condition, never for a fixed time. Deadlines are generous: a busy machine is no fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait in the event loop."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(
    condition: Callable[[], object], why_not: Callable[[], str] = str, timeout_s: float = 60
) -> None:
    """Wait for what other processes do. ``why_not``: what to tell when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, why_not()
        time.sleep(0.02)
