"""Scripted workers that stand still, as a stopped process does: connections open, nothing said or heard."""

from __future__ import annotations

from tokenmill.testing.scripted_worker import ScriptedWorker


class Frozen:
    """A worker that was frozen; it cannot be connected to any more either."""

    def __init__(self, worker: ScriptedWorker) -> None:
        for timer in worker._timers:
            timer.cancel()
        worker._server._listener.stop()
        self._links = [connection.link for connection in worker._server._connections]
        for link in self._links:
            link._transport.pause_reading()

    def thaw(self) -> None:
        """Hear what was said meanwhile, over the connections that are left."""
        for link in self._links:
            if not link.closed:
                link._transport.resume_reading()
