"""An answer that leaves as server-sent events: what waits, what is written when, how it ends.

Exists so that all answers that stream share their writes, ends and errors. It must not know what an event
says.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from tokenmill.errors import TokenmillError
from tokenmill.serve.frontend.http.messages import StreamSink
from tokenmill.serve.frontend.openai.chunks import event
from tokenmill.serve.frontend.openai.errors import error_json, status_of
from tokenmill.serve.frontend.write_batch import WriteBatch


class Controls(Protocol):
    """What an answer may do to the sequences behind it."""

    def ended(self, status: str) -> None:
        """The answer is over; sequences still running are cancelled. Called once."""
        ...

    def pause(self) -> None:
        """The reader is behind."""
        ...

    def resume(self) -> None:
        """The reader has caught up."""
        ...


class EventStream:
    """``StreamSource`` of events. Until it is attached, bytes wait in ``_pending``: what comes between the
    first token and the next iteration of the loop; after that, what comes so soon after a write that it
    shares the next one."""

    def __init__(self, controls: Controls, batch: WriteBatch | None = None) -> None:
        self._batch = batch or WriteBatch(0.0)
        self._epoch = -1
        self._controls = controls
        self._sink: StreamSink | None = None
        self._pending: list[bytes] = []
        self._over = False
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def started(self) -> None:
        """Return when there is something to send. Raises what went wrong before. Cancelled: as ``gone``."""
        try:
            await self._started
        except asyncio.CancelledError:
            self.gone()
            raise

    def sequence_failed(self, _index: int, error: TokenmillError, /) -> None:
        """End with an error: as an HTTP status if nothing was sent, else as an event."""
        if self._over:
            return
        if not self._started.done():
            self._over = True
            self._started.set_exception(error)
            self._controls.ended(str(status_of(error)))
            return
        self._finish(str(status_of(error)), event(error_json(error)))

    # StreamSource --------------------------------------------------------------------------------------

    def attach(self, sink: StreamSink) -> None:
        """Send what waited, then each chunk as it comes."""
        self._sink = sink
        if self._over:
            sink.end(self._taken())
        else:
            self.flush()

    def pause(self) -> None:
        """The client reads too slowly."""
        self._controls.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._controls.resume()

    def gone(self) -> None:
        """The client left."""
        self._pending.clear()
        if not self._over:
            self._over = True
            self._controls.ended("499")

    # Batched -------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what waits; nothing where it is half a character, which has no text yet."""
        data = self._taken()
        if data and self._sink is not None:
            self._epoch = self._batch.wrote()
            self._sink.write(data)

    # For those who make events -------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        """Write, together with what comes until the epoch ends where this stream has written in it."""
        batch = self._batch
        if self._sink is None:
            self._pending.append(data)
            if not self._started.done():
                self._started.set_result(None)
        elif self._epoch == batch.epoch:
            if not self._pending:
                batch.later(self)
            self._pending.append(data)
        else:
            self._epoch = batch.wrote()
            self._sink.write(data)

    def _taken(self) -> bytes:
        """Return what waits, which is then sent."""
        pending = self._pending
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        return data

    def _finish(self, status: str, last: bytes) -> None:
        """End with ``last``, behind what still waits."""
        self._over = True
        self._controls.ended(status)
        if self._sink is None:
            self._write(last)
        else:
            self._sink.end(self._taken() + last)
