"""What the routes share: the models they serve, the limits, the names of things.

Exists so that routes take one argument and tests can build it by hand. It must not know any one route.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from tokenmill.clock import Clock
from tokenmill.errors import Unprocessable
from tokenmill.protocol.frontends import FrontendId
from tokenmill.serve.frontend.explain import ExplainStore
from tokenmill.serve.frontend.metrics import FrontendMetrics
from tokenmill.serve.frontend.openai.sampling import seed_of
from tokenmill.serve.frontend.peers import Peers
from tokenmill.serve.frontend.served import Models, TokenModel
from tokenmill.serve.frontend.stream_room import StreamRoom
from tokenmill.spec.process import FrontendConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Wired once, in ``main``. ``randomness`` gives seeds and names; it is no secret."""

    config: FrontendConfig
    clock: Clock
    models: Models
    metrics: FrontendMetrics
    room: StreamRoom
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

    def token_model(self, name: str | None) -> TokenModel:
        """Return the model that a client names, for what needs its tokenizer. Raises ClientError."""
        model = self.models.find(name)
        if not isinstance(model, TokenModel):
            raise Unprocessable(f"the model `{name or model.name}` has no tokenizer here", param="model")
        return model
