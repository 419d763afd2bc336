"""How many requests a frontend generates at once, over all its models.

Exists so that the limit holds for the process and not for each model. It must not know what a request is.
"""

from __future__ import annotations

from tokenmill.errors import ServiceError
from tokenmill.serve.frontend.metrics import FrontendMetrics


class TooManyStreams(ServiceError):
    """As many requests are being generated as this frontend may hold."""

    code = "too_many_streams"


class StreamRoom:
    """Room for ``limit`` requests."""

    def __init__(self, metrics: FrontendMetrics, limit: int) -> None:
        self._metrics = metrics
        self._limit = limit

    def check(self) -> None:
        """Raise TooManyStreams where one more request is one too many; cheap, to be asked first."""
        if self._metrics.in_flight >= self._limit:
            raise TooManyStreams(f"{self._limit} requests are being generated (max_streams); try again later")
