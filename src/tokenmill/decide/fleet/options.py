"""From engines that fit to a placement problem: what each would serve in each role, at what cost, over
which links.

Exists as the step between what is known of engines and what a solver needs. It must not know how it is
solved.

Links: a cache moves from a prefill worker to a decoding one at the speed of the slower side's links. Links
are loaded to a half at most, where a transfer waits half its own length on average (M/D/1: rho / (2 (1 -
rho))).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from tokenmill.decide.fleet.candidates import Candidate
from tokenmill.decide.fleet.capacity import (
    Capacity,
    Curve,
    Promise,
    curve,
    decode_capacity,
    prefill_capacity,
)
from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.fleet.problem import Option, Problem
from tokenmill.decide.fleet.workload import Workload

Objective = Literal["cost", "gpus", "power"]

LINK_LOAD: Final = 0.5
"""The share of a link that caches may take."""

_LINK_WAIT: Final = 1 + LINK_LOAD / (2 * (1 - LINK_LOAD))

LOCAL_SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of its prompts that a decoding worker computes itself; 1 is an aggregated one."""

FEW_SHARES: Final = (0.0, 0.5, 1.0)

SMALL_FLEET: Final = 64
"""GPUs up to which all shares, and all numbers of replicas up to ``EXACT_TO``, are looked at one by one."""

EXACT_TO: Final = 16

_NEAR: Final = 0.02
"""A handoff that costs at most this share of the time between tokens is as good as none."""

_HOPELESS: Final = 0.6
"""In a large fleet an engine that serves less than this share, a GPU, of what another in the same place
does, whether alone or in numbers, is left out."""

RESERVED_COST: Final = 1e-3
"""What is paid for in any case counts so much of its price: used first, yet not without need."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served how well, and what is to be least. ``rate_per_s``: None for as much as the fleet
    can."""

    workload: Workload
    promise: Promise
    rate_per_s: float | None = None
    objective: Objective = "cost"


class Role(NamedTuple):
    """What stands behind an option: an engine and what it would do. ``handoff_ms``: the longest that a
    cache takes to it (or from it)."""

    candidate: Candidate
    prefill: bool
    local_share: float
    handoff_ms: float

    def capacity(self, count: int, chunks: Sequence[float], ask: Ask) -> Capacity:
        """Return what ``count`` of them serve, with steps of one of ``chunks`` prefill tokens."""
        replica, load, promise = self.candidate.replica, ask.workload, ask.promise
        if self.prefill:
            return prefill_capacity(replica, count, load, promise, chunks=chunks, handoff_ms=self.handoff_ms)
        return decode_capacity(
            replica,
            count,
            load,
            promise,
            chunks=chunks,
            local_share=self.local_share,
            handoff_ms=self.handoff_ms,
        )


class Board(NamedTuple):
    """A problem, and what stands behind each of its options."""

    problem: Problem
    roles: tuple[Role, ...]

    def only(self, keep: Sequence[bool]) -> Board:
        """Return the board with the options that ``keep`` marks."""
        roles = tuple(role for role, kept in zip(self.roles, keep, strict=True) if kept)
        return Board(self.problem.only(keep), roles)

    def requiring(self, needs: Sequence[Callable[[Role], bool]]) -> Board:
        """Return the board whose plants have a replica of some role that each of ``needs`` lets through."""
        required = tuple(tuple(need(role) for role in self.roles) for need in needs)
        return Board(msgspec.structs.replace(self.problem, required=required), self.roles)


def cost_of(candidate: Candidate, objective: Objective) -> float:
    """Return what one replica costs: dollars an hour, GPUs or watts."""
    group = candidate.group
    if objective == "gpus":
        return float(candidate.gpus)
    if objective == "power":
        return candidate.gpus * group.power_w
    weight = RESERVED_COST if group.availability == "reserved" else 1.0
    return candidate.gpus * group.dollars_per_hour * weight


def place_of(candidate: Candidate) -> str:
    """Return where an engine stands as far as links matter: its zone, and how fast it is connected."""
    return f"{candidate.group.zone}/{candidate.group.network.gb_per_s:g}"


def link_between(inventory: Inventory, sender: Candidate, receiver: Candidate) -> Link:
    """Return the way of a cache; within one node only where the fleet has one node of that kind."""
    same_node = sender.group.name == receiver.group.name and sender.group.nodes == 1
    return inventory.link(
        sender.group,
        receiver.group,
        same_node=same_node,
        sender_gpus=sender.gpus,
        receiver_gpus=receiver.gpus,
    )


def board_of(
    ask: Ask, candidates: Sequence[Candidate], inventory: Inventory, *, quick: bool = False
) -> Board:
    """Put the problem together. Options that cannot hold the service level even alone are left out.

    ``quick``: look at fewer ways, as in a large fleet; what is then found feasible is.
    """
    pools = {group.name: group.gpus for group in inventory.groups}
    small = sum(pools.values()) <= SMALL_FLEET and not quick
    roles = [Role(each, True, 0.0, _handoff_ms(ask, inventory, [each], candidates)) for each in candidates]
    for share in LOCAL_SHARES if small else FEW_SHARES:
        for candidate in candidates:
            roles.extend(
                Role(candidate, False, share, ms)
                for ms in _handoffs(ask, inventory, candidate, candidates, share)
            )
    if not small:
        roles = _hopeful(ask, roles)
    options, behind = [], []
    for index, role in enumerate(roles):
        drawn = _curve(ask, role, exact_to=EXACT_TO if small else 4)
        if drawn.points:
            options.append(_option(ask, inventory, role, drawn, candidates, index))
            behind.append(role)
    problem = Problem(options=tuple(options), pools=pools, links=_links(ask, inventory, candidates))
    return Board(problem, tuple(behind))


