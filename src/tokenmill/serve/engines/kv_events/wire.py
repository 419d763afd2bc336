"""vLLM's KV events as they come over ZMQ, from bytes to words of ours.

Two forms are in use: arrays (``["BlockStored", hashes, parent, token_ids, block_size, ...]``, older servers)
and maps with a ``type`` (0.3x; also SGLang 0.5.2x, whose older servers send arrays too). Read against vLLM
0.32.0 (``distributed/kv_events.py``) and SGLang 0.5.23 (``srt/disaggregation/kv_events.py``). Lenient: what
it does not know it skips. It must not know sockets or what the blocks are used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.kv_events import CacheTier

EngineHash = int | bytes
"""A block's name among vLLM's: its meaning is vLLM's own."""

_FIELDS = {
    "BlockStored": (
        *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
        *("extra_keys", "group_idx", "kv_cache_spec_kind"),
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}

_TIERS = {"GPU": CacheTier.DEVICE, "CPU": CacheTier.HOST, "CPU_PINNED": CacheTier.HOST}


class EngineStored(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks were stored: ``hashes[i]`` names ``token_ids[i * block_tokens :][:block_tokens]``.

    ``keys``: what else makes a block's meaning (cache salt, LoRA, media), one entry a block; () is nothing.
    ``full_attention``: the blocks hold the KV of every token before, not of a window.
    """

    hashes: list[EngineHash]
    parent: EngineHash | None
    token_ids: list[int]
    block_tokens: int
    tier: CacheTier = CacheTier.DEVICE
    lora: bool = False
    keys: list[tuple[object, ...]] = []
    group: int = 0
    full_attention: bool = True


class EngineRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks were evicted."""

    hashes: list[EngineHash]
    tier: CacheTier = CacheTier.DEVICE
    group: int = 0


class EngineCleared(msgspec.Struct, frozen=True):
    """The whole cache was emptied."""


class EngineMoved(msgspec.Struct, frozen=True, kw_only=True):
    """A block went from one memory to another."""

    name: EngineHash
    before: CacheTier
    after: CacheTier
    group: int = 0


EngineEvent = EngineStored | EngineRemoved | EngineMoved | EngineCleared


class EventBatch(msgspec.Struct, frozen=True, kw_only=True):
    """One message. ``sequence`` grows by one a message and rank; ``skipped``: events not understood."""

    sequence: int
    rank: int
    events: list[EngineEvent]
    skipped: int = 0


def read_batch(frames: Sequence[bytes]) -> EventBatch:
    """Return a message's content. ``frames``: those of the message; the last two are number and payload.

    Raises ProtocolError for what is no batch at all; single events that cannot be read count as skipped.
    """
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise ProtocolError(f"a KV event message has {len(frames)} frames without a number before the last")
    try:
        content = msgspec.msgpack.decode(frames[-1])
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a KV event message cannot be read: {error}") from error
    if isinstance(content, Mapping):
        content = [content.get("ts"), content.get("events"), content.get("data_parallel_rank")]
    if not isinstance(content, list) or len(content) < 2 or not isinstance(content[1], list):
        raise ProtocolError("a KV event message holds no list of events")
    rank = content[2] if len(content) > 2 and isinstance(content[2], int) else 0
    events = [_event(raw) for raw in content[1]]
    known = [event for event in events if event is not None]
    number = int.from_bytes(frames[-2], "big", signed=True)
    return EventBatch(sequence=number, rank=rank, events=known, skipped=len(events) - len(known))


def _event(raw: object) -> EngineEvent | None:
    fields = _fields(raw)
    if fields is None:
        return None
    kind = fields.get("type")
    if kind == "AllBlocksCleared":
        return EngineCleared()
    hashes = fields.get("block_hashes")
    group = fields.get("group_idx")
    if not isinstance(hashes, list) or not all(isinstance(name, int | bytes) for name in hashes):
        return None
    tier = _TIERS.get(str(fields.get("medium") or "GPU").upper(), CacheTier.DISK)
    group = group if isinstance(group, int) else 0
    if kind == "BlockRemoved":
        return EngineRemoved(hashes=hashes, tier=tier, group=group)
    return _stored(fields, hashes, tier, group) if kind == "BlockStored" else None


def _stored(
    fields: Mapping[str, object], hashes: list[EngineHash], tier: CacheTier, group: int
) -> EngineStored | None:
    token_ids, block_tokens, parent = (
        fields.get(name) for name in ("token_ids", "block_size", "parent_block_hash")
    )
    if not isinstance(token_ids, list) or not all(isinstance(token, int) for token in token_ids):
        return None
    if not isinstance(block_tokens, int) or block_tokens < 1:
        return None
    if parent is not None and not isinstance(parent, int | bytes):
        return None
    kind = fields.get("kv_cache_spec_kind")
    return EngineStored(
        hashes=hashes,
        parent=parent,
        token_ids=token_ids,
        block_tokens=block_tokens,
        tier=tier,
        lora=fields.get("lora_id") is not None or fields.get("lora_name") is not None,
        keys=_keys(fields.get("extra_keys")) or _salt(fields),
        group=group,
        full_attention=kind is None or "full" in str(kind) or "mla" in str(kind),
    )


def _keys(raw: object) -> list[tuple[object, ...]]:
    if not isinstance(raw, list):
        return []
    return [tuple(entry) if isinstance(entry, list) else () for entry in raw]


def _salt(fields: Mapping[str, object]) -> list[tuple[object, ...]]:
    """SGLang tells the salt of each event's blocks; it is at the head of the prefix that it belongs."""
    salt = fields.get("cache_salt")
    return [(salt,)] if salt and fields.get("parent_block_hash") is None else []


def _fields(raw: object) -> Mapping[str, object] | None:
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, list) and raw and isinstance(raw[0], str):
        return {"type": raw[0], **dict(zip(_FIELDS.get(raw[0], ()), raw[1:], strict=False))}
    return None
