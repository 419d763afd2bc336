"""Why a handoff between two TensorRT-LLM servers failed, in few words for counting. No I/O.

Exists so that metrics have a handful of labels whatever the server wrote. It must not know requests.
"""

from __future__ import annotations

from enum import StrEnum

from tokenmill.serve.engines.remote.complaints import reason_in


class Lost(StrEnum):
    """What kept the cache from coming."""

    UNREADABLE = "unreadable"
    """The handoff is of another make."""
    LEASE_EXPIRED = "lease_expired"
    """The prefill server has given the cache away, or it did not come in time."""
    SENDER_LOST = "sender_lost"
    """The prefill server is gone."""
    RECEIVER_LOST = "receiver_lost"
    """The decode server broke the connection."""
    OTHER_TOKEN = "other_token"  # noqa: S105 - a token of text
    """The decode server tells another first token than the prefill server."""
    ENGINE = "engine"
    """Whatever else the decode server calls a failure."""


_SIGNS = (
    (Lost.LEASE_EXPIRED, ("timed out", "timeout", "expired")),
    (Lost.SENDER_LOST, ("connect", "unreachable", "peer")),
)


def lost_by(message: str) -> Lost:
    """Return what a server's error message tells of the reason."""
    return reason_in(message, _SIGNS, Lost.ENGINE)
