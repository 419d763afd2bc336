"""The worker process, wired in one place: engine, KV transport, request server, registry.

Order of start: engine (loads the model), then the request server, then the card in the registry, then the
ready-ack: whoever sees the card can use the worker. Order of end: the card says draining, new requests are
refused, running ones and unread exports finish, then everything closes in reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import uuid

import msgspec
import structlog
import uvloop

import tokenmill
from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError, ServiceError, TokenmillError, WorkerFailed
from tokenmill.protocol.calls import Call
from tokenmill.protocol.card import WORKERS_PREFIX, WorkerCard, WorkerState
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import Item
from tokenmill.serve.engines.base import Engine, EngineInfo, EngineOutput, Sink
from tokenmill.serve.engines.opening import open_engine
from tokenmill.serve.fabric.registry import Lease, Registry, open_registry
from tokenmill.serve.fabric.streams import StreamServer
from tokenmill.serve.process import (
    Readiness,
    StopRequest,
    configure_logging,
    run_folder,
    stop_requests,
)
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.worker.desk import Desk, merge_items
from tokenmill.spec.process import WorkerConfig

log = structlog.get_logger(__name__)

LOAD_INTERVAL_S = 0.25
"""How often subscribers hear the load of a worker in which nothing happens."""

DRAIN_POLL_S = 0.02
"""How often a drain looks whether the last request has ended."""


def main(config: WorkerConfig) -> int:
    """Run the worker until it is told to stop; returns the exit status."""
    configure_logging(config)
    readiness = Readiness(config.ready_fd)
    try:
        return uvloop.run(_run(config, readiness))
    except ConfigError as error:
        readiness.failed(error.message, fatal=True)
        log.error(error.message)
        return 2
    except TokenmillError as error:
        readiness.failed(error.message, fatal=False)
        log.error(error.message)
        return 1


async def _run(config: WorkerConfig, readiness: Readiness) -> int:
    """Serve. Cancelled: everything is closed."""
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        stop = await stack.enter_async_context(stop_requests(config))
        folder = stack.enter_context(run_folder(config))
        worker_id = WorkerId(f"{config.stage or config.role}-{config.replica}-{uuid.uuid4().hex[:8]}")
        transport = open_transport(config.transports, host=config.transfer_host, run_dir=folder, clock=clock)
        engine = open_engine(config, transport, clock)
        desk = Desk(engine, clock)
        server: StreamServer[Call, Item] = StreamServer(Call, Item, desk.opened, merge=merge_items)

        def stepped(output: EngineOutput) -> None:
            desk.stepped(output)
            server.flush()

        info = await _started(engine, stepped, stop)
        if info is None:
            return 0
        stack.push_async_callback(engine.stop)
        address = await server.start(config.listen or f"unix:{folder / worker_id}.sock")
        stack.push_async_callback(server.close)
        registry = open_registry(config.registry)
        await registry.start()
        stack.push_async_callback(registry.stop)
        card = _card(config, worker_id, address, info, clock)
        announcement = _Announcement(registry, card, config.registry_ttl_s)
        await announcement.say(WorkerState.READY)
        gc.collect()
        gc.freeze()
        readiness.ready(worker=worker_id, address=address)
        log.info(
            "worker ready",
            worker=worker_id,
            role=str(config.role),
            model=info.model,
            kv_blocks=info.kv_blocks,
        )
        await _serve_until_asked(engine, desk, stop, announcement)
        await _drain(config, desk, engine, announcement, stop, clock)
    return 0


async def _started(engine: Engine, sink: Sink, stop: StopRequest) -> EngineInfo | None:
    """Start the engine; None when the process was asked to end before it was ready."""
    starting = asyncio.ensure_future(engine.start(sink))
    asked = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            return starting.result()
        return None
    finally:
        for task in (starting, asked):
            if not task.done():
                task.cancel()
        await asyncio.gather(starting, asked, return_exceptions=True)


async def _serve_until_asked(
    engine: Engine, desk: Desk, stop: StopRequest, announcement: _Announcement
) -> None:
    """Return when asked to stop; raise WorkerFailed when the engine breaks."""
    asked = asyncio.ensure_future(stop.wait())
    failing = asyncio.ensure_future(engine.failure())
    try:
        while not asked.done():
            await asyncio.wait((asked, failing), timeout=LOAD_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                raise WorkerFailed(f"the engine failed: {failing.result()}")
            desk.tell_load_now()
            if announcement.lost:
                await announcement.try_to_say(WorkerState.READY)
    finally:
        asked.cancel()
        failing.cancel()
        await asyncio.gather(asked, failing, return_exceptions=True)


async def _drain(
    config: WorkerConfig,
    desk: Desk,
    engine: Engine,
    announcement: _Announcement,
    stop: StopRequest,
    clock: SystemClock,
) -> None:
    """Finish what is running and what receivers still have to fetch, within the deadline."""
    log.info("worker stopping", reason=stop.reason, open_requests=desk.open_requests)
    if stop.at_once:
        return
    desk.drain()
    await announcement.try_to_say(WorkerState.DRAINING)
    deadline = clock.now() + config.drain_timeout_s
    while desk.open_requests or engine.metrics().exported:
        if stop.at_once or clock.now() > deadline:
            log.warning("drain cut short", open_requests=desk.open_requests)
            return
        await asyncio.sleep(DRAIN_POLL_S)


class _Announcement:
    """This worker's card in the registry, under a lease. A process that stood still for longer than the lease
    lasts (a suspended machine, say) is struck off; it announces itself again under a new one."""

    def __init__(self, registry: Registry, card: WorkerCard, ttl_s: float) -> None:
        self._registry = registry
        self._card = card
        self._ttl_s = ttl_s
        self._lease: Lease | None = None

    @property
    def lost(self) -> bool:
        """The card is no longer there."""
        return self._lease is None or self._lease.lost

    async def say(self, state: WorkerState) -> None:
        """Put the card with this state. Raises ServiceError. Cancelled: the old or the new card stands."""
        if self._lease is None or self._lease.lost:
            self._lease = await self._registry.lease(self._ttl_s)
        card = msgspec.structs.replace(self._card, state=state)
        await self._registry.put(
            WORKERS_PREFIX + card.worker_id, msgspec.json.encode(card), lease=self._lease
        )

    async def try_to_say(self, state: WorkerState) -> None:
        """Put the card if the registry lets us: trouble there must not end what is being served here."""
        try:
            await self.say(state)
        except ServiceError as error:
            log.warning("not announced", state=str(state), error=error.message)


def _card(
    config: WorkerConfig, worker_id: WorkerId, address: str, info: EngineInfo, clock: SystemClock
) -> WorkerCard:
    return WorkerCard(
        worker_id=worker_id,
        role=config.role,
        stage=config.stage or str(config.role),
        state=WorkerState.STARTING,
        address=address,
        engine=info.engine,
        model=config.model_name or info.model,
        max_model_len=info.max_model_len,
        block_tokens=info.block_tokens,
        kv_blocks=info.kv_blocks,
        max_sequences=info.max_sequences,
        eos_token_ids=info.eos_token_ids,
        vocab_size=info.vocab_size,
        transports=info.transports,
        early_handoff=info.early_handoff,
        fingerprint=info.fingerprint,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=clock.wall(),
        version=tokenmill.__version__,
    )
