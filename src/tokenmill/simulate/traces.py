"""A trace: requests with their times and lengths, whoever recorded or made them.

Exists so that plants and plans need not know file formats (``traces_files``) or generators (``synthetic``).
It must not know workers or routing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec


class TracedRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace.

    ``at_s``: arrival in seconds since the trace's start. ``prompt_tokens``, ``output_tokens``: lengths.
    ``prefix_ids``: one id for each block of ``prefix_block_tokens`` prompt tokens, the last maybe short; two
    requests whose first n ids are equal have the same first n blocks. What the ids do not reach (all of the
    prompt, where there are none) is like no other prompt. ``klass``: what figures are told apart by;
    ``tenant``, ``priority``: as in a request's headers and body.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()
    klass: str = ""
    tenant: str = ""
    priority: int = 0


class Trace(msgspec.Struct, frozen=True):
    """Requests in the order of arrival."""

    requests: list[TracedRequest]
    prefix_block_tokens: int = 512

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def output_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(request.output_tokens for request in self.requests)

    @property
    def length_s(self) -> float:
        """From the trace's start to its last arrival."""
        return self.requests[-1].at_s if self.requests else 0.0

    def faster(self, speedup: float) -> Trace:
        """Return the trace with all arrivals ``speedup`` times as dense."""
        return self.with_requests(
            msgspec.structs.replace(request, at_s=request.at_s / speedup) for request in self.requests
        )

    def between(self, start_s: float, end_s: float) -> Trace:
        """Return the requests that arrive from ``start_s`` to before ``end_s``, counted from ``start_s``."""
        return self.with_requests(
            msgspec.structs.replace(request, at_s=request.at_s - start_s)
            for request in self.requests
            if start_s <= request.at_s < end_s
        )

    def first(self, number: int) -> Trace:
        """Return the first ``number`` requests."""
        return self.with_requests(self.requests[:number])

    def with_requests(self, requests: Iterable[TracedRequest]) -> Trace:
        """Return other requests over the same blocks; they must be in the order of arrival."""
        return Trace(list(requests), self.prefix_block_tokens)


def sessions_of(trace: Trace) -> list[str]:
    """Return what each request's client might call its conversation; empty where prompts tell nothing.

    Traces tell no sessions. Two requests are taken to be of one when their prompts are equal up to the first
    block that is not a common head, such as a system prompt: one that more than 1 % of all requests have.
    """
    having = Counter(prefix_id for request in trace.requests for prefix_id in request.prefix_ids)
    common = max(1, len(trace.requests) // 100)
    own = (next((i for i in r.prefix_ids if having[i] <= common), None) for r in trace.requests)
    return ["" if first is None else str(first) for first in own]
