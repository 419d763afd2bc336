"""An engine that starts only once there is a double to attach it to."""

from __future__ import annotations

from typing import Generic, TypeVar

from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import Engine

_Engine = TypeVar("_Engine", bound=Engine)


class Attached(Generic[_Engine]):
    """An ``Engine`` by the one in ``engine``, but for ``start`` and ``stop``."""

    engine: _Engine

    def submit(self, request: GenerateRequest) -> None:
        self.engine.submit(request)

    def cancel(self, request_id: RequestId) -> None:
        self.engine.cancel(request_id)

    def metrics(self) -> StepMetrics:
        return self.engine.metrics()

    async def failure(self) -> str:
        return await self.engine.failure()
