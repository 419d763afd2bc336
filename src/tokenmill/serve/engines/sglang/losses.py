"""Why two SGLang servers did not come together, in few words for counting. No I/O.

Exists so that metrics have a handful of labels whatever the server wrote. It must not know requests.
"""

from __future__ import annotations

from enum import StrEnum

from tokenmill.serve.engines.remote.complaints import reason_in


class Lost(StrEnum):
    """What kept the cache from coming."""

    UNREADABLE = "unreadable"
    """The handoff is of another make."""
    BOOTSTRAP = "bootstrap"
    """The two sides did not find each other."""
    TIMEOUT = "timeout"
    """One side has waited too long for the other."""
    SENDER_LOST = "sender_lost"
    """The prefill server is gone."""
    TRANSFER = "transfer"
    """They found each other, but the cache did not get through."""
    ENGINE = "engine"
    """Whatever else a server calls a failure of its own."""


_SIGNS = (
    (Lost.TIMEOUT, ("timed out", "timeout")),
    (Lost.SENDER_LOST, ("now it is down", "lost connection", "disconnect", "refused", "unreachable")),
    (Lost.TRANSFER, ("transfer", "corrupt", "checksum", "metadata")),
    (Lost.BOOTSTRAP, ("bootstrap", "handshake", "parallel info", "mismatch")),
)


def lost_by(message: str) -> Lost:
    """Return what a server's error message tells of the reason."""
    return reason_in(message, _SIGNS, Lost.ENGINE)
