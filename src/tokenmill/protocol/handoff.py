"""Prefill worker -> decode worker: where the KV cache is. The frontend carries it unread."""

from __future__ import annotations

import msgspec


class Handoff(msgspec.Struct, frozen=True, array_like=True):
    """A promise that a prompt's KV cache can be fetched.

    ``transport``: name of the driver that wrote ``descriptor`` ("shm", "tcp", "nixl", or an
    engine's own connector). ``descriptor``: opaque to everyone but that driver.
    ``prompt_tokens``: how many tokens the cache will cover when it is complete. ``early``: the
    promise was given before prefill ended, so that the receiver may pull while it is being filled.
    """

    transport: str
    descriptor: bytes
    prompt_tokens: int
    early: bool = True
