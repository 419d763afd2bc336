"""A way for bytes from one device to another, and how long it takes them.

Exists so that everyone who weighs a transfer (router, placement, simulator) counts it alike. It must not know
what the bytes mean or who sends them.
"""

from __future__ import annotations

import msgspec


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two places. ``gb_per_s``: 1e9 bytes a second for one transfer alone, what the
    transport reaches rather than the line rate; ``latency_ms``: asking and connecting, before the first
    byte. ``shared``: names what transfers contend for ("" for a way of their own)."""

    gb_per_s: float
    latency_ms: float = 0.0
    shared: str = ""

    def __post_init__(self) -> None:
        if not self.gb_per_s > 0 or self.latency_ms < 0:
            raise ValueError(f"link: {self.gb_per_s} GB/s with {self.latency_ms} ms: needs a speed above 0")

    def transfer_ms(self, moved_bytes: float) -> float:
        """Return how long ``moved_bytes`` take, milliseconds."""
        return self.latency_ms + moved_bytes / self.gb_per_s * 1e-6


DEFAULT_LINK = Link(gb_per_s=10.0, latency_ms=1.0)
"""Where nothing is known: a few round trips on one host or in one rack, and a 100 Gbit/s network."""
