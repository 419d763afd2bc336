"""Waiting for an engine's server to come up. It must not know which engine it is."""

from __future__ import annotations

import asyncio

import msgspec

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed
from tokenmill.serve.engines.remote.child import Child
from tokenmill.serve.engines.remote.http_client import HttpClient

POLL_S = 0.25
"""Between two looks whether a starting server answers."""


class HealthCheck(msgspec.Struct, frozen=True):
    """What is asked of a server, and for how long its answer may take."""

    path: str = "/health"
    timeout_s: float = 10.0

    async def passes(self, client: HttpClient) -> bool:
        """Whether the server answers with 200. Cancelled: nothing changes."""
        try:
            return (await client.request("GET", self.path, timeout_s=self.timeout_s)).status == 200
        except TokenmillError:
            return False


async def wait_until_healthy(
    client: HttpClient, child: Child | None, clock: Clock, timeout_s: float, check: HealthCheck
) -> None:
    """Return when the server passes. Raises ConfigError when it ends, WorkerFailed when it is not up in time.
    Cancelled: nothing changes.
    """
    deadline = clock.now() + timeout_s
    died = asyncio.ensure_future(child.died()) if child is not None else None
    try:
        while not await check.passes(client):
            if died is not None and died.done():
                raise ConfigError(died.result(), param="engine")
            if clock.now() > deadline:
                raise WorkerFailed(f"{client.base_url} did not come up within {timeout_s:g} s")
            await asyncio.sleep(POLL_S)
    finally:
        if died is not None:
            died.cancel()
            await asyncio.gather(died, return_exceptions=True)
