"""Copying in threads that stop when told to, and are known to have stopped.

Blocks are reused as soon as a pull has ended, so a cancelled copy must not write one byte more: ``run_job``
lets nothing out, not even a cancellation, before the thread is done. It must not know sockets or leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

_WATCH_S = 0.05
"""How often a running job is looked at; it bounds how late a stall is seen, not how fast a job is."""


class Job:
    """Work for a thread. ``run`` adds to ``moved_bytes`` as it goes and ends soon after ``stop``."""

    def __init__(self) -> None:
        self.moved_bytes = 0
        self.stopped = False

    def run(self) -> None:
        """Do it, on a thread of the pool."""
        raise TypeError("a job needs a run of its own")

    def stop(self) -> None:
        """Make ``run`` end; called on the loop's thread, perhaps more than once."""
        self.stopped = True


async def run_job(
    pool: ThreadPoolExecutor,
    job: Job,
    *,
    stall_s: float,
    on_progress: Callable[[], None],
) -> None:
    """Run a job and return when it is done.

    ``on_progress`` is called now and then while bytes move. Raises what ``run`` raised, and TimeoutError when
    no byte moved for ``stall_s`` (waiting for a free thread included). Cancelled: the job has stopped, or
    never began, when the cancellation comes through.
    """
    handle = pool.submit(job.run)
    future = asyncio.wrap_future(handle)
    try:
        stalled = await _watch(future, job, stall_s, on_progress)
    except asyncio.CancelledError:
        job.stop()
        await _ended(handle, future)
        raise
    if stalled:
        job.stop()
        await _ended(handle, future)
        raise TimeoutError(f"no byte moved for {stall_s:g} s")
    future.result()


async def all_or_none(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all at once; when one fails, cancel the others and raise its error once they have ended.

    Cancelled: all have ended when the cancellation comes through.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for part in work:
                group.create_task(part)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _watch(
    future: asyncio.Future[None], job: Job, stall_s: float, on_progress: Callable[[], None]
) -> bool:
    """Wait for the end (False) or a stall (True)."""
    loop = asyncio.get_running_loop()
    moved, last_progress_s = 0, loop.time()
    while not future.done():
        await asyncio.wait((future,), timeout=min(_WATCH_S, stall_s))
        if job.moved_bytes != moved:
            moved, last_progress_s = job.moved_bytes, loop.time()
            on_progress()
        elif loop.time() - last_progress_s >= stall_s:
            return not future.done()
    return False


async def _ended(handle: Future[None], future: asyncio.Future[None]) -> None:
    """Wait until a stopped job has left its thread, whatever happens to us meanwhile."""
    handle.cancel()  # takes it out of the queue; once it runs only its end counts
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            cancelled = True
    if not future.cancelled():
        future.exception()  # seen: it failed because it was stopped
    if cancelled:
        raise asyncio.CancelledError
