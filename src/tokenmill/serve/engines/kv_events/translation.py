"""An engine's names of KV blocks to ours, by way of the token ids.

Exists because an engine's block hashes mean nothing outside it, while ours are the same in every process of
a factory. It must not know sockets or who asks. Blocks whose meaning is not in the token ids alone (LoRA,
media) and blocks of sliding windows are left out: they are missed hits, never wrong ones.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from xxhash import xxh3_64

from tokenmill.protocol.block_hashes import pack_tokens, prefix_seed
from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvent
from tokenmill.serve.engines.kv_events.wire import (
    EngineCleared,
    EngineEvent,
    EngineHash,
    EngineMoved,
    EngineRemoved,
    EngineStored,
)

KEPT_STATES = 4096
"""Hash states kept to go on from, at 600 bytes each; a chain that grows from another end is hashed anew."""


class _Block(msgspec.Struct, gc=False):
    """A block that vLLM has. ``data``: its token ids as they are hashed; ``name``: ours."""

    parent: EngineHash | None
    data: bytes
    seed: int
    name: int
    tiers: int
    """One bit a tier that has it."""


class BlockTranslation:
    """All blocks of one engine's cache. Memory: 4 bytes a token and some 250 bytes a block."""

    def __init__(self) -> None:
        self._blocks: dict[EngineHash, _Block] = {}
        self._states: OrderedDict[EngineHash, xxh3_64] = OrderedDict()
        # A hybrid model names the same tokens once a group; the first group of full attention stands for all.
        self._group: int | None = None
        self.untranslated = 0
        """Stored blocks that were left out so far."""

    def __len__(self) -> int:
        return len(self._blocks)

    def apply(self, events: list[EngineEvent]) -> list[KvEvent]:
        """Return the events in our words."""
        words: list[KvEvent] = []
        for event in events:
            if isinstance(event, EngineStored):
                self._stored(event, words)
            elif isinstance(event, EngineRemoved):
                self._removed(event, words)
            elif isinstance(event, EngineMoved):
                self._moved(event, words)
            elif isinstance(event, EngineCleared):
                self.clear()
                words.append(CacheCleared())
        return words

    def clear(self) -> None:
        """Forget everything: the cache was emptied, or what is in it is no longer known."""
        self._blocks.clear()
        self._states.clear()

    def _stored(self, event: EngineStored, words: list[KvEvent]) -> None:
        if event.full_attention and self._group is None:
            self._group = event.group
        if event.group != self._group or not event.hashes:
            return
        state = self._readable(event)
        if state is None:
            self.untranslated += len(event.hashes)
            return
        size, parent, seed = event.block_tokens, event.parent, state.seed
        above = None if parent is None else BlockHash(self._blocks[parent].name)
        names: list[BlockHash] = []
        for index, engine_hash in enumerate(event.hashes):
            data = pack_tokens(event.token_ids[index * size : (index + 1) * size])
            state.update(data)
            block = self._blocks.setdefault(engine_hash, _Block(parent, data, seed, state.intdigest(), 0))
            block.tiers |= 1 << event.tier
            names.append(BlockHash(block.name))
            parent = engine_hash
        self._keep(event.hashes[-1], state)
        words.append(BlocksStored(names, above, event.tier))

    def _readable(self, event: EngineStored) -> xxh3_64 | None:
        """Return a hash state that has read all before the event's blocks; None: they get no name of ours."""
        if event.lora or len(event.token_ids) != len(event.hashes) * event.block_tokens:
            return None
        if event.parent is not None and event.parent not in self._blocks:
            return None
        seed = self._seed(event)
        return None if seed is None else self._state(event.parent, seed)

    def _removed(self, event: EngineRemoved, words: list[KvEvent]) -> None:
        if event.group != self._group:
            return
        bit = 1 << event.tier
        names: list[BlockHash] = []
        for engine_hash in event.hashes:
            block = self._blocks.get(engine_hash)
            if block is None or not block.tiers & bit:
                continue
            block.tiers &= ~bit
            names.append(BlockHash(block.name))
            if not block.tiers:
                del self._blocks[engine_hash]
                self._states.pop(engine_hash, None)
        if names:
            words.append(BlocksRemoved(names, CacheTier(event.tier)))

    def _moved(self, event: EngineMoved, words: list[KvEvent]) -> None:
        block = self._blocks.get(event.name)
        if event.group != self._group or block is None or not block.tiers & 1 << event.before:
            return
        block.tiers = block.tiers & ~(1 << event.before) | 1 << event.after
        above = self._blocks.get(block.parent) if block.parent is not None else None
        if above is not None or block.parent is None:
            parent = None if above is None else BlockHash(above.name)
            words.append(BlocksStored([BlockHash(block.name)], parent, event.after))
        words.append(BlocksRemoved([BlockHash(block.name)], event.before))

    def _seed(self, event: EngineStored) -> int | None:
        """Return the seed of our names; None where more than a cache salt makes the blocks' meaning."""
        keys = [key for keys in event.keys for key in keys]
        if event.parent is not None:
            return None if keys else self._blocks[event.parent].seed
        if any(event.keys[1:]) or len(keys) > 1 or not all(isinstance(key, str) for key in keys):
            return None
        return prefix_seed(str(keys[0])) if keys else prefix_seed()

    def _state(self, engine_hash: EngineHash | None, seed: int) -> xxh3_64 | None:
        """Return a hash state that has read everything up to and with a block; None: not all is known."""
        if engine_hash is None:
            return xxh3_64(seed=seed)
        kept = self._states.get(engine_hash)
        if kept is not None:
            return kept.copy()
        pieces: list[bytes] = []
        at: EngineHash | None = engine_hash
        while at is not None:
            block = self._blocks.get(at)
            if block is None:
                return None
            pieces.append(block.data)
            at = block.parent
        return xxh3_64(b"".join(reversed(pieces)), seed=seed)

    def _keep(self, engine_hash: EngineHash, state: xxh3_64) -> None:
        self._states[engine_hash] = state
        self._states.move_to_end(engine_hash)
        if len(self._states) > KEPT_STATES:
            self._states.popitem(last=False)
