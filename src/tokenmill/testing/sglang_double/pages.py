"""The double's KV cache: pages, shared prefixes, eviction, and the events that tell of them. No I/O."""

from __future__ import annotations

from array import array
from collections import OrderedDict

import msgspec
from xxhash import xxh3_64_intdigest


class Page(msgspec.Struct):
    """A full page. ``users``: sequences that hold it."""

    parent: int | None
    tokens: list[int]
    salt: str
    users: int = 0


class Pages:
    """``take`` a prefix, ``grow`` by tokens, ``release``. Page names are signed 64-bit numbers, as SGLang's.

    ``events``: what happened since they were last taken away, as maps with a type.
    """

    def __init__(self, capacity: int, page_size: int, *, keep: bool) -> None:
        self.events: list[dict[str, object]] = []
        self._capacity = capacity
        self._size = page_size
        self._keep = keep
        self._pages: OrderedDict[int, Page] = OrderedDict()  # least recently used first
        self._open = 0  # pages that are not full yet

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return self._open + sum(page.users > 0 for page in self._pages.values())

    def matched(self, ids: list[int], salt: str) -> list[int]:
        """Return the cached pages at the head of ``ids``; the last token is always computed."""
        names: list[int] = []
        parent: int | None = None
        for start in range(0, len(ids) - self._size, self._size):
            name = _name(parent, ids[start : start + self._size], salt)
            if name not in self._pages:
                break
            names.append(name)
            parent = name
        return names

    def has_room(self, tokens: int, names: list[int]) -> bool:
        """Whether a sequence of so many tokens fits beside those that run; ``names``: it has already."""
        needed = -(-tokens // self._size) - len(names)
        idle = sum(page.users == 0 for name, page in self._pages.items() if name not in names)
        return needed <= self._capacity - len(self._pages) - self._open + idle

    def fits_alone(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can ever run."""
        return -(-tokens // self._size) <= self._capacity

    def hold(self, names: list[int]) -> None:
        """A sequence uses these pages; it also opens the page behind them."""
        for name in names:
            self._pages[name].users += 1
        self._open += 1
        self._make_room()

    def fill(self, names: list[int], ids: list[int], salt: str) -> bool:
        """Make pages of what of ``ids`` lies behind ``names`` and is full. False: there is no room."""
        while len(ids) >= (len(names) + 1) * self._size:
            start = len(names) * self._size
            tokens = ids[start : start + self._size]
            parent = names[-1] if names else None
            name = _name(parent, tokens, salt)
            known = self._pages.get(name)
            if known is None:
                if not self._make_room(1):
                    return False
                known = self._pages[name] = Page(parent, tokens, salt)
                self._tell_stored(name, known)
            known.users += 1
            names.append(name)
        return True

    def release(self, names: list[int]) -> None:
        """A sequence is over; its pages stay until somebody needs the room."""
        self._open -= 1
        for name in reversed(names):
            page = self._pages[name]
            page.users -= 1
            self._pages.move_to_end(name)
        if not self._keep:
            self._evict(len(self._pages))

    def clear(self) -> None:
        """Forget everything that nobody holds."""
        self._pages = OrderedDict((name, page) for name, page in self._pages.items() if page.users)
        self.events.append({"type": "AllBlocksCleared"})

    def _make_room(self, pages: int = 0) -> bool:
        over = len(self._pages) + self._open + pages - self._capacity
        return over <= 0 or self._evict(over)

    def _evict(self, count: int) -> bool:
        victims = [name for name, page in self._pages.items() if page.users == 0][:count]
        for name in victims:
            del self._pages[name]
        if victims and self._keep:
            self.events.append({"type": "BlockRemoved", "block_hashes": victims, "medium": "GPU"})
        return len(victims) == count

    def _tell_stored(self, name: int, page: Page) -> None:
        if self._keep:
            event: dict[str, object] = {
                "type": "BlockStored",
                "block_hashes": [name],
                "parent_block_hash": page.parent,
                "token_ids": page.tokens,
                "block_size": self._size,
                "lora_id": None,
                "medium": "GPU",
            }
            if page.salt:
                event["cache_salt"] = page.salt.partition("\0")[0]
            self.events.append(event)


def _name(parent: int | None, tokens: list[int], salt: str) -> int:
    data = array("q", [parent or 0, *tokens]).tobytes() + salt.encode()
    return xxh3_64_intdigest(data) - 2**63
