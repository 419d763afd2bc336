"""The one place where a frontend's parts are put together, and taken apart in reverse.

Exists so that nothing else in the room makes its own registry, clock, router or server.
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
from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.router_with_room import RouterWithRoom
from tokenmill.protocol.frontends import FrontendCard, FrontendId
from tokenmill.serve.fabric.registry import Registry, open_registry
from tokenmill.serve.frontend.admission import AdmittingPlant
from tokenmill.serve.frontend.admission_metrics import AdmissionMetrics
from tokenmill.serve.frontend.admission_settings import admission_settings
from tokenmill.serve.frontend.app import App
from tokenmill.serve.frontend.doors import Front, open_doors
from tokenmill.serve.frontend.explain import ExplainStore
from tokenmill.serve.frontend.flow_metrics import FlowMetrics
from tokenmill.serve.frontend.generator import Generator
from tokenmill.serve.frontend.http.server import HttpServer
from tokenmill.serve.frontend.http_settings import cors
from tokenmill.serve.frontend.metrics import FrontendMetrics
from tokenmill.serve.frontend.migration import MigrationLimits
from tokenmill.serve.frontend.peers import Peers
from tokenmill.serve.frontend.router_policies import policy_maker
from tokenmill.serve.frontend.router_settings import router_settings
from tokenmill.serve.frontend.routing_metrics import RoutingMetrics
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.stall import StallLimits
from tokenmill.serve.frontend.workers import WorkerSet
from tokenmill.serve.process import run_folder
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer
from tokenmill.spec.models import model_name, resolve_model
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
        text = parts.text()
        if registry is None:
            registry = open_registry(config.registry)
            await registry.start()
            stack.push_async_callback(registry.stop)
        peers = await parts.peers(registry) if config.peer_sync else None
        workers = await parts.workers(registry, peers)
        service = parts.service(*text, workers, peers)
        front = await open_doors(config, App(service, cors(config)), clock, stack)
        if peers is not None:
            await peers.announce(_card(peers, front, clock))
        yield front


class _Parts:
    """Makes the parts; what they need closed goes on ``stack``."""

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
        self._admission = Admission(admission_settings(config))
        self._router = RouterWithRoom(
            router_settings(config),
            self._admission.room,
            seed=random.SystemRandom().getrandbits(32),
            policy=policy_maker(config.router_policy),
        )

    def text(self) -> tuple[Tokenizer, ChatTemplate | None]:
        """Load what turns messages into tokens and back."""
        folder = resolve_model(self._config.model)
        tokenizer = Tokenizer.load(folder, cache_bytes=self._config.tokenizer_cache_mb * 1024 * 1024)
        self._stack.callback(tokenizer.close)
        return tokenizer, ChatTemplate.load(folder, clock=self._clock)

    async def peers(self, registry: Registry) -> Peers:
        """Listen for other frontends. They are looked for, and find this one, once it is announced."""
        config = self._config
        folder = self._stack.enter_context(run_folder(config))
        peers = Peers(
            registry,
            self._router,
            self._clock,
            frontend_id=self._id,
            interval_s=config.peer_interval_ms / 1000,
            ttl_s=config.registry_ttl_s,
        )
        self._stack.push_async_callback(peers.close)
        await peers.start(config.peer_listen or f"unix:{folder / self._id}.sock")
        return peers

    async def workers(self, registry: Registry, peers: Peers | None) -> WorkerSet:
        """Find the workers and connect to them."""
        config = self._config
        workers = WorkerSet(
            registry,
            self._router,
            self._clock,
            worker_wait_s=config.worker_wait_s,
            stall=StallLimits(
                silence_s=config.migration_stall_timeout_s, step_s=config.migration_step_timeout_s
            ),
            on_broken=self._on_broken,
            on_routed=peers.routed if peers else None,
        )
        self._stack.push_async_callback(workers.close)
        await workers.start()
        return workers

    def service(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, workers: WorkerSet, peers: Peers | None
    ) -> Service:
        """Put together what the routes share."""
        config, clock = self._config, self._clock
        plant = AdmittingPlant(workers, self._admission, clock)
        self._stack.callback(plant.close)
        flow_metrics = FlowMetrics()
        metrics = FrontendMetrics(workers.links)
        for collector in (RoutingMetrics(workers, peers, self._id), AdmissionMetrics(plant), flow_metrics):
            metrics.add(collector)
        return Service(
            config=config,
            model_name=model_name(config.model_name, config.model),
            clock=clock,
            tokenizer=tokenizer,
            template=template,
            workers=workers,
            plant=plant,
            metrics=metrics,
            generator=self._generator(plant, tokenizer, metrics, flow_metrics),
            randomness=random.Random(os.urandom(16)),
            created_s=int(clock.wall()),
            frontend_id=self._id,
            explain=ExplainStore(
                clock, self._router.settings, keep=config.explain_requests, frontend=self._id
            ),
            peers=peers,
        )

    def _generator(
        self,
        plant: AdmittingPlant,
        tokenizer: Tokenizer,
        metrics: FrontendMetrics,
        flow_metrics: FlowMetrics,
    ) -> Generator:
        config = self._config
        return Generator(
            plant,
            tokenizer,
            metrics,
            self._clock,
            request_timeout_s=config.request_timeout_s,
            max_streams=config.max_streams,
            migration=MigrationLimits(
                max_attempts=config.migration_max_attempts, max_tokens=config.migration_max_tokens
            ),
            flow_metrics=flow_metrics,
            write_interval_s=config.write_interval_ms / 1000,
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
