"""What the routes share: the model they serve, its text, its workers, its limits.

Exists so that routes take one argument and tests can build it by hand. It must not know any one route.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from tokenmill.clock import Clock
from tokenmill.errors import NotFound
from tokenmill.protocol.frontends import FrontendId
from tokenmill.serve.frontend.admission import AdmittingPlant
from tokenmill.serve.frontend.explain import ExplainStore
from tokenmill.serve.frontend.generator import Generator
from tokenmill.serve.frontend.metrics import FrontendMetrics
from tokenmill.serve.frontend.openai.sampling import LengthLimits, seed_of
from tokenmill.serve.frontend.peers import Peers
from tokenmill.serve.frontend.workers import WorkerSet
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer
from tokenmill.spec.process import FrontendConfig


class ModelNotFound(NotFound):
    """The model is not served here."""

    code = "model_not_found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Wired once, in ``main``. ``randomness`` gives seeds and names; it is no secret."""

    config: FrontendConfig
    model_name: str
    clock: Clock
    tokenizer: Tokenizer
    template: ChatTemplate | None
    workers: WorkerSet
    plant: AdmittingPlant
    metrics: FrontendMetrics
    generator: Generator
    randomness: random.Random
    created_s: int
    frontend_id: FrontendId
    explain: ExplainStore
    peers: Peers | None = None
    """The factory's other frontends; None where this one keeps to itself."""
    _process: str = field(init=False)
    _numbers: itertools.count[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_process", f"{self.randomness.getrandbits(64):016x}")
        object.__setattr__(self, "_numbers", itertools.count(1))

    def new_id(self, prefix: str) -> str:
        """Return a name that no other request has."""
        return f"{prefix}{self._process}{next(self._numbers):08x}"

    def seed(self, asked: int | None) -> int:
        """Return the request's seed: the client's, or a random one."""
        return self.randomness.getrandbits(63) if asked is None else seed_of(asked, 0)

    def check_model(self, name: str | None) -> None:
        """Raise NotFound where a client asks for another model; none or "" is ours."""
        if name and name != self.model_name:
            raise ModelNotFound(
                f"The model `{name}` does not exist; this server has `{self.model_name}`", param="model"
            )

    async def limits(self) -> LengthLimits:
        """Return the limits that hold now. Raises NoWorker where no worker comes in time."""
        context = await self.workers.context_tokens()
        config = self.config
        return LengthLimits(context=context, prompt=config.max_prompt_tokens, output=config.max_output_tokens)
