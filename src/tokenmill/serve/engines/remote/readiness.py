"""Waiting for an engine's server to come up. It must not know which engine it is."""

from __future__ import annotations

import asyncio

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed
from tokenmill.serve.engines.remote.child import Child
from tokenmill.serve.engines.remote.http_client import HttpClient

POLL_S = 0.25
"""Between two looks whether a starting server answers."""

ANSWER_TIMEOUT_S = 10.0
"""For one look."""


async def wait_until_healthy(
    client: HttpClient, child: Child | None, clock: Clock, timeout_s: float, *, path: str = "/health"
) -> None:
    """Return when the server answers ``path`` with 200. Raises ConfigError when it ends, WorkerFailed when it
    is not up in time. Cancelled: nothing changes.
    """
    deadline = clock.now() + timeout_s
    died = asyncio.ensure_future(child.died()) if child is not None else None
    try:
        while not await is_healthy(client, path):
            if died is not None and died.done():
                raise ConfigError(died.result(), param="engine")
            if clock.now() > deadline:
                raise WorkerFailed(f"{client.base_url} did not come up within {timeout_s:g} s")
            await asyncio.sleep(POLL_S)
    finally:
        if died is not None:
            died.cancel()
            await asyncio.gather(died, return_exceptions=True)


async def is_healthy(client: HttpClient, path: str = "/health") -> bool:
    """Whether the server answers ``path`` with 200. Cancelled: nothing changes."""
    try:
        return (await client.request("GET", path, timeout_s=ANSWER_TIMEOUT_S)).status == 200
    except TokenmillError:
        return False
