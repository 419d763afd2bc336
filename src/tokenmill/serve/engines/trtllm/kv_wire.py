"""TensorRT-LLM's KV events as ``/kv_cache_events`` tells them, to the words that all engines' events have. No
I/O.

Read against ``KVCacheEventSerializer`` of the public source. Lenient: what it does not know it skips. It must
not know who asks or what the blocks are used for.
"""

from __future__ import annotations

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.kv_events import CacheTier
from tokenmill.serve.engines.kv_events.wire import (
    EngineEvent,
    EngineHash,
    EngineMoved,
    EngineRemoved,
    EngineStored,
)

_Hash = int | str
"""Numbers in most versions; some algorithms of newer ones give text."""


class _Token(msgspec.Struct):
    token_id: int
    token_extra_id: int = 0


class _Block(msgspec.Struct):
    block_hash: _Hash
    tokens: list[_Token]
    cache_level: int = 0
    cache_salt: str | None = None
    lora_id: int | None = None
    mm_keys: list[object] = []


class _Difference(msgspec.Struct):
    new_value: int
    old_value: int


class _Data(msgspec.Struct):
    type: str
    num_blocks_per_cache_level: list[int] = []
    parent_hash: _Hash | None = None
    blocks: list[_Block] = []
    block_hashes: list[_Hash] = []
    block_hash: _Hash | None = None
    cache_level: _Difference | None = None


class _Event(msgspec.Struct):
    event_id: int
    data: _Data
    window_size: int | None = None
    attention_dp_rank: int | None = None


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """One event. ``number`` grows by one an event and rank; ``window``: tokens that its blocks' layers look
    back, 0: all. ``blocks``: of a cache that was created, on the device, 0 for another event.
    """

    number: int
    rank: int
    window: int
    events: list[EngineEvent]
    blocks: int = 0


class EventReader:
    """Reads answers of one server. Remembers where each block lies, since an eviction does not tell: some 100
    bytes a cached block.

    ``block_tokens``: of a full block; 0: as the first one has.
    """

    def __init__(self, block_tokens: int = 0) -> None:
        self.block_tokens = block_tokens
        self._levels: dict[tuple[int, int, EngineHash], int] = {}
        self._window = 0  # the widest: its blocks hold the KV of all tokens before

    def read(self, payload: bytes) -> list[Note]:
        """Return an answer's events in order. Raises ProtocolError for what is no list; single events that
        cannot be read are told as empty ones, so that their numbers do not look lost."""
        try:
            raw = msgspec.json.decode(payload, type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            raise ProtocolError(f"/kv_cache_events cannot be read: {error}") from error
        notes = [self._note(entry) for entry in raw]
        return [note for note in notes if note is not None]

    def forget(self, rank: int) -> None:
        """Events of a rank were lost: where its blocks lie is not known any more."""
        self._levels = {key: level for key, level in self._levels.items() if key[0] != rank}

    def _note(self, raw: msgspec.Raw) -> Note | None:
        try:
            event = msgspec.json.decode(raw, type=_Event)
        except msgspec.DecodeError:
            return _numbered(raw)
        rank, window, data = event.attention_dp_rank or 0, event.window_size or 0, event.data
        self._window = max(self._window, window)
        words: list[EngineEvent] = []
        if data.type == "stored":
            words = self._stored(rank, window, data)
        elif data.type == "removed":
            words = self._removed(rank, window, data.block_hashes)
        elif data.type == "updated" and data.block_hash is not None and data.cache_level is not None:
            words = self._moved(rank, window, _name(data.block_hash), data.cache_level.new_value)
        sizes = data.num_blocks_per_cache_level if data.type == "created" else []
        blocks = sizes[0] if sizes and window == self._window else 0
        return Note(number=event.event_id, rank=rank, window=window, events=words, blocks=blocks)

    def _stored(self, rank: int, window: int, data: _Data) -> list[EngineEvent]:
        """One word for each run of full blocks in one place. A block that is not full has no name of ours,
        and none follows it."""
        words: list[EngineEvent] = []
        parent = None if data.parent_hash is None else _name(data.parent_hash)
        run: list[_Block] = []
        for block in data.blocks:
            self.block_tokens = self.block_tokens or len(block.tokens)
            if len(block.tokens) != self.block_tokens:
                break
            self._levels[rank, window, _name(block.block_hash)] = block.cache_level
            if run and block.cache_level != run[-1].cache_level:
                words.append(self._word(window, parent, run))
                parent, run = _name(run[-1].block_hash), []
            run.append(block)
        if run:
            words.append(self._word(window, parent, run))
        return words

    def _word(self, window: int, parent: EngineHash | None, run: list[_Block]) -> EngineStored:
        strange = any(token.token_extra_id for block in run for token in block.tokens)
        return EngineStored(
            hashes=[_name(block.block_hash) for block in run],
            parent=parent,
            token_ids=[token.token_id for block in run for token in block.tokens],
            block_tokens=self.block_tokens,
            tier=_tier(run[0].cache_level),
            lora=strange or any(block.lora_id is not None or block.mm_keys for block in run),
            keys=[(block.cache_salt,) if block.cache_salt else () for block in run],
            group=window,
            full_attention=window == self._window,
        )

    def _removed(self, rank: int, window: int, hashes: list[_Hash]) -> list[EngineEvent]:
        by_level: dict[int, list[EngineHash]] = {}
        for name in map(_name, hashes):
            level = self._levels.pop((rank, window, name), None)
            if level is not None:
                by_level.setdefault(level, []).append(name)
        return [
            EngineRemoved(hashes=names, tier=_tier(level), group=window) for level, names in by_level.items()
        ]

    def _moved(self, rank: int, window: int, name: EngineHash, level: int) -> list[EngineEvent]:
        old = self._levels.get((rank, window, name))
        if old is None or _tier(old) == _tier(level):
            return []
        self._levels[rank, window, name] = level
        return [EngineMoved(name=name, before=_tier(old), after=_tier(level), group=window)]


def _name(told: _Hash) -> EngineHash:
    return told.encode() if isinstance(told, str) else told


def _tier(level: int) -> CacheTier:
    return CacheTier.DEVICE if level == 0 else CacheTier.HOST


def _numbered(raw: msgspec.Raw) -> Note | None:
    """The number of an event that cannot be read, if it has one."""
    try:
        content = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("event_id"), int):
        return None
    rank = content.get("attention_dp_rank")
    return Note(number=content["event_id"], rank=rank if isinstance(rank, int) else 0, window=0, events=[])
