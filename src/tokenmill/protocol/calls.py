"""Frontend -> worker: what a stream is opened with."""

from __future__ import annotations

import msgspec

from tokenmill.protocol.generate import GenerateRequest


class Generate(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Make tokens; answered by the items of one request."""

    request: GenerateRequest


class Subscribe(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Send ``Load`` after each step (at most every ``interval_ms``) until cancelled."""

    interval_ms: float = 50.0


class SubscribeKv(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Send ``KvEvents``: first a snapshot of what is cached, then what enters and leaves, until cancelled."""


Call = Generate | Subscribe | SubscribeKv
