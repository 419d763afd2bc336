"""Which workers can hand a KV cache to which: one table and one rule.

Exists so that the factory file's checks, the router and a person who asks why get the same answer. A side may
be known in part (a stage before it runs): what is not known is not held against it. It must not know engines,
only their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tokenmill.protocol.card import WorkerCard


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A stage or worker that gives or takes a cache. Empty or 0: not known.

    ``name``: for people. ``engine``: its family ("vllm"), ``version`` apart. ``transports``: None: not known.
    ``meaning``: what must be equal for a cache to mean the same (model, shapes, numbers); ``kv_dtype``: the
    cache's number format.
    """

    name: str
    engine: str
    version: str = ""
    transports: tuple[str, ...] | None = None
    meaning: str = ""
    kv_dtype: str = ""
    block_tokens: int = 0


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What two sides of one engine must share beside the model. ``because``: for people."""

    same_version: bool = False
    same_block_tokens: bool = False
    because: str = ""


VLLM_TRANSPORTS: Final[Mapping[str, str]] = {"nixl": "vllm", "tokenmill": "vllm-tokenmill"}
"""What a handoff between two vLLM engines is called, by the ``kv_connector`` that both need."""

_BLOCKS: Final = Rule(same_block_tokens=True, because="blocks are handed over as they are")
_HANDSHAKE: Final = Rule(same_version=True, because="its connector's handshake compares versions")
_PAGES: Final = Rule(
    same_version=True, same_block_tokens=True, because="its blocks are handed over as they are"
)
_OPAQUE: Final = Rule(same_version=True, because="its state is opaque, and each version writes its own")
_ANY: Final = Rule()

HANDOFFS: Final[Mapping[str, Mapping[str, Rule]]] = {
    "torch": {"shm": _BLOCKS, "tcp": _BLOCKS},
    "sim": {"shm": _BLOCKS, "tcp": _BLOCKS},
    "vllm": {"vllm": _HANDSHAKE, "vllm-tokenmill": _PAGES},
    "sglang": {"sglang": _ANY},
    "trtllm": {"trtllm": _OPAQUE},
    "openai": {},
}
"""By engine and transport. Between two engines there is none: each lays its cache out in its own way. An
engine that is not here may use any transport that both sides know."""


def why_not(giver: Side, taker: Side) -> str:
    """Return why ``taker`` cannot use a cache made by ``giver``, with the fix behind a semicolon; empty: it
    can."""
    pair = f"{giver.name} ({_engine(giver)}) cannot hand its KV cache over to {taker.name} ({_engine(taker)})"
    if giver.engine != taker.engine:
        return f"{pair}: each engine has its own layout; use one engine for both, or role: both"
    if giver.meaning and taker.meaning and giver.meaning != taker.meaning:
        return (
            f"{pair}: their models or number formats differ ({giver.meaning!r}, {taker.meaning!r}); use one"
        )
    if giver.kv_dtype != taker.kv_dtype and giver.kv_dtype and taker.kv_dtype:
        return (
            f"{pair}: their caches' number formats differ ({giver.kv_dtype}, {taker.kv_dtype}); "
            "give both the same"
        )
    rules = HANDOFFS.get(giver.engine)
    common = _common(giver, taker, rules)
    if not common:
        return f"{pair}: they have no transport in common; {_transport_fix(giver.engine, rules)}"
    whys = [_against(rule, giver, taker) for rule in common]
    return "" if "" in whys else f"{pair}: {whys[0]}"


def can_hand_over(giver: WorkerCard, taker: WorkerCard) -> bool:
    """Whether ``taker`` can use a cache made by ``giver``."""
    return not why_not(side_of(giver), side_of(taker))


def side_of(card: WorkerCard) -> Side:
    """Return what a worker tells of itself."""
    engine, _, version = card.engine.partition(" ")
    return Side(
        name=f"stage {card.stage}",
        engine=engine,
        version=version,
        transports=tuple(card.transports),
        meaning=card.fingerprint or "not told",
        block_tokens=card.block_tokens,
    )


def _common(giver: Side, taker: Side, rules: Mapping[str, Rule] | None) -> list[Rule]:
    """Rules of the transports that both sides have, the giver's best first."""
    names = tuple(rules or ()) if giver.transports is None else giver.transports
    taken = tuple(rules or ()) if taker.transports is None else taker.transports
    if rules is None and (giver.transports is None or taker.transports is None):
        return [_ANY]  # nothing speaks against it
    known = rules if rules is not None else dict.fromkeys(names, _ANY)
    return [known.get(name, _ANY) for name in names if name in taken and known]


def _against(rule: Rule, giver: Side, taker: Side) -> str:
    if rule.same_version and giver.version and taker.version and giver.version != taker.version:
        return f"{rule.because}; give both the same version"
    sizes = giver.block_tokens, taker.block_tokens
    if rule.same_block_tokens and all(sizes) and sizes[0] != sizes[1]:
        differ = f"{sizes[0]} tokens a block are not {sizes[1]}"
        return f"{rule.because}, and {differ}; give both the same block_tokens"
    return ""


def _transport_fix(engine: str, rules: Mapping[str, Rule] | None) -> str:
    if rules is not None and not rules:
        return f"engine {engine} has none: use role: both"
    if engine == "vllm":
        return "give both the same kv_connector"
    return "name one for both in transports"


def _engine(side: Side) -> str:
    return f"{side.engine} {side.version}".strip()
