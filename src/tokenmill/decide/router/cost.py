"""What a worker costs a request, in milliseconds: the one formula behind the ``kv`` policy.

Exists so that the formula stands in one place, with a reason for every weight, for the router's fast path,
for ``explain`` and for the simulator. It must not know indexes, policies or where its facts come from.

    cost(worker, request) = queue + decode + room            facts of the worker: ``load_terms``
                          + prefill                          ``prefill_ms``: uncached tokens at its speed

A request meets a worker only through its uncached tokens, so that a router may keep the first line up to date
as reports come, and needs to ask the second only once for each depth of hit and each class of device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class CostWeights:
    """What the terms are worth against each other. All terms are milliseconds before they are weighted."""

    queue: float = 1.0
    """The unit: a millisecond of queue delays this request's first token by a millisecond."""

    prefill: float = 2.0
    """A millisecond of the request's own prefill delays its first token as one of queue does. It also costs
    others as much: the device is taken from those that come next and from decodes, and what is computed here
    although another worker has it is cached twice, in the place of something else. So a hit is worth a queue
    of up to twice the time that it saves."""

    decode_stall_ms: float = 10.0
    """For each sequence that decodes at the worker. A prompt stalls every one of them while it is computed,
    and slows them while it decodes itself; they slow it. A tenth of what a prompt of ordinary length takes
    (100 ms): a stalled token is one among hundreds of its stream, a first token is waited for alone. On a
    worker that can decode fewer at a time than the best, each counts for so many times more
    (``decode_weights``), so that all are as full."""

    room_ms: float = 200.0
    """When all KV blocks of a worker are held. Beyond that point a prompt waits until a sequence ends, or
    preempts one, which costs the prefill of an ordinary prompt twice."""

    room_free_share: float = 0.75
    """Below this share of held blocks room is no matter; from here to 1 its cost grows linearly. Running
    sequences grow into what is left."""

    host_credit: float = 0.9
    """What a token cached in host memory saves of a token's prefill. Bringing its KV to the device costs
    about a tenth of computing it: 128 KiB over 50 GB/s against 0.027 ms (8 billion parameters, one H100)."""

    disk_credit: float = 0.2
    """The same for a disk that reads 6 GB/s: 0.022 ms a token."""


class DeviceSpeed(NamedTuple):
    """How fast a class of devices computes prompts: milliseconds.

    ``fixed_ms``: for one step. ``token_ms``: for each new token. ``context_ms``: for each earlier token that
    a new token attends to.
    """

    fixed_ms: float = 5.0
    token_ms: float = 0.027
    context_ms: float = 9e-7


class LoadFacts(NamedTuple):
    """What is known of a worker's load now.

    ``queue_tokens``: prompt tokens that it still has to compute, sent ones included. ``decoding``: sequences
    that generate there or will once their prompt is done. ``blocks_used`` of ``blocks_total``: KV blocks
    held, by sequences sent since the last report too.
    """

    queue_tokens: int = 0
    decoding: int = 0
    blocks_used: int = 0
    blocks_total: int = 0


class LoadTerms(NamedTuple):
    """What a worker costs any request, weighted, in milliseconds; see ``CostWeights``."""

    queue_ms: float
    decode_ms: float
    room_ms: float


class CachedTokens(NamedTuple):
    """Tokens of a prompt's head that a worker has, each counted once, in the nearest tier."""

    device: int = 0
    host: int = 0
    disk: int = 0


class CostTerms(NamedTuple):
    """Every term of one worker's cost for one request, weighted, milliseconds; ``total_ms`` is their sum."""

    queue_ms: float
    decode_ms: float
    room_ms: float
    prefill_ms: float
    total_ms: float


def load_terms(
    load: LoadFacts, speed: DeviceSpeed, weights: CostWeights, sequence_weight: float = 1.0
) -> LoadTerms:
    """Return what the worker costs whatever the request. ``sequence_weight``: what a decoding sequence weighs
    there, 1 on the worker that can decode most at a time."""
    queue_ms = weights.queue * load.queue_tokens * speed.token_ms
    decode_ms = weights.decode_stall_ms * load.decoding * sequence_weight
    room_ms = 0.0
    if load.blocks_total:
        over = load.blocks_used / load.blocks_total - weights.room_free_share
        if over > 0:
            room_ms = weights.room_ms * over / (1.0 - weights.room_free_share)
    return LoadTerms(queue_ms, decode_ms, room_ms)


def uncached_tokens(prompt_tokens: int, cached: CachedTokens, weights: CostWeights) -> float:
    """Return how many tokens' prefill the prompt costs when the tiers' hits count for what they save."""
    saved = cached.device + weights.host_credit * cached.host + weights.disk_credit * cached.disk
    return max(1.0, prompt_tokens - saved)


def prefill_ms(uncached: float, prompt_tokens: int, speed: DeviceSpeed, weights: CostWeights) -> float:
    """Return the weighted time to compute the last ``uncached`` of ``prompt_tokens`` tokens, milliseconds.

    Each new token attends to all before it: over the new ones that is ``uncached * (prompt - uncached / 2)``.
    """
    context = uncached * (prompt_tokens - uncached / 2)
    return weights.prefill * (speed.fixed_ms + speed.token_ms * uncached + speed.context_ms * context)


def cost_terms(
    load: LoadFacts,
    speed: DeviceSpeed,
    prompt_tokens: int,
    cached: CachedTokens,
    weights: CostWeights,
    sequence_weight: float = 1.0,
) -> CostTerms:
    """Return the whole cost, every term by name: what ``explain`` shows and what the fast path must equal."""
    base = load_terms(load, speed, weights, sequence_weight)
    own_ms = prefill_ms(uncached_tokens(prompt_tokens, cached, weights), prompt_tokens, speed, weights)
    return CostTerms(*base, own_ms, sum(base) + own_ms)
