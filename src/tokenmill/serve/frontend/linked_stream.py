"""What a sequence holds of a worker: a stream that is counted, a watch for its loss, or nothing any more.

Exists so that each is told its end exactly once, or never after it was cancelled. It must not know
connections or what is said on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tokenmill.errors import TokenmillError, WorkerLost
from tokenmill.protocol.calls import Call
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import Item
from tokenmill.serve.fabric.streams import ClientStream

OnItem = Callable[[Item], None]
OnEnd = Callable[[TokenmillError | None], None]


class LinkedStream:
    """A stream that is counted in its worker's load until it ends or is cancelled.

    ``on_over`` is called once either way, before ``on_end``.
    """

    __slots__ = ("_on_end", "_on_over", "_over", "stream")

    def __init__(self, on_over: Callable[[], None], on_end: OnEnd) -> None:
        self.stream: ClientStream[Call, Item] | None = None
        self._on_over = on_over
        self._on_end = on_end
        self._over = False

    def ended(self, error: TokenmillError | None) -> None:
        """The connection: the stream is over."""
        if self._over:
            return
        self._over = True
        self._on_over()
        self._on_end(error)

    def cancel(self) -> None:
        """Stop it; no callback is called from now on."""
        if self._over:
            return
        self._over = True
        if self.stream is not None:
            self.stream.cancel()
        self._on_over()

    def pause(self) -> None:
        """Ask for no more until ``resume``."""
        if self.stream is not None:
            self.stream.pause()

    def resume(self) -> None:
        """Take more again."""
        if self.stream is not None:
            self.stream.resume()


class LossWatch:
    """Tells once when its worker is lost. ``on_over`` is called once when it is over, told or cancelled."""

    __slots__ = ("_on_end", "_on_over", "_over")

    def __init__(self, on_over: Callable[[LossWatch], None], on_end: OnEnd) -> None:
        self._on_over = on_over
        self._on_end = on_end
        self._over = False

    def ended(self, error: TokenmillError) -> None:
        """The connection: the worker is lost."""
        if not self._over:
            self.cancel()
            self._on_end(error)

    def cancel(self) -> None:
        """No callback is called from now on."""
        if not self._over:
            self._over = True
            self._on_over(self)

    def pause(self) -> None:
        """Nothing comes anyway."""

    def resume(self) -> None:
        """Nothing comes anyway."""


class LostStream:
    """Stands for a stream to a worker that is no longer there: it ends at once."""

    def __init__(self, worker: WorkerId, on_end: OnEnd) -> None:
        lost = WorkerLost(f"worker {worker} is gone")
        self._handle = asyncio.get_running_loop().call_soon(on_end, lost)

    def cancel(self) -> None:
        """No callback is called from now on."""
        self._handle.cancel()

    def pause(self) -> None:
        """Nothing comes anyway."""

    def resume(self) -> None:
        """Nothing comes anyway."""
