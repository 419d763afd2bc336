"""The frontend process: the one place where its parts are wired, and its life from start to drain.

Exists so that nothing else in the room makes its own registry, clock or server.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from tokenmill.clock import Clock, SystemClock
from tokenmill.decide.router.least_loaded import LeastLoaded
from tokenmill.decide.router.stages import StageRouter
from tokenmill.decide.router.types import RouterPolicy
from tokenmill.errors import ConfigError, ServiceError, TokenmillError
from tokenmill.serve.fabric.registry import Registry, open_registry
from tokenmill.serve.frontend.app import App
from tokenmill.serve.frontend.generator import Generator
from tokenmill.serve.frontend.http.messages import HttpLimits
from tokenmill.serve.frontend.http.server import HttpServer
from tokenmill.serve.frontend.metrics import FrontendMetrics
from tokenmill.serve.frontend.openai.errors import http_error_response
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.workers import WorkerSet
from tokenmill.serve.process import Readiness, configure_logging, stop_requests
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer
from tokenmill.spec.models import model_name, resolve_model
from tokenmill.spec.process import FrontendConfig

_log = structlog.get_logger(__name__)

_READ_TIMEOUT_S = 60.0
_WRITE_TIMEOUT_S = 60.0
_GC_THRESHOLD = 50_000
"""Allocations between two collections: the default of 700 would look at every request's objects often."""


def main(config: FrontendConfig) -> int:
    """Run the frontend until it is told to stop; return the exit status."""
    configure_logging(config)
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
        async with frontend(config, registry, broken) as server, stop_requests(config) as stop:
            broken.add_done_callback(lambda why: stop.ask(why.result(), at_once=True))
            readiness.ready(url=f"http://{_url_host(config.host)}:{server.port}")
            gc.collect()
            gc.freeze()
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


@asynccontextmanager
async def frontend(
    config: FrontendConfig, registry: Registry | None = None, broken: asyncio.Future[str] | None = None
) -> AsyncIterator[HttpServer]:
    """Wire a frontend and serve; yields the listening server. Raises ConfigError for what the user can mend.

    ``broken`` gets the reason when the frontend can find no workers any more and should be started anew.
    Cancelled or left: everything is closed, requests under way are dropped.
    """
    clock: Clock = SystemClock()
    policy = router_policy(config.router_policy, seed=random.SystemRandom().getrandbits(32))
    folder = resolve_model(config.model)
    async with AsyncExitStack() as stack:
        tokenizer = Tokenizer.load(folder)
        stack.callback(tokenizer.close)
        template = ChatTemplate.load(folder, clock=clock)
        if registry is None:
            registry = open_registry(config.registry)
            await registry.start()
            stack.push_async_callback(registry.stop)
        workers = WorkerSet(
            registry,
            StageRouter(policy),
            clock,
            worker_wait_s=config.worker_wait_s,
            on_broken=lambda why: _set_unless_done(broken, why),
        )
        stack.push_async_callback(workers.close)
        await workers.start()
        metrics = FrontendMetrics(workers.links)
        service = Service(
            config=config,
            model_name=model_name(config.model_name, config.model),
            clock=clock,
            tokenizer=tokenizer,
            template=template,
            workers=workers,
            metrics=metrics,
            generator=Generator(
                workers, tokenizer, metrics, clock, request_timeout_s=config.request_timeout_s
            ),
            randomness=random.Random(os.urandom(16)),
            created_s=int(clock.wall()),
        )
        server = HttpServer(App(service), http_error_response, limits=_limits(config), clock=clock)
        stack.push_async_callback(server.close)
        await server.start(config.host, config.port)
        yield server


def _set_unless_done(future: asyncio.Future[str] | None, value: str) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def router_policy(name: str, *, seed: int) -> RouterPolicy:
    """Return the policy of that name. Raises ConfigError for an unknown one."""
    if name == "least-loaded":
        return LeastLoaded(seed=seed)
    raise ConfigError(f"router_policy {name!r} is unknown; write least-loaded", param="router_policy")


def _limits(config: FrontendConfig) -> HttpLimits:
    return HttpLimits(
        max_head_bytes=config.max_header_bytes,
        max_body_bytes=config.max_body_bytes,
        max_connections=config.max_connections,
        idle_timeout_s=config.idle_timeout_s,
        read_timeout_s=_READ_TIMEOUT_S,
        write_timeout_s=_WRITE_TIMEOUT_S,
    )


def _url_host(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - what a user may have asked for
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
