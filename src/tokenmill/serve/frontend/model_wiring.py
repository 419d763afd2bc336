"""The parts of a frontend that belong to one model: made here, and taken apart in reverse.

Exists so that one model and several are wired in the same way. It must not know HTTP.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prometheus_client.registry import Collector

from tokenmill.clock import Clock
from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.router_with_room import RouterWithRoom
from tokenmill.protocol.card import Prices, Speech, WorkerCard
from tokenmill.protocol.ids import WorkerId
from tokenmill.serve.fabric.registry import Registry
from tokenmill.serve.frontend.admission import AdmittingPlant
from tokenmill.serve.frontend.admission_metrics import AdmissionMetrics
from tokenmill.serve.frontend.admission_settings import admission_settings
from tokenmill.serve.frontend.flow_metrics import FlowMetrics
from tokenmill.serve.frontend.generator import Generator, Means
from tokenmill.serve.frontend.metrics import ModelMetrics
from tokenmill.serve.frontend.migration import MigrationLimits
from tokenmill.serve.frontend.peers import Peers
from tokenmill.serve.frontend.router_policies import policy_maker
from tokenmill.serve.frontend.router_settings import router_settings
from tokenmill.serve.frontend.routing_metrics import RoutingMetrics
from tokenmill.serve.frontend.served import Offers, ServedModel, TextModel, TokenModel
from tokenmill.serve.frontend.stall import StallLimits
from tokenmill.serve.frontend.stream_room import StreamRoom
from tokenmill.serve.frontend.text_generator import TextGenerator
from tokenmill.serve.frontend.workers import WorkerSet
from tokenmill.serve.frontend.write_batch import WriteBatch
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer
from tokenmill.serve.text.tool_calls.formats import ToolFormat, format_named
from tokenmill.spec.models import model_name, resolve_model
from tokenmill.spec.process import FrontendConfig


@dataclass(frozen=True, slots=True)
class Declared:
    """A model that is to be served. ``folder``: its checkpoint; None: its workers take text."""

    name: str
    folder: str | None
    sole: bool

    def serves(self, card: WorkerCard) -> bool:
        """Whether a worker is the model's. Where there is one model, the worker need not know its name."""
        speech = Speech.TEXT if self.folder is None else Speech.TOKENS
        return card.speaks is speech and (self.sole or card.model == self.name)


def declared_models(config: FrontendConfig) -> list[Declared]:
    """Return what is to be served, at least one model."""
    folders: list[tuple[str, str | None]] = [*config.model_paths.items()]
    folders += [(name, None) for name in config.text_models]
    if not folders:
        folders = [(model_name(config.model_name, config.model), config.model)]
    return [Declared(name, folder, len(folders) == 1) for name, folder in folders]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all models of a frontend use. ``stack`` closes what they open."""

    config: FrontendConfig
    clock: Clock
    stack: AsyncExitStack
    room: StreamRoom
    on_broken: Callable[[str], None]


class ModelParts:
    """``serve`` gives the model once its workers are known. Raises ConfigError for a tokenizer that cannot be
    loaded, or settings that are none."""

    def __init__(self, shared: Shared, declared: Declared) -> None:
        self.name = declared.name
        self.collectors: list[Collector] = []
        """What it counts; complete once it serves."""
        self._shared = shared
        self._declared = declared
        config = shared.config
        self._admission = Admission(admission_settings(config))
        self.router = RouterWithRoom(
            router_settings(config),
            self._admission.room,
            seed=random.SystemRandom().getrandbits(32),
            policy=policy_maker(config.router_policy),
        )
        self._text = None if declared.folder is None else self._load(declared.folder)

    def _load(self, model: str) -> tuple[Tokenizer, ChatTemplate | None, ToolFormat | None]:
        """Load what turns messages into tokens and back."""
        shared = self._shared
        folder = resolve_model(model)
        tokenizer = Tokenizer.load(folder, cache_bytes=shared.config.tokenizer_cache_mb * 1024 * 1024)
        shared.stack.callback(tokenizer.close)
        template = ChatTemplate.load(folder, clock=shared.clock)
        parser = shared.config.model_tool_parsers.get(self.name, shared.config.tool_parser)
        return tokenizer, template, format_named(parser, template.tool_source if template else "")

    async def serve(self, registry: Registry, peers: Peers | None) -> ServedModel:
        """Find the workers, connect to them, and put the rest together."""
        shared = self._shared
        config, clock = shared.config, shared.clock
        workers = WorkerSet(
            registry,
            self.router,
            clock,
            worker_wait_s=config.worker_wait_s,
            stall=StallLimits(
                silence_s=config.migration_stall_timeout_s, step_s=config.migration_step_timeout_s
            ),
            on_broken=shared.on_broken,
            on_routed=peers.routed if peers else None,
            serves=self._declared.serves,
        )
        shared.stack.push_async_callback(workers.close)
        await workers.start()
        plant = AdmittingPlant(workers, self._admission, clock)
        shared.stack.callback(plant.close)
        metrics, flow = ModelMetrics(workers.links), FlowMetrics()
        self.collectors += [metrics, RoutingMetrics(workers), AdmissionMetrics(plant), flow]
        means = Means(
            plant=plant,
            metrics=metrics,
            flow_metrics=flow,
            clock=clock,
            room=shared.room,
            batch=WriteBatch(config.write_interval_ms / 1000),
            request_timeout_s=config.request_timeout_s,
            migration=MigrationLimits(
                max_attempts=config.migration_max_attempts, max_tokens=config.migration_max_tokens
            ),
        )
        if self._text is None:
            return self._text_model(workers, plant, means)
        return self._token_model(*self._text, workers, plant, means)

    def _token_model(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        tool_format: ToolFormat | None,
        workers: WorkerSet,
        plant: AdmittingPlant,
        means: Means,
    ) -> TokenModel:
        return TokenModel(
            name=self.name,
            workers=workers,
            plant=plant,
            metrics=means.metrics,
            config=self._shared.config,
            tokenizer=tokenizer,
            template=template,
            tool_format=tool_format,
            generator=Generator(means, tokenizer),
        )

    def _text_model(self, workers: WorkerSet, plant: AdmittingPlant, means: Means) -> TextModel:
        def prices(worker: WorkerId) -> Prices | None:
            return next((card.prices for card in workers.usable if card.worker_id == worker), None)

        return TextModel(
            name=self.name,
            workers=workers,
            plant=plant,
            metrics=means.metrics,
            generator=TextGenerator(means, prices),
            offers=Offers(workers),
        )
