"""Jobs in threads: stalls, failures, and that a cancelled one has really stopped."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenmill.serve.transfer.jobs import Job, run_job


class Steps(Job):
    """Moves a byte every millisecond until it is told to stop, or ``end`` bytes are moved."""

    def __init__(self, end=None, *, slow_to_stop_s=0.0):
        super().__init__()
        self.end = end
        self.slow_to_stop_s = slow_to_stop_s
        self.began = threading.Event()
        self.left = False

    def run(self):
        self.began.set()
        while not self.stopped and self.moved_bytes != self.end:
            self.moved_bytes += 1
            time.sleep(0.001)
        if self.stopped:
            time.sleep(self.slow_to_stop_s)
        self.left = True


class Hangs(Job):
    def __init__(self):
        super().__init__()
        self.wake = threading.Event()

    def run(self):
        self.wake.wait()

    def stop(self):
        super().stop()
        self.wake.set()


class Fails(Job):
    def run(self):
        raise ConnectionError("gone")


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_progress_is_reported_and_the_end_is_seen(pool):
    beats = []
    job = Steps(150)
    await run_job(pool, job, stall_s=5, on_progress=lambda: beats.append(job.moved_bytes))
    assert job.left
    assert beats == sorted(beats)
    assert beats


async def test_a_failure_comes_through(pool):
    with pytest.raises(ConnectionError):
        await run_job(pool, Fails(), stall_s=5, on_progress=lambda: None)


async def test_a_stall_stops_the_job(pool):
    job = Hangs()
    with pytest.raises(TimeoutError):
        await run_job(pool, job, stall_s=0.05, on_progress=lambda: None)
    assert job.stopped


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_job_has_left_its_thread_before_the_cancellation_is_out(pool, times):
    job = Steps(slow_to_stop_s=0.05)
    task = asyncio.create_task(run_job(pool, job, stall_s=5, on_progress=lambda: None))
    await asyncio.to_thread(job.began.wait)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.left


async def test_a_job_that_waits_for_a_thread_never_begins_once_cancelled(pool):
    first, second = Steps(), Steps()
    running = asyncio.create_task(run_job(pool, first, stall_s=5, on_progress=lambda: None))
    await asyncio.to_thread(first.began.wait)
    waiting = asyncio.create_task(run_job(pool, second, stall_s=5, on_progress=lambda: None))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.stop()
    await running
    assert not second.began.is_set()
