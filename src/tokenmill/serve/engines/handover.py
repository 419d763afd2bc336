"""Carries out what the step scheduler says about KV blocks: exports and pulls, on the event loop.

One export or pull for each request at most. Every outcome goes back to the scheduler as an event: exactly one
``ExportReleased`` for each offer, exactly one ``KvArrived`` or ``KvLost`` for each pull.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from tokenmill.decide.batching.types import (
    AbortPull,
    AdvanceKv,
    Event,
    ExportReleased,
    KvArrived,
    KvLost,
    OfferKv,
    PullKv,
    SealKv,
    WithdrawKv,
)
from tokenmill.errors import HandoffFailed
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import HandoffLost, Item, Offered
from tokenmill.serve.transfer.base import Export, KvTransport

log = structlog.get_logger(__name__)

KvInstruction = OfferKv | AdvanceKv | SealKv | WithdrawKv | PullKv | AbortPull

PULL_IDLE_TIMEOUT_S = 30.0
"""A sender that fills no token for so long is given up: a long prompt's chunk takes seconds, not more."""


class _Sealed(msgspec.Struct, array_like=True, frozen=True):
    """What a sender tells the receiver with the last block."""

    first_token: int


class Handover:
    """All exports and pulls of one engine. ``say`` tells a request's frontend."""

    def __init__(
        self,
        transport: KvTransport | None,
        post: Callable[[Event], None],
        say: Callable[[list[tuple[RequestId, Item]]], None],
        *,
        lease_s: float,
    ) -> None:
        self._transport = transport
        self._post = post
        self._say = say
        self._lease_s = lease_s
        self._exports: dict[RequestId, Export] = {}
        self._pulls: dict[RequestId, asyncio.Task[None]] = {}
        self._expected: dict[RequestId, Handoff] = {}

    def expect(self, request_id: RequestId, handoff: Handoff | None) -> None:
        """A request with this handoff was submitted; its ``PullKv`` will come."""
        if handoff is not None:
            self._expected[request_id] = handoff

    def forget(self, request_id: RequestId) -> None:
        """The request ended before it pulled."""
        self._expected.pop(request_id, None)

    def carry_out(self, instruction: KvInstruction) -> tuple[RequestId, Item] | None:
        """Do what the scheduler says; an offer answers with the item to send."""
        match instruction:
            case OfferKv():
                return self._offer(instruction)
            case AdvanceKv(request_id, ready):
                if (export := self._exports.get(request_id)) is not None:
                    export.advance(ready)
            case SealKv(request_id, first_token):
                if (export := self._exports.get(request_id)) is not None:
                    export.seal(msgspec.msgpack.encode(_Sealed(first_token)))
            case WithdrawKv(request_id, reason):
                if (export := self._exports.get(request_id)) is not None:
                    export.withdraw(reason)
            case PullKv():
                self._start_pull(instruction)
            case AbortPull(request_id):
                if (pull := self._pulls.get(request_id)) is not None:
                    pull.cancel()
        return None

    async def stop(self) -> None:
        """End all pulls; exports end with the transport."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    def _offer(self, offer: OfferKv) -> tuple[RequestId, Item] | None:
        request_id = offer.request_id
        if self._transport is None:
            self._post(ExportReleased(request_id))
            return None
        export = self._transport.export(
            offer.blocks,
            offer.tokens,
            lease_s=self._lease_s,
            on_released=partial(self._released, request_id),
        )
        self._exports[request_id] = export
        if offer.ready:
            export.advance(offer.ready)
        handoff = Handoff(self._transport.name, export.descriptor, offer.tokens, early=True)
        return request_id, Offered(handoff, offer.cached_tokens)

    def _released(self, request_id: RequestId, taken: bool) -> None:
        if not taken:
            log.debug("export ended without a receiver", request=request_id)
        self._exports.pop(request_id, None)
        self._post(ExportReleased(request_id))

    def _start_pull(self, pull: PullKv) -> None:
        handoff = self._expected.pop(pull.request_id, None)
        task = asyncio.get_running_loop().create_task(
            self._pull(pull, handoff), name=f"pull {pull.request_id}"
        )
        self._pulls[pull.request_id] = task
        task.add_done_callback(partial(self._pull_ended, pull.request_id))

    async def _pull(self, pull: PullKv, handoff: Handoff | None) -> None:
        """Fetch the blocks. Cancelled: nothing is written to them any more."""
        if handoff is None or self._transport is None or handoff.transport != self._transport.name:
            raise HandoffFailed("the handoff is missing or speaks another transport")
        if handoff.prompt_tokens != pull.tokens:
            raise HandoffFailed(f"the handoff covers {handoff.prompt_tokens} tokens, not {pull.tokens}")
        moving_s = 0.0

        def moved(busy_s: float) -> None:
            nonlocal moving_s
            moving_s = busy_s

        meta = await self._transport.pull(
            handoff.descriptor,
            pull.blocks,
            from_token=pull.from_token,
            idle_timeout_s=PULL_IDLE_TIMEOUT_S,
            on_moved=moved,
        )
        sealed = msgspec.msgpack.decode(meta, type=_Sealed)
        moved_tokens = pull.tokens - pull.from_token
        self._post(KvArrived(pull.request_id, sealed.first_token, moved_tokens, moving_s * 1000))

    def _pull_ended(self, request_id: RequestId, task: asyncio.Task[None]) -> None:
        del self._pulls[request_id]
        if task.cancelled():  # nobody wants the request any more
            self._post(KvLost(request_id))
        elif (error := task.exception()) is not None:
            log.warning("handoff failed; computing here", request=request_id, reason=str(error))
            self._say([(request_id, HandoffLost("transfer", str(error)))])
            self._post(KvLost(request_id))
