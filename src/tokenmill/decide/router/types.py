"""The words between a frontend and its router.

Exists so that policies, the frontend's shell and the simulator speak of the same things. It must not know
I/O.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from tokenmill.decide.router.load import WorkerLoad
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId, WorkerId


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """A worker that may be chosen, with its load as this frontend sees it."""

    card: WorkerCard
    load: WorkerLoad


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy may look at. Token counts; ``prompt`` is the token ids themselves.

    ``output_tokens``: most tokens that may still be generated.
    """

    request_id: RequestId
    prompt: list[int]
    output_tokens: int
    cache_salt: str = ""


class Choice(msgspec.Struct, frozen=True):
    """One worker, and why: ``reasons`` are for people."""

    worker: WorkerId
    reasons: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """Who serves a request. Without ``prefill_worker``, ``decode_worker`` does it all."""

    decode_worker: WorkerId
    prefill_worker: WorkerId | None = None
    reasons: tuple[str, ...] = ()


class RouterPolicy(Protocol):
    """Chooses one of several workers of equal ability."""

    def choose(self, candidates: list[Candidate], request: RouteRequest, now: float) -> Choice:
        """Return one of ``candidates`` (never empty). ``now``: seconds on the frontend's clock."""
        ...
