"""The models behind one front door: each with its own workers, router, queue and counts.

Exists so that a request finds all that belongs to its model by one look-up of its name. It must not know HTTP
or how any part is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenmill.errors import BadRequest, NotFound
from tokenmill.protocol.ids import WorkerId
from tokenmill.serve.frontend.admission import AdmittingPlant
from tokenmill.serve.frontend.generator import Generator
from tokenmill.serve.frontend.metrics import ModelMetrics
from tokenmill.serve.frontend.openai.sampling import LengthLimits
from tokenmill.serve.frontend.text_generator import TextGenerator
from tokenmill.serve.frontend.workers import WorkerSet
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer
from tokenmill.serve.text.tool_calls.formats import ToolFormat
from tokenmill.spec.models import ALL_MODELS
from tokenmill.spec.process import FrontendConfig

_SHOWN_NAMES = 20


class ModelNotFound(NotFound):
    """The model is not served here."""

    code = "model_not_found"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What every model has. ``name``: what clients call it; "*" stands for all that its workers offer."""

    name: str
    workers: WorkerSet
    plant: AdmittingPlant
    metrics: ModelMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenModel(ServedModel):
    """One whose workers take token ids: its text is made and read here."""

    config: FrontendConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    generator: Generator
    tool_format: ToolFormat | None = None
    """How it writes tool calls; None: that is not known."""

    async def limits(self) -> LengthLimits:
        """Return the limits that hold now. Raises NoWorker where no worker comes in time."""
        context = await self.workers.context_tokens()
        config = self.config
        return LengthLimits(context=context, prompt=config.max_prompt_tokens, output=config.max_output_tokens)

    async def constraints(self) -> frozenset[str]:
        """Return the fields that shape the output and that every worker understands. Raises NoWorker."""
        await self.workers.context_tokens()
        known = [frozenset(card.constraints) for card in self.workers.usable]
        return frozenset.intersection(*known) if known else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel(ServedModel):
    """One whose workers take text, and pass it on to servers that are not ours."""

    generator: TextGenerator
    offers: Offers


class Offers:
    """Models that the usable workers' servers list; worked out anew only when those workers change."""

    def __init__(self, workers: WorkerSet) -> None:
        self._workers = workers
        self._seen: object = None
        self._without: dict[str, frozenset[WorkerId]] = {}

    def names(self) -> list[str]:
        """Return the models' names."""
        return list(self._by_name())

    def without(self, name: str) -> frozenset[WorkerId] | None:
        """Return the workers that do not have a model; None: no worker has it."""
        return self._by_name().get(name)

    def _by_name(self) -> dict[str, frozenset[WorkerId]]:
        cards = self._workers.usable
        if cards is not self._seen:  # a new list for each change
            self._seen = cards
            names = dict.fromkeys(name for card in cards for name in card.offers)
            self._without = {
                name: frozenset(card.worker_id for card in cards if name not in card.offers) for name in names
            }
        return self._without


class Models:
    """All models of a frontend, at least one, by name."""

    def __init__(self, served: Iterable[ServedModel]) -> None:
        self.all = tuple(served)
        self._names = {model.name: model for model in self.all}
        self._open_ended = [
            model for model in self.all if isinstance(model, TextModel) and model.name == ALL_MODELS
        ]
        if len(self.all) == 1 and not self._open_ended:
            self._names[""] = self.all[0]  # who names none means the one

    @property
    def first(self) -> ServedModel:
        """The one model, or the first of several."""
        return self.all[0]

    def find(self, name: str | None) -> ServedModel:
        """Return the model that a client asks for. Raises ModelNotFound, and BadRequest where it names none
        of several."""
        model = self._names.get(name or "")
        if model is not None and name != ALL_MODELS:
            return model
        if name:
            for each in self._open_ended:
                if each.offers.without(name) is not None:
                    return each
        names = self.names()
        has = ", ".join(f"`{known}`" for known in names[:_SHOWN_NAMES]) or "none now"
        if not name:
            raise BadRequest(f"model is missing; this server has {has}", param="model")
        raise ModelNotFound(f"The model `{name}` does not exist; this server has {has}", param="model")

    def names(self) -> list[str]:
        """Return what clients can ask for now."""
        names: list[str] = []
        for model in self.all:
            names += model.offers.names() if model in self._open_ended else [model.name]
        return list(dict.fromkeys(names))
