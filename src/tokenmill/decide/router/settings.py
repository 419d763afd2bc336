"""What a router can be told.

Exists as plain values, so that the frontend's shell, the simulator and tests make a router the same way. It
must not know where a setting was written down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenmill.decide.router.cost import CostWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How workers are chosen, and what is remembered for it."""

    policy: str = "kv"
    """kv, least-loaded, power-of-two, round-robin, random or session."""

    weights: CostWeights = field(default_factory=CostWeights)
    """The cost function's weights."""

    temperature_ms: float = 0.0
    """0: always the cheapest worker. Else one that costs so many milliseconds more is chosen 1/e as often."""

    prefill: str = "auto"
    """Where a prompt is computed: local (on the worker that decodes), remote (on a prefill worker), or auto:
    whichever is predicted to be better."""

    local_share: float = 0.0
    """With auto: at least this share of the prompts is computed on workers that decode, where there is a
    choice: what a plan counts on. 0: as many as are predicted to be better off."""

    itl_ms: float = 50.0
    """The time between tokens, milliseconds, that unequal decode workers are held against: each gets
    sequences by how many it can decode within it, where workers tell their step times."""

    kv_events: bool = True
    """Whether workers are asked what they cache. If not, a prompt is taken to be cached where it went."""

    predicted_ttl_s: float = 5.0
    """How long a prompt is taken to be cached where it went, before the worker's events say so, in
    seconds."""

    approximate_ttl_s: float = 120.0
    """The same for workers that give no events."""

    index_blocks: int = 1_000_000
    """Most blocks in the index, about 100 bytes each; those longest neither stored nor hit are forgotten."""

    index_shards: int = 256
    """Parts of the index, a power of two. With 256 nobody is stalled by one that grows or forgets; where
    nobody waits, as in a simulation, a single one is faster."""

    send_notes: bool = False
    """Whether there are other frontends to be told what this one does."""
