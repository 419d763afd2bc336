"""The frontend process: its life from start to drain.

Exists so that readiness, signals and the exit status stand in one place. It must not know the parts.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable

import structlog

from tokenmill.errors import ConfigError, ServiceError, TokenmillError
from tokenmill.serve.fabric.registry import Registry
from tokenmill.serve.frontend.wiring import wired
from tokenmill.serve.process import Readiness, configure_logging, settle, stop_requests
from tokenmill.spec.process import FrontendConfig

_log = structlog.get_logger(__name__)

_GC_THRESHOLD = 50_000
"""Allocations between two collections: the default of 700 would look at every request's objects often."""


def main(config: FrontendConfig) -> int:
    """Run the frontend until it is told to stop; return the exit status."""
    configure_logging(config)
    # One text at a time is encoded: handing it to the library's own threads costs more than it gives.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with asyncio.Runner(loop_factory=_new_loop()) as runner:
        return runner.run(run(config))


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def run(config: FrontendConfig, registry: Registry | None = None) -> int:
    """Serve until SIGTERM, SIGINT or the parent's death, then drain; return the exit status.

    ``registry``: to be used in place of the one that ``config`` names. Cancelled: stopped without drain.
    """
    readiness = Readiness(config.ready_fd)
    broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    try:
        async with wired(config, registry, broken) as front, stop_requests(config) as stop:
            server = front.server
            broken.add_done_callback(lambda why: stop.ask(why.result(), at_once=True))
            readiness.ready(url=front.url, **({"own_url": front.own_url} if front.own_url else {}))
            settle()
            gc.set_threshold(_GC_THRESHOLD, 20, 100)
            await stop.wait()
            _log.info("draining", reason=stop.reason, connections=server.connection_count)
            await server.close(0.0 if stop.at_once else config.drain_timeout_s)
            if broken.done():
                raise ServiceError(broken.result())
    except TokenmillError as error:
        _log.error("frontend cannot run", error=error.message)
        fatal = isinstance(error, ConfigError)
        readiness.failed(error.message, fatal=fatal)
        return 2 if fatal else 1
    return 0
