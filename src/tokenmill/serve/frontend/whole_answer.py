"""An answer that comes whole: who waits for it, how it ends.

Exists so that all answers that do not stream share their ends and errors. It must not know what an answer is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from tokenmill.errors import TokenmillError
from tokenmill.serve.frontend.openai.errors import status_of

_Answer = TypeVar("_Answer")


class WholeAnswer(Generic[_Answer]):
    """``result`` waits for it. ``on_end`` is told the HTTP status, "499" where the client has left."""

    def __init__(self, on_end: Callable[[str], None]) -> None:
        self._on_end = on_end
        self._done: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()

    async def result(self) -> _Answer:
        """Return the answer, or raise what went wrong. Cancelled: the sequences are too."""
        try:
            return await self._done
        except asyncio.CancelledError:
            if self._done.done() and not self._done.cancelled():
                self._done.exception()  # seen: it failed while the client was leaving
            self._on_end("499")
            raise

    def sequence_failed(self, _index: int, error: TokenmillError, /) -> None:
        """The first failure ends the answer."""
        if not self._done.done():
            self._done.set_exception(error)
            self._on_end(str(status_of(error)))

    def _finish(self, answer: _Answer) -> None:
        """The answer is there, unless it has ended before."""
        if not self._done.done():
            self._done.set_result(answer)
            self._on_end("200")
