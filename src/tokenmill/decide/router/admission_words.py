"""The words of admission: its settings, the facts it is told, and what it tells its shell to do.

Exists so that the queue, its shell and the simulator speak of the same things. It must not know I/O or how a
worker is chosen. All times are seconds on one clock; tokens are prompt tokens unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from tokenmill.protocol.ids import RequestId

MAX_PRIORITY: Final = 100
"""Priorities go from minus this to this; the bound on the number of levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyThresholds:
    """Above which load a worker gets no new request while another one, or the queue, can have it."""

    kv_share: float = 0.9
    """Share of the KV blocks held. The last tenth is for running sequences to grow into: without it the next
    prompt ends in a preemption, which computes a whole prompt twice."""

    prefill_s: float = 1.0
    """Seconds of prefill queued at a worker whose speed is known: twenty load reports long, so that it never
    runs dry between two of them, and short, since what waits at a worker can be neither reordered by fairness
    nor sent elsewhere."""

    prefill_tokens: int = 8192
    """Prefill tokens queued at a worker whose speed is not known yet: four steps of the usual budget, about a
    second on the accelerators of today."""

    spare_places: float = 0.25
    """Sequences that may wait at a worker for a place in its batch, as a share of the batch: they step in
    at once when others end, before the frontend could hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FairCharges:
    """What a token costs its tenant's service counter."""

    input: float = 1.0
    """A prompt token that is computed."""

    cached: float = 0.1
    """A prompt token that is found in a prefix cache: room, but no work."""

    output: float = 2.0
    """A generated token: it takes a step's share of memory traffic, where prompt tokens are computed by the
    thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """How long and how much may wait, and in which order it goes."""

    busy: BusyThresholds = field(default_factory=BusyThresholds)
    """When a worker is busy."""

    charges: FairCharges = field(default_factory=FairCharges)
    """What tokens cost their tenant."""

    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of single tenants; 1 for all others. One of weight 2 gets twice the tokens under load."""

    max_queued: int = 1024
    """Most sequences that wait. Beyond some thousands nobody's patience lasts to his turn."""

    max_queued_tokens: int = 2_000_000
    """Most prompt tokens that wait: about 24 MB of token ids."""

    max_wait_s: float = 30.0
    """Longest wait in the queue, then 503: longer than people wait for a first word. A request's own deadline
    may be earlier."""

    no_worker_wait_s: float = 5.0
    """Longest wait while nobody at all could serve, busy or not."""

    level_turn_s: float = 5.0
    """A level of priority that had nothing admitted for so long gets one turn, whatever waits above it."""


# Events ------------------------------------------------------------------------------------------


class Arrived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A sequence wants a worker.

    ``deadline_at``: when nobody wants the answer any more. ``group``: shared by the sequences of one request
    where there are several, else empty; they arrive in order, and ``sibling`` says that others of the group
    came before. ``replay``: it had a worker and lost it.
    """

    request_id: RequestId
    tokens: int
    tenant: str = ""
    priority: int = 0
    deadline_at: float | None = None
    group: str = ""
    sibling: bool = False
    replay: bool = False


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A waiting sequence was given to workers, who will compute so many tokens and find so many."""

    request_id: RequestId
    uncached_tokens: int
    cached_tokens: int


class PassedOver(msgspec.Struct, frozen=True, gc=False):
    """A waiting sequence was not placed. ``nobody``: no worker may have it, busy or not."""

    request_id: RequestId
    nobody: bool = False


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """Nobody waits for the sequence any more."""

    request_id: RequestId


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A sequence that had been placed is over."""

    request_id: RequestId
    output_tokens: int


class RoomChanged(msgspec.Struct, frozen=True, gc=False):
    """Workers' loads are not what they were."""


class WorkersChanged(msgspec.Struct, frozen=True, gc=False):
    """A worker came or went."""


class TimePassed(msgspec.Struct, frozen=True, gc=False):
    """It is ``now``."""


AdmissionEvent = Arrived | Placed | PassedOver | Cancelled | Ended | RoomChanged | WorkersChanged | TimePassed


# Instructions ------------------------------------------------------------------------------------


class RefusedFor(StrEnum):
    """Why a sequence was refused."""

    QUEUE_FULL = "queue_full"
    """No room in the queue, and nobody in it has less right to his place."""
    EVICTED = "evicted"
    """It had a place in a full queue, and another has more right to it."""
    WAITED = "waited_too_long"
    """``max_wait_s``."""
    DEADLINE = "deadline_passed"
    """The request's own deadline."""
    TOO_LATE = "deadline_unreachable"
    """It would have come after its deadline."""
    NO_WORKER = "no_worker"
    """``no_worker_wait_s``."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """Choose workers for the sequence, and answer with ``Placed`` or ``PassedOver`` before anything else."""

    request_id: RequestId


class Refuse(msgspec.Struct, frozen=True, gc=False):
    """Tell the client no, and when to come back: ``retry_after_s`` (above 0), as measured."""

    request_id: RequestId
    reason: RefusedFor
    retry_after_s: float


AdmissionInstruction = Place | Refuse


class AdmissionStats(msgspec.Struct, frozen=True, kw_only=True):
    """What waits now. ``drain_tokens_per_s``: how fast prompt tokens leave the queue; None: not measured."""

    queued: int
    queued_tokens: int
    tenants: int
    open_workers: int
    busy_workers: int
    drain_tokens_per_s: float | None
    retry_after_s: float