def _option(
    ask: Ask, inventory: Inventory, role: Role, drawn: Curve, candidates: Sequence[Candidate], index: int
) -> Option:
    candidate = role.candidate
    accepts = {
        place_of(giver)
        for giver in candidates
        if role.prefill or _transfer_ms(ask, inventory, giver, candidate) <= role.handoff_ms * (1 + 1e-9)
    }
    # A place is accepted when caches from all that stands in it come in time.
    accepts -= {
        place_of(giver)
        for giver in candidates
        if not role.prefill and _transfer_ms(ask, inventory, giver, candidate) > role.handoff_ms * (1 + 1e-9)
    }
    return Option(
        name=f"{index}",
        pool=candidate.group.name,
        gpus=candidate.gpus,
        cost=cost_of(candidate, ask.objective),
        curve=drawn,
        prefill=role.prefill,
        remote=0.0 if role.prefill else 1 - role.local_share,
        place=place_of(candidate),
        accepts=frozenset(accepts),
    )


def _curve(ask: Ask, role: Role, *, exact_to: int) -> Curve:
    candidate = role.candidate
    drawn = curve(lambda count, chunks: role.capacity(count, chunks, ask), candidate.most, exact_to=exact_to)
    moved = 1.0 if role.prefill else 1 - role.local_share
    if not moved:
        return drawn
    # Within one node (and so with one node in all) caches do not leave it; else they take the network.
    speed = candidate.group.network if candidate.group.nodes > 1 else candidate.group.within
    per_replica = _most_moves(ask, candidate, speed.gb_per_s * candidate.gpus) / moved
    return Curve(tuple((count, min(rate, per_replica * count)) for count, rate in drawn.points))


def _most_moves(ask: Ask, candidate: Candidate, gb_per_s: float) -> float:
    """Return how many caches a second a link carries."""
    cache_bytes = ask.workload.prompt_tokens * candidate.kv_bytes_per_token
    return LINK_LOAD * gb_per_s * 1e9 / cache_bytes if cache_bytes else float("inf")


def _transfer_ms(ask: Ask, inventory: Inventory, giver: Candidate, taker: Candidate) -> float:
    cache_bytes = ask.workload.prompt_tokens * taker.kv_bytes_per_token
    return link_between(inventory, giver, taker).transfer_ms(cache_bytes) * _LINK_WAIT


def _handoff_ms(
    ask: Ask, inventory: Inventory, givers: Sequence[Candidate], takers: Sequence[Candidate]
) -> float:
    return max(_transfer_ms(ask, inventory, giver, taker) for giver in givers for taker in takers)


def _handoffs(
    ask: Ask, inventory: Inventory, taker: Candidate, givers: Sequence[Candidate], local_share: float
) -> list[float]:
    """How long caches may take to a decoding engine: one choice with all givers, one with the near ones
    alone."""
    if local_share == 1:
        return [0.0]
    times = sorted({_transfer_ms(ask, inventory, giver, taker) for giver in givers})
    near = ask.promise.itl_ms * ask.workload.decode_steps * _NEAR
    return sorted({times[-1], max((each for each in times if each <= near), default=times[0])})


def _hopeful(ask: Ask, roles: Sequence[Role]) -> list[Role]:
    """Leave out what serves far less, a GPU, than another way to do the same in the same place."""
    rates: list[tuple[float, float]] = []
    for role in roles:
        most = role.candidate.most
        chunk = (2048.0,)
        first, last = (
            role.capacity(count, chunk, ask).rate if count else 0.0 for count in (min(1, most), most)
        )
        rates.append((first / role.candidate.gpus, last / max(1, most) / role.candidate.gpus))
    best: dict[tuple[str, bool, float], tuple[float, float]] = {}
    for role, (first, last) in zip(roles, rates, strict=True):
        kind = (role.candidate.group.name, role.prefill, role.local_share)
        known = best.get(kind, (0.0, 0.0))
        best[kind] = (max(known[0], first), max(known[1], last))
    kept = []
    for role, (first, last) in zip(roles, rates, strict=True):
        top = best[role.candidate.group.name, role.prefill, role.local_share]
        if first >= top[0] * _HOPELESS or last >= top[1] * _HOPELESS:
            kept.append(role)
    return kept


def _links(ask: Ask, inventory: Inventory, candidates: Sequence[Candidate]) -> dict[tuple[str, str], float]:
    """Between zones a link is shared; what goes over it is limited. Places that share one get equal parts."""
    limits: dict[tuple[str, str], float] = {}
    sharing: dict[str, set[tuple[str, str]]] = {}
    for giver in candidates:
        for taker in candidates:
            if giver.group.zone == taker.group.zone:
                continue
            pair = (place_of(giver), place_of(taker))
            link = link_between(inventory, giver, taker)
            limits[pair] = max(limits.get(pair, 0.0), _most_moves(ask, taker, link.gb_per_s))
            sharing.setdefault(link.shared, set()).add(pair)
    for pairs in sharing.values():
        for pair in pairs:
            limits[pair] /= len(pairs)
    return limits
