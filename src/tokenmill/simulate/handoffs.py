"""KV caches on their way from prefill to decode workers.

Exists as the plant's stand-in for transports: what is ready moves over shared links, what has arrived is told
to its receiver, and who loses a partner is told that. It must not know how workers are chosen.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.decide.batching.types import (
    AbortPull,
    AdvanceKv,
    ExportReleased,
    Instruction,
    KvArrived,
    KvLost,
    OfferKv,
    PullKv,
    RequestCancelled,
    SealKv,
    SequenceRequest,
    WithdrawKv,
)
from tokenmill.protocol.ids import RequestId
from tokenmill.simulate.flight import Flight
from tokenmill.simulate.kernel import OFFER, TRANSFER, Kernel
from tokenmill.simulate.ports import Flow, Links
from tokenmill.simulate.worker import SimWorker


class Handoff:
    """One cache. ``ready``: tokens that the giver has; ``sent``: that the taker has or that are on the link.
    ``offered``: the taker has been asked; ``pulls``: it has places for the tokens from ``from_token`` on.
    ``sealed``: the first token is known. ``lost``: it will never come."""

    __slots__ = (
        "arriving",
        "flight",
        "flow",
        "from_token",
        "giver",
        "lost",
        "offered",
        "pulls",
        "ready",
        "request",
        "sealed",
        "sent",
        "taker",
    )

    def __init__(self, flight: Flight, giver: SimWorker, taker: SimWorker, request: SequenceRequest) -> None:
        self.flight = flight
        self.giver = giver
        self.taker = taker
        self.request = request
        self.flow: Flow | None = None
        self.ready = self.sent = self.from_token = 0
        self.offered = self.pulls = self.sealed = self.arriving = self.lost = False


class Handoffs:
    """All caches on their way. ``offer``: called when a taker is to be asked. ``delay_s``: one way between
    frontend and worker."""

    def __init__(
        self,
        kernel: Kernel,
        links: Links,
        offer: Callable[[Handoff], None],
        *,
        delay_s: float,
        early: bool,
    ) -> None:
        self.arrived = 0
        self.failed = 0
        self.moved_bytes = 0.0
        self._kernel = kernel
        self._links = links
        self._offer = offer
        self._delay_s = delay_s
        self._early = early
        self._open: dict[RequestId, Handoff] = {}

    def expect(self, handoff: Handoff) -> None:
        """A prefill worker was given a request whose cache is to go to ``handoff.taker``."""
        self._open[handoff.request.request_id] = handoff

    def moved(self, worker: SimWorker, instruction: Instruction) -> None:
        """A worker says what is to happen with KV blocks."""
        if isinstance(instruction, WithdrawKv):
            request_id = instruction.request_id
            self._soon(worker, lambda: self._release(worker, request_id))
            return
        assert isinstance(instruction, OfferKv | AdvanceKv | SealKv | PullKv | AbortPull)
        handoff = self._open.get(instruction.request_id)
        if handoff is None:
            return  # it ends with its first token, or was given up: nobody will take the cache
        if isinstance(instruction, PullKv):
            self._begin_pull(handoff, instruction)
        elif isinstance(instruction, SealKv):
            handoff.ready = len(handoff.request.prompt)
            handoff.sealed = True
        elif isinstance(instruction, OfferKv | AdvanceKv):
            handoff.ready = instruction.ready
        if isinstance(instruction, OfferKv if self._early else SealKv):
            # Over the frontend: one way to it, one on to the decode worker.
            at = self._kernel.now + 2 * self._delay_s
            self._kernel.at(at, OFFER, handoff.taker.number, lambda _: self._ask(handoff))
        self._progress(handoff)

    def give_up(self, request_id: RequestId, lost: SimWorker) -> bool | None:
        """A worker of a pair is gone. True: its partner goes on with the request alone; False: nobody
        does; None: the cache has arrived, or was not to go anywhere."""
        handoff = self._open.get(request_id)
        if handoff is None:
            return None
        handoff.lost = True
        self.failed += 1
        if handoff.flow is not None:
            self._links.stop(handoff.flow)
        if handoff.giver is lost:
            if not handoff.offered:
                del self._open[request_id]
                return False
            if handoff.pulls:
                self._compute_instead(handoff)
            return True  # else as soon as it would pull
        del self._open[request_id]
        if not handoff.giver.gone:
            handoff.giver.handle(RequestCancelled(request_id))
            handoff.giver.handle(ExportReleased(request_id))
        return False

    def _ask(self, handoff: Handoff) -> None:
        if not handoff.lost:
            handoff.offered = True
            self._offer(handoff)

    def _begin_pull(self, handoff: Handoff, pull: PullKv) -> None:
        handoff.pulls = True
        handoff.sent = handoff.from_token = pull.from_token
        if handoff.lost:
            self._soon(handoff.taker, lambda: self._compute_instead(handoff))

    def _compute_instead(self, handoff: Handoff) -> None:
        if self._open.pop(handoff.request.request_id, None) is None or handoff.taker.gone:
            return
        handoff.flight.tokens = 0  # a first token that has come is drawn again, and not sent again
        handoff.taker.handle(KvLost(handoff.request.request_id))

    def _progress(self, handoff: Handoff) -> None:
        """Put on the link what is ready, and end the pull when all is through."""
        if not handoff.pulls or handoff.lost:
            return
        fresh = handoff.ready - handoff.sent
        size = handoff.giver.stage.kv_bytes_per_token
        if handoff.flow is None:
            giver, taker = handoff.giver.host, handoff.taker.host
            handoff.flow = self._links.flow(giver, taker, lambda: self._progress(handoff))
        if fresh > 0:
            handoff.sent = handoff.ready
            self.moved_bytes += fresh * size
            if size:
                self._links.send(handoff.flow, fresh * size)
        done = handoff.sealed and handoff.sent >= len(handoff.request.prompt)
        if done and not handoff.flow.moves and not handoff.arriving:
            handoff.arriving = True
            at = self._kernel.now + handoff.flow.latency_s
            self._kernel.at(at, TRANSFER, handoff.flow.number, lambda _: self._arrive(handoff))

    def _arrive(self, handoff: Handoff) -> None:
        if handoff.lost:
            return
        request_id, flow = handoff.request.request_id, handoff.flow
        assert flow is not None, "what arrives has moved"
        del self._open[request_id]
        self.arrived += 1
        tokens = len(handoff.request.prompt) - handoff.from_token
        handoff.taker.joins_decodes()
        handoff.taker.handle(KvArrived(request_id, 0, tokens, (flow.moving_s + flow.latency_s) * 1000))
        self._release(handoff.giver, request_id)

    def _release(self, giver: SimWorker, request_id: RequestId) -> None:
        if not giver.gone:
            giver.handle(ExportReleased(request_id))

    def _soon(self, worker: SimWorker, act: Callable[[], None]) -> None:
        """After what happens just now: a worker says such things in the middle of a step's end."""
        self._kernel.at(self._kernel.now, OFFER, worker.number, lambda _: act())
