"""What a test makes the double do wrong, and what it has noticed. Told and asked over ``/double``."""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal[
    "error",
    "crash",
    "stream_error",
    "late_error",
    "hang_up",
    "break",
    "garbage",
    "silent_end",
    "wrong_first",
    "uncounted",
    "cancelled",
]


class Faults(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``completions``: how many of the next requests are spoiled, in the way of ``how``:

    ``error``: refused with 400, as the engine does with whatever goes wrong inside; ``crash``: 500;
    ``stream_error``: an error event in place of tokens; ``late_error``: after the first one; ``hang_up``: the
    connection breaks before the first token, ``break``: after the second one; ``garbage``: an event that is
    no JSON; ``silent_end``: the stream ends without a reason; ``wrong_first``: a decode tells another first
    token; ``uncounted``: pieces carry no counts; ``cancelled``: the engine gives the request up.

    ``only``: kind of request that is spoiled, empty for all. ``forgets_caches``: no cache is given away.
    """

    completions: int = 0
    how: How | None = None
    only: str = ""
    forgets_caches: bool = False


class Record(msgspec.Struct, kw_only=True):
    """What the double has seen. ``violations``: requests that the protocol does not allow, in words;
    ``kinds``: accepted requests by kind; ``last``: the last accepted request; ``aborted``: clients that went
    away.
    """

    violations: list[str] = []
    kinds: dict[str, int] = {}
    last: dict[str, object] = {}
    aborted: int = 0
    caches_given: int = 0
    caches_expired: int = 0
