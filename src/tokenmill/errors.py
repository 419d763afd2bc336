"""One tree of errors: the type says who is at fault and carries the HTTP status.

    TokenmillError                 500
    +-- ClientError                400  the request is at fault
    |   +-- BadRequest             400  names the field
    |   +-- NotFound               404
    |   +-- TooLarge               413
    |   +-- Unprocessable          422  well formed, but this model or plant cannot do it
    |   +-- Overloaded             429  come back later (``retry_after_s``)
    +-- ServiceError               503  the plant is at fault
    |   +-- NoWorker               503  no worker for this stage is ready
    |   +-- QueueTimeout           503  all workers were busy for too long (``retry_after_s``)
    |   +-- WorkerLost             502  a worker died or its connection broke
    |   |   +-- WorkerStalled      502  a worker is there and says nothing
    |   +-- WorkerFailed           500  a worker answered with an error
    |   +-- HandoffFailed          502  the KV cache did not arrive
    |   +-- DeadlineExceeded       504
    +-- ConfigError                     a file or a flag is at fault (exit status 2)
    +-- ProtocolError                   a peer broke a wire format

Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar


class TokenmillError(Exception):
    """Root of the tree. ``message`` is for the person who can fix it: it names the field and the fix."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"
    code: ClassVar[str | None] = None
    retry_after_s: float | None = None
    """When coming back is worth while, where that is known."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ClientError(TokenmillError):
    """The request is at fault; sending it again unchanged will fail again."""

    status = 400
    kind = "invalid_request_error"


class BadRequest(ClientError):
    """A field is missing, malformed or out of range; ``param`` names it."""


class NotFound(ClientError):
    """No such model or path."""

    status = 404
    code = "not_found"


class TooLarge(ClientError):
    """Body, prompt or output is above a limit."""

    status = 413
    code = "too_large"


class Unprocessable(ClientError):
    """Well formed, but this model or plant cannot do it."""

    status = 422
    code = "unprocessable"


class Overloaded(ClientError):
    """Too much work is waiting; ``retry_after_s`` says when to come back."""

    status = 429
    kind = "rate_limit_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class ServiceError(TokenmillError):
    """The plant is at fault; the same request may succeed later."""

    status = 503
    kind = "service_unavailable"


class NoWorker(ServiceError):
    """No worker for a stage is ready."""

    code = "no_worker"


class QueueTimeout(ServiceError):
    """All workers are busy, and a request's turn did not come, or will not come, in time."""

    code = "queue_timeout"


class WorkerLost(ServiceError):
    """A worker died or its connection broke."""

    status = 502
    code = "worker_lost"


class WorkerStalled(WorkerLost):
    """A worker is there and says nothing: frozen, or cut off. What it may still say comes too late."""

    code = "worker_stalled"


class WorkerFailed(ServiceError):
    """A worker answered with an error."""

    status = 500
    code = "worker_failed"


class HandoffFailed(ServiceError):
    """The KV cache did not arrive at the decode worker."""

    status = 502
    code = "handoff_failed"


class DeadlineExceeded(ServiceError):
    """A wait ran out."""

    status = 504
    code = "deadline_exceeded"


class ConfigError(TokenmillError):
    """A file, a flag or an environment variable is at fault; the command line exits with 2."""

    kind = "config_error"


class ProtocolError(TokenmillError):
    """A peer sent bytes that break a wire format; the connection is closed."""

    kind = "protocol_error"
