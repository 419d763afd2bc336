"""The one place where a frontend's parts are put together, and taken apart in reverse.

Exists so that nothing else in the room makes its own registry, clock, router or server. What belongs to one
model is made in ``model_wiring``.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import tokenmill
from tokenmill.clock import Clock, SystemClock
from tokenmill.protocol.frontends import FrontendCard, FrontendId
from tokenmill.serve.fabric.registry import Registry, open_registry
from tokenmill.serve.frontend.app import App
from tokenmill.serve.frontend.doors import Front, open_doors
from tokenmill.serve.frontend.explain import ExplainStore
from tokenmill.serve.frontend.http.server import HttpServer
from tokenmill.serve.frontend.http_settings import cors
from tokenmill.serve.frontend.metrics import FrontendMetrics
from tokenmill.serve.frontend.model_wiring import ModelParts, Shared, declared_models
from tokenmill.serve.frontend.peer_link import NoteExchange
from tokenmill.serve.frontend.peers import Peers
from tokenmill.serve.frontend.router_settings import router_settings
from tokenmill.serve.frontend.routing_metrics import PeerMetrics
from tokenmill.serve.frontend.served import Models, ServedModel
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.shared_notes import SharedNotes
from tokenmill.serve.frontend.stream_room import StreamRoom
from tokenmill.serve.process import run_folder
from tokenmill.spec.process import FrontendConfig


@asynccontextmanager
async def frontend(config: FrontendConfig, registry: Registry | None = None) -> AsyncIterator[HttpServer]:
    """Serve inside another program; yields the listening server. Else as ``wired``."""
    async with wired(config, registry) as front:
        yield front.server


@asynccontextmanager
async def wired(
    config: FrontendConfig, registry: Registry | None = None, broken: asyncio.Future[str] | None = None
) -> AsyncIterator[Front]:
    """Wire a frontend and serve. Raises ConfigError for what the user can mend.

    ``broken`` gets the reason when the frontend can find no workers any more and should be started anew.
    Cancelled or left: everything is closed, requests under way are dropped.
    """
    clock: Clock = SystemClock()
    async with AsyncExitStack() as stack:
        parts = _Parts(config, clock, stack, broken)
        models = parts.models()
        if registry is None:
            registry = open_registry(config.registry)
            await registry.start()
            stack.push_async_callback(registry.stop)
        peers = await parts.peers(registry, models) if config.peer_sync else None
        served = [await model.serve(registry, peers) for model in models]
        service = parts.service(models, served, peers)
        front = await open_doors(config, App(service, cors(config)), clock, stack)
        if peers is not None:
            await peers.announce(_card(peers, front, clock))
        yield front


class _Parts:
    """Makes the parts that all models share; what they need closed goes on ``stack``."""

    def __init__(
        self,
        config: FrontendConfig,
        clock: Clock,
        stack: AsyncExitStack,
        broken: asyncio.Future[str] | None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._stack = stack
        self._broken = broken
        self._id = FrontendId(f"frontend-{uuid.uuid4().hex[:8]}")
        self._metrics = FrontendMetrics()
        self._room = StreamRoom(self._metrics, config.max_streams)

    def models(self) -> list[ModelParts]:
        """Begin the parts of each model, and load what turns its text into tokens. Raises ConfigError."""
        shared = Shared(self._config, self._clock, self._stack, self._room, self._on_broken)
        return [ModelParts(shared, declared) for declared in declared_models(self._config)]

    async def peers(self, registry: Registry, models: list[ModelParts]) -> Peers:
        """Listen for other frontends. They are looked for, and find this one, once it is announced."""
        config = self._config
        folder = self._stack.enter_context(run_folder(config))
        routers: list[NoteExchange] = [model.router for model in models]
        peers = Peers(
            registry,
            routers[0] if len(routers) == 1 else SharedNotes(routers),
            self._clock,
            frontend_id=self._id,
            interval_s=config.peer_interval_ms / 1000,
            ttl_s=config.registry_ttl_s,
        )
        self._stack.push_async_callback(peers.close)
        await peers.start(config.peer_listen or f"unix:{folder / self._id}.sock")
        return peers

    def service(self, models: list[ModelParts], served: list[ServedModel], peers: Peers | None) -> Service:
        """Put together what the routes share."""
        config, clock = self._config, self._clock
        self._metrics.add(PeerMetrics(peers, self._id))
        self._metrics.add_models({model.name: model.collectors for model in models})
        return Service(
            config=config,
            clock=clock,
            models=Models(served),
            metrics=self._metrics,
            room=self._room,
            randomness=random.Random(os.urandom(16)),
            created_s=int(clock.wall()),
            frontend_id=self._id,
            explain=ExplainStore(
                clock, router_settings(config), keep=config.explain_requests, frontend=self._id
            ),
            peers=peers,
        )

    def _on_broken(self, why: str) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(why)


def _card(peers: Peers, front: Front, clock: Clock) -> FrontendCard:
    return FrontendCard(
        frontend_id=peers.frontend_id,
        address=peers.address,
        url=front.own_url or front.url,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=clock.wall(),
        version=tokenmill.__version__,
    )
