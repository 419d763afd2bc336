"""Why a handoff between two vLLM servers failed, in few words for counting. No I/O.

Exists so that metrics have a handful of labels whatever the server wrote. To its client a server says only
that it failed; what happened stands in its log, which a worker that has launched it reads anyway. Read
against vLLM 0.32.0 (``nixl/base_worker.py``). It must not know requests beyond their ids.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from enum import StrEnum

from tokenmill.serve.engines.remote.complaints import reason_in


class Lost(StrEnum):
    """What kept the cache from coming."""

    UNREADABLE = "unreadable"
    """The handoff is of another make."""
    LEASE_EXPIRED = "lease_expired"
    """The prefill server has given the blocks away."""
    UNREACHABLE = "unreachable"
    """The prefill server is gone, or nobody knows it."""
    MISMATCH = "mismatch"
    """The two servers do not fit together."""
    WRONG_CACHE = "wrong_cache"
    """With that cache another first token comes out."""
    ENGINE = "engine"
    """Whatever else the decode server calls a failure."""


_SIGNS = (
    (Lost.LEASE_EXPIRED, ("expired", "lease ended")),
    (Lost.MISMATCH, ("mismatch", "compatib", "laid out in another way", "another kv connector")),
    (
        Lost.UNREACHABLE,
        (
            "disconnect",
            "unavailable",
            "handshake",
            "connection",
            "remote_",
            "transfer_exception",
            "cannot be reached",
            "did not answer",
            "did not arrive",
        ),
    ),
)

_FAILURE = re.compile(r"transfer failure: (\w+).*'request_id': '([^']+)'")
_OURS = re.compile(r"the handoff of (\S+) failed: (.+)$")
"""What our own connector writes; all on one line."""
_EXCEPTION = re.compile(r"\] (?:\w+\.)*\w*(?:Error|Exception|Again|[A-Z_]{8,}): (.+)$")
_KEPT = 256
"""Failures remembered; the answer to a request comes within the same second."""


def lost_by(message: str) -> Lost:
    """Return what a server's words tell of the reason."""
    return reason_in(message, _SIGNS, Lost.ENGINE)


class LogClues:
    """Failed transfers in a server's log, by the request that they were for. Bounded by ``_KEPT``."""

    def __init__(self) -> None:
        self._clues: OrderedDict[str, str] = OrderedDict()
        self._last = ""

    def take(self, line: str) -> None:
        """Read a line of the log. A failure's exception stands in the lines after it."""
        ours = _OURS.search(line)
        if ours is not None:
            self._keep(ours[1], ours[2])
            return
        failure = _FAILURE.search(line)
        if failure is not None:
            self._last = failure[2]
            self._keep(self._last, failure[1])
            return
        exception = _EXCEPTION.search(line) if self._last else None
        if exception is not None:
            if self._last in self._clues:
                self._clues[self._last] += f": {exception[1]}"
            self._last = ""

    def _keep(self, name: str, text: str) -> None:
        self._clues[name] = text
        self._clues.move_to_end(name)
        if len(self._clues) > _KEPT:
            self._clues.popitem(last=False)

    def of(self, request_id: str) -> str:
        """Return what the log says of a request; "" where it says nothing. Servers put their own words around
        an id."""
        told = (text for name, text in reversed(self._clues.items()) if f"-{request_id}-" in f"-{name}-")
        return next(told, "")
