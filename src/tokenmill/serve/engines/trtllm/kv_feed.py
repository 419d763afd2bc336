"""Reads KV events from ``trtllm-serve`` by asking for them again and again, and tells them in our words.

An answer takes the events out of the server, so that only one reader gets them; some versions hold an answer
back until nothing has happened for two seconds. It must not know who listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tokenmill.errors import TokenmillError
from tokenmill.protocol.kv_events import CacheCleared, KvEvent
from tokenmill.serve.engines.kv_events.translation import BlockTranslation
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.trtllm.kv_wire import EventReader, Note

_log = structlog.get_logger(__name__)

PATH = "/kv_cache_events"

INTERVAL_S = 0.1
"""Between an answer and the next question: a router may be so far behind the cache."""

PATIENCE_S = 60.0
"""For one answer. What a broken answer held is lost, which its successor's numbers show."""


class EventFeed:
    """One server's events. ``first`` is called once and before ``run``; ``on_events`` on the loop's thread.

    ``blocks``: KV blocks on the device, 0 as long as the server has not told.
    """

    def __init__(
        self, client: HttpClient, on_events: Callable[[list[KvEvent]], None], *, block_tokens: int = 0
    ) -> None:
        self.resets = 0
        """How often events were lost for good."""
        self.blocks = 0
        self._client = client
        self._on_events = on_events
        self._reader = EventReader(block_tokens)
        self._translations: dict[int, BlockTranslation] = {}
        self._expected: dict[int, int] = {}

    @property
    def block_tokens(self) -> int:
        """Tokens in a block; 0 as long as none was stored."""
        return self._reader.block_tokens

    async def first(self) -> bool:
        """Ask once; returns whether the server tells events. Cancelled: what it told is lost."""
        try:
            return await self._ask()
        except TokenmillError as error:
            _log.debug("KV events cannot be read", error=error.message)
            return False

    async def run(self) -> None:
        """Ask for ever. Cancelled: nothing more is told."""
        while True:
            try:
                await self._ask()
            except TokenmillError as error:
                _log.debug("KV events cannot be read", error=error.message)
            await asyncio.sleep(INTERVAL_S)

    async def _ask(self) -> bool:
        reply = await self._client.request("POST", PATH, timeout_s=PATIENCE_S)
        if reply.status != 200:
            return False
        words: list[KvEvent] = []
        for note in self._reader.read(reply.body):
            self._apply(note, words)
        if words:
            self._on_events(words)
        return True

    def _apply(self, note: Note, words: list[KvEvent]) -> None:
        translation = self._translations.setdefault(note.rank, BlockTranslation())
        expected = self._expected.get(note.rank)
        self._expected[note.rank] = note.number + 1
        if expected is not None and note.number != expected:
            self._reset(note, expected, words)
        self.blocks += note.blocks
        words += translation.apply(note.events)

    def _reset(self, note: Note, expected: int, words: list[KvEvent]) -> None:
        """Events are missing. The index of this worker is one for all ranks, so that all start anew."""
        self.resets += 1
        _log.warning("KV events were lost", expected=expected, got=note.number, resets=self.resets)
        for rank, translation in self._translations.items():
            translation.clear()
            self._reader.forget(rank)
        words.append(CacheCleared())
