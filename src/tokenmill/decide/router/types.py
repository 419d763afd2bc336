"""The words between a frontend and its router.

Exists so that policies, the frontend's shell and the simulator speak of the same things. It must not know
I/O.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from tokenmill.decide.router.cost import CachedTokens
from tokenmill.protocol.block_hashes import TOKEN_BYTES, NamedPrompt
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId, Role, WorkerId


class Load(Protocol):
    """What is known of a worker's load now; ``cost.LoadFacts`` says what each count means."""

    @property
    def queue_tokens(self) -> int:
        """Prompt tokens that it still has to compute."""
        ...

    @property
    def decoding(self) -> int:
        """Sequences that generate there or will."""
        ...

    @property
    def blocks_used(self) -> int:
        """KV blocks held."""
        ...

    @property
    def blocks_total(self) -> int:
        """KV blocks there are."""
        ...


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """A worker that may be chosen, with its load as this frontend sees it.

    ``cached_tokens``: tokens of the prompt's head that the worker is believed to have cached, in any tier; 0
    for a policy that does not ask for it (``needs_cache``).
    """

    card: WorkerCard
    load: Load
    cached_tokens: int = 0


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy may look at.

    ``packed``: prompt and output so far, token ids as ``block_hashes.pack_tokens`` makes them; ``named``: the
    same where the names of its blocks are known, then ``packed`` is empty.
    ``output_tokens``: most tokens that may still be generated. ``session``: what the client calls its
    conversation, empty for nothing.
    ``priority``: larger is sooner. ``deadline_at``: when nobody wants the answer any more, on the frontend's
    clock. ``group``: shared by the sequences of one request where there are several, else empty; ``choice``:
    which of them this is. ``replay``: it had a worker and lost it.
    """

    request_id: RequestId
    packed: bytes
    output_tokens: int
    cache_salt: str = ""
    session: str = ""
    tenant: str = ""
    priority: int = 0
    deadline_at: float | None = None
    group: str = ""
    choice: int = 0
    replay: bool = False
    named: NamedPrompt | None = None

    @property
    def tokens(self) -> int:
        """Tokens to be in the cache before the next one is generated."""
        return len(self.packed) // TOKEN_BYTES if self.named is None else self.named.tokens


class Choice(msgspec.Struct, frozen=True):
    """One worker, and why: ``reasons`` are for people."""

    worker: WorkerId
    reasons: tuple[str, ...] = ()


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate as it was weighed for one request; ``Evidence.explain`` makes it.

    ``cached``: tokens of the prompt's head by tier, at least so many where ``cached_exact`` is False.
    ``terms``: the cost's terms by name, milliseconds, ``total_ms`` among them. ``chosen``: "prefill",
    "decode" or "both" for who was taken, else empty.
    """

    worker: WorkerId
    role: Role
    cached: CachedTokens
    cached_exact: bool
    load: dict[str, int]
    terms: dict[str, float]
    chosen: str = ""


class WeighedPath(msgspec.Struct, frozen=True, kw_only=True):
    """One way for the prompt as it was predicted: ``kind`` is "local" or "remote". ``terms``: milliseconds by
    name, ``total_ms`` among them."""

    kind: str
    decode_worker: WorkerId
    prefill_worker: WorkerId | None
    terms: dict[str, float]
    chosen: bool


class Evidence(Protocol):
    """What a decision was made of: kept as references, spelled out only when somebody asks."""

    def explain(self) -> list[Weighed]:
        """Return all candidates by role, the cheapest first, with every term of their cost as it was then."""
        ...

    def paths(self) -> list[WeighedPath]:
        """Return the ways that were compared; none where there was only one."""
        ...


class Decision(msgspec.Struct, frozen=True):
    """Who serves a request. Without ``prefill_worker``, ``decode_worker`` does it all.

    ``cached_tokens``: tokens that the worker that does the prefill is believed to have cached;
    ``prefill_tokens``: those it must compute. ``evidence``: None where there is nothing to tell.
    """

    decode_worker: WorkerId
    prefill_worker: WorkerId | None = None
    reasons: tuple[str, ...] = ()
    prefill_tokens: int = 0
    cached_tokens: int = 0
    evidence: Evidence | None = None


class RouterPolicy(Protocol):
    """Chooses one of several workers of equal ability. A class attribute ``needs_cache = True`` asks for
    ``Candidate.cached_tokens``, which costs a look-up for each request."""

    def choose(self, candidates: list[Candidate], request: RouteRequest, now: float) -> Choice:
        """Return one of ``candidates`` (never empty). ``now``: seconds on the frontend's clock."""
        ...
