"""The double's KV blocks: what is in use, what can be used again, and the events about it. No I/O.

A block's name is the state after its last token, so that equal prefixes have equal names.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import msgspec

from tokenmill.testing.trtllm_double.tokens import after


class Block(msgspec.Struct):
    """A block that can be used again."""

    name: int
    parent: int | None
    tokens: list[int]
    users: int = 0
    children: int = 0


class Lease(msgspec.Struct):
    """What a sequence holds: blocks of others, and room of its own."""

    shared: list[int]
    own: int
    reused_tokens: int


class BlockCache:
    """``take`` room for a sequence, ``store`` what it has computed, ``give_back`` the room.

    ``capacity``, ``block_tokens``: blocks, tokens in one. ``window``: tokens that layers look back. Events
    are bounded by ``most_events``: above it the oldest are lost, as in the engine.
    """

    def __init__(
        self, capacity: int, block_tokens: int, window: int, *, most_events: int, reuse: bool
    ) -> None:
        self.capacity = capacity
        self.block_tokens = block_tokens
        self.reused = self.missed = 0
        self.events_lost_every = 0
        self._reuse = reuse
        self._window = window
        self._own = 0
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._events: deque[dict[str, object]] = deque(maxlen=most_events or None)
        self._tells = most_events > 0
        self._next_event = 0
        self._tell({"type": "created", "num_blocks_per_cache_level": [capacity, 0]})

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self._own + sum(1 for block in self._blocks.values() if block.users)

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens could ever be taken."""
        return self._count(tokens) <= self.capacity

    def take(self, prompt: list[int], tokens: int) -> Lease | None:
        """Return room for a sequence that may grow to ``tokens``; None: there is none now."""
        shared = self._found(prompt)
        own = self._count(tokens) - len(shared)
        for name in shared:
            self._blocks[name].users += 1
            self._blocks.move_to_end(name)
        while self.capacity - self._own - len(self._blocks) < own:
            if not self._evict_one():
                for name in shared:
                    self._blocks[name].users -= 1
                return None
        self._own += own
        self.reused += len(shared)
        self.missed += len(prompt) // self.block_tokens - len(shared)
        return Lease(shared, own, len(shared) * self.block_tokens)

    def store(self, lease: Lease, tokens: list[int]) -> None:
        """Make the full blocks of these tokens usable again; they are the lease's."""
        if not self._reuse:
            return
        size = self.block_tokens
        parent: int | None = None
        state = 0
        fresh: list[Block] = []
        first_parent: int | None = None
        for start in range(0, len(tokens) - size + 1, size):
            piece = tokens[start : start + size]
            state = after(state, piece)
            if state not in self._blocks and lease.own:
                lease.own -= 1
                self._own -= 1
                block = Block(state, parent, piece, users=1)
                self._blocks[state] = block
                lease.shared.append(state)
                if parent is not None:
                    self._blocks[parent].children += 1
                if not fresh:
                    first_parent = parent
                fresh.append(block)
            parent = state
        partial = tokens[len(tokens) - len(tokens) % size :]
        if fresh:
            self._tell_stored(first_parent, fresh, partial, state)

    def give_back(self, lease: Lease) -> None:
        """The sequence is over."""
        self._own -= lease.own
        lease.own = 0
        for name in lease.shared:
            self._blocks[name].users -= 1
        lease.shared = []

    def drain_events(self) -> list[dict[str, object]]:
        """Return the events since the last call; nobody gets them again."""
        events = list(self._events)
        self._events.clear()
        return events

    def _found(self, prompt: list[int]) -> list[int]:
        """Blocks of the prompt's beginning; at least one token is left to compute."""
        found: list[int] = []
        state = 0
        size = self.block_tokens
        for start in range(0, len(prompt) - size, size):
            state = after(state, prompt[start : start + size])
            if state not in self._blocks:
                break
            found.append(state)
        return found

    def _evict_one(self) -> bool:
        for name, block in self._blocks.items():
            if not block.users and not block.children:
                del self._blocks[name]
                if block.parent is not None:
                    self._blocks[block.parent].children -= 1
                self._tell({"type": "removed", "block_hashes": [name]})
                return True
        return False

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _tell_stored(self, parent: int | None, blocks: list[Block], partial: list[int], state: int) -> None:
        """Tell new blocks; a last one that is not full is told too, and taken back at once."""
        told = [_stored_block(block.name, block.tokens) for block in blocks]
        if partial:
            told.append(_stored_block(after(state, partial), partial))
        self._tell({"type": "stored", "parent_hash": parent, "blocks": told})
        if partial:
            self._tell({"type": "removed", "block_hashes": [after(state, partial)]})

    def _tell(self, data: dict[str, object]) -> None:
        if not self._tells:
            return
        number = self._next_event
        self._next_event += 1
        if self.events_lost_every and number % self.events_lost_every == self.events_lost_every - 1:
            return
        self._events.append({"event_id": number, "data": data, "window_size": self._window})


def _stored_block(name: int, tokens: list[int]) -> dict[str, object]:
    return {
        "type": "stored_block",
        "block_hash": name,
        "tokens": [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens],
        "cache_level": 0,
        "priority": 35,
    }
