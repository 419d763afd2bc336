"""Which blocks a decode engine fetches, and into which of its own. The scheduler's side: no I/O.

An offer that cannot be taken is let fail where a transfer would, so that vLLM's own policy for failed loads
decides what becomes of the request. It must not know vLLM's classes.

    arrived --room allocated--> pulling --received, or failed--> done
            --nothing to fetch, ended in the queue--> released (the giver is told)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tokenmill.serve.engines.vllm.connector.cache import (
    NULL_BLOCK,
    CacheGroup,
    complete,
    offered_tokens,
)
from tokenmill.serve.engines.vllm.connector.offers import GroupOffer, Offer, brings_offer, read_params
from tokenmill.serve.engines.vllm.connector.orders import Orders, Pull, Take


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a request's block table. ``filled``: its content is known to be right."""

    block: int
    filled: bool


class _State(Enum):
    QUEUED = auto()
    PULLING = auto()
    DONE = auto()


@dataclass(slots=True)
class _Incoming:
    prompt_tokens: int
    offer: Offer | None
    problem: str
    state: _State = _State.QUEUED


class Taking:
    """Handoffs to one engine; as many as there are requests in it: vLLM bounds them."""

    def __init__(self, groups: Sequence[CacheGroup]) -> None:
        self._groups = tuple(groups)
        self._incoming: dict[str, _Incoming] = {}

    def arrived(
        self,
        request_id: str,
        prompt_tokens: int,
        params: Mapping[str, object] | None,
        *,
        fingerprint: str,
        ranks: int,
    ) -> None:
        """A request has come; ``params``: its ``kv_transfer_params``. ``ranks``: of the engine's workers."""
        if params is None or not brings_offer(params):
            return
        read = read_params(params, fingerprint)
        offer, problem = (None, read) if isinstance(read, str) else (read, "")
        if offer is not None:
            problem = _problem(offer, prompt_tokens, self._groups, ranks)
        self._incoming[request_id] = _Incoming(prompt_tokens, offer, problem)

    def loadable_tokens(self, request_id: str, computed_tokens: int) -> int:
        """Return how many tokens behind those that the engine has can be fetched. Changes nothing."""
        incoming = self._incoming.get(request_id)
        if incoming is None or incoming.state is not _State.QUEUED:
            return 0
        return max(0, offered_tokens(incoming.prompt_tokens) - computed_tokens)

    def allocated(
        self, request_id: str, external_tokens: int, tables: Sequence[Sequence[Place]], orders: Orders
    ) -> None:
        """Room has been made; ``external_tokens`` of it are to be fetched. Comes again once they are in."""
        incoming = self._incoming.get(request_id)
        if incoming is None or incoming.state is not _State.QUEUED:
            return
        if external_tokens <= 0:
            self._release(request_id, incoming, orders)
            return
        incoming.state = _State.PULLING
        orders.takes.append(self._take(request_id, incoming, tables))

    def finished(self, request_id: str, orders: Orders) -> None:
        """The request is over, perhaps long before its cache has come."""
        incoming = self._incoming.pop(request_id, None)
        if incoming is None:
            return
        if incoming.state is _State.QUEUED:
            self._release(request_id, incoming, orders)
        elif incoming.state is _State.PULLING:
            orders.dropped.append(request_id)

    def received(self, request_id: str) -> None:
        """A transfer has ended, well or badly."""
        incoming = self._incoming.get(request_id)
        if incoming is not None:
            incoming.state = _State.DONE

    def _take(self, request_id: str, incoming: _Incoming, tables: Sequence[Sequence[Place]]) -> Take:
        offer = incoming.offer
        if offer is None or incoming.problem:
            return Take(request_id, problem=incoming.problem)
        shares: list[tuple[GroupOffer, tuple[int, ...], int]] = []
        for group, given, table in zip(self._groups, offer.groups, tables, strict=True):
            own = group.needed(offer.tokens)
            missing = [place for place in own if place >= len(table) or not table[place].filled]
            start = missing[0] if missing else own.stop
            blocks = tuple(table[place].block for place in range(start, min(own.stop, len(table))))
            if missing != list(range(start, own.stop)) or len(blocks) != len(missing) or not complete(blocks):
                return Take(request_id, problem=f"there is no room for blocks {missing} of its table")
            skipped = start - own.start
            shares.append((given, (NULL_BLOCK,) * skipped + blocks, skipped))
        return Take(request_id, _by_rank(shares))

    def _release(self, request_id: str, incoming: _Incoming, orders: Orders) -> None:
        incoming.state = _State.DONE
        if incoming.offer is not None and not incoming.problem:
            shares = [(given, (NULL_BLOCK,) * given.blocks, given.blocks) for given in incoming.offer.groups]
            orders.takes.append(Take(request_id, _by_rank(shares), waited_for=False))


def _problem(offer: Offer, prompt_tokens: int, groups: Sequence[CacheGroup], ranks: int) -> str:
    """Why an offer that can be read does not suit the request; "" if it does."""
    if (offer.prompt_tokens, offer.tokens) != (prompt_tokens, offered_tokens(prompt_tokens)):
        return f"it is for a prompt of {offer.prompt_tokens} tokens, not {prompt_tokens}"
    places = [range(given.first, given.first + given.blocks) for given in offer.groups]
    whole = all(len(given.descriptors) == ranks for given in offer.groups if given.blocks)
    if places != [group.needed(offer.tokens) for group in groups] or not whole:
        return "it does not cover the blocks that are needed: the prefill side is broken"
    return ""


def _by_rank(shares: Sequence[tuple[GroupOffer, tuple[int, ...], int]]) -> tuple[tuple[Pull, ...], ...]:
    """Turn shares by group into pulls by rank; one of which nothing is wanted is released all the same."""
    ranks = max((len(given.descriptors) for given, _, _ in shares), default=0)
    return tuple(
        tuple(Pull(given.descriptors[rank], blocks, skipped) for given, blocks, skipped in shares if blocks)
        for rank in range(ranks)
    )
