"""The worker process, wired in one place: engine, KV transport, request server, registry.

Order of start: engine (loads the model), then the request server, then the card in the registry, then the
ready-ack: whoever sees the card can use the worker. Order of end: the card says draining, new requests are
refused, running ones and unread exports finish, then everything closes in reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import uuid

import msgspec
import structlog
import uvloop

import tokenmill
from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed
from tokenmill.protocol.calls import Call
from tokenmill.protocol.card import WORKERS_PREFIX, Prices, WorkerCard, WorkerState
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import Item
from tokenmill.serve.engines.base import Engine, EngineInfo, EngineOutput, Sink
from tokenmill.serve.engines.opening import open_engine
from tokenmill.serve.engines.profiled import step_table_of
from tokenmill.serve.fabric.announcement import Announcement
from tokenmill.serve.fabric.registry import Registry, open_registry
from tokenmill.serve.fabric.streams import StreamServer
from tokenmill.serve.process import (
    Readiness,
    StopRequest,
    configure_logging,
    run_folder,
    settle,
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


_SWITCH_S = 0.0003
"""How long one thread may keep the interpreter while another one waits. Python's own 5 ms would hold the
first token back on the event loop until the engine's thread has made several more."""


def main(config: WorkerConfig) -> int:
    """Run the worker until it is told to stop; returns the exit status."""
    configure_logging(config)
    sys.setswitchinterval(_SWITCH_S)
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
        late_loads = _LateLoads(desk)
        stack.callback(late_loads.cancel)

        def stepped(output: EngineOutput) -> None:
            desk.stepped(output)
            server.flush()
            late_loads.look()

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
        settle()
        readiness.ready(worker=worker_id, address=address)
        _log_ready(card)
        await _serve_until_asked(engine, desk, stop, announcement)
        await _drain(config, desk, engine, announcement, stop, clock)
    return 0


def _log_ready(card: WorkerCard) -> None:
    log.info(
        "worker ready",
        worker=card.worker_id,
        role=str(card.role),
        model=card.model,
        kv_blocks=card.kv_blocks,
    )


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


class _LateLoads:
    """A timer for what a step changed too soon after the last load report: it is told when the subscriber's
    interval has passed, so that the end of a request is known within one interval also where no step
    follows it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Something may have changed."""
        if self._timer is None and (due_s := self._desk.load_due_s) is not None:
            self._timer = asyncio.get_running_loop().call_later(due_s, self._tell)

    def cancel(self) -> None:
        """Tell no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        self._desk.tell_load_due()
        self.look()


async def _drain(
    config: WorkerConfig,
    desk: Desk,
    engine: Engine,
    announcement: _Announcement,
    stop: StopRequest,
    clock: SystemClock,
) -> None:
    """Finish what is running and what receivers still have to fetch, within the deadline; what is not done
    by then is sent away."""
    log.info("worker stopping", reason=stop.reason, open_requests=desk.open_requests)
    if stop.at_once:
        return
    desk.drain()
    await announcement.try_to_say(WorkerState.DRAINING)
    deadline = clock.now() + config.drain_timeout_s
    while desk.open_requests or engine.metrics().exported:
        if stop.at_once or clock.now() > deadline:
            log.warning("drain cut short", open_requests=desk.open_requests)
            desk.send_away()
            return
        await asyncio.sleep(DRAIN_POLL_S)


class _Announcement:
    """This worker's card in the registry, with its state."""

    def __init__(self, registry: Registry, card: WorkerCard, ttl_s: float) -> None:
        self._card = card
        self._key = Announcement(registry, WORKERS_PREFIX + card.worker_id, ttl_s)

    @property
    def lost(self) -> bool:
        """The card is no longer there."""
        return self._key.lost

    async def say(self, state: WorkerState) -> None:
        """Put the card with this state. Raises ServiceError. Cancelled: the old or the new card stands."""
        await self._key.say(self._with(state))

    async def try_to_say(self, state: WorkerState) -> None:
        """Put the card if the registry lets us."""
        await self._key.try_to_say(self._with(state))

    def _with(self, state: WorkerState) -> bytes:
        return msgspec.json.encode(msgspec.structs.replace(self._card, state=state))


def _prices(config: WorkerConfig) -> Prices | None:
    cached = config.price_input if config.price_cached < 0 else config.price_cached
    prices = Prices(input=config.price_input, cached=cached, output=config.price_output)
    return prices if prices != Prices() else None


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
        prefill_budget=info.prefill_budget,
        step_table=step_table_of(config),
        eos_token_ids=info.eos_token_ids,
        vocab_size=info.vocab_size,
        transports=info.transports,
        early_handoff=info.early_handoff,
        alone=info.alone,
        constraints=info.constraints,
        fingerprint=info.fingerprint,
        speaks=info.speaks,
        offers=info.offers,
        prices=_prices(config),
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=clock.wall(),
        version=tokenmill.__version__,
    )
