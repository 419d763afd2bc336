"""The workers' side of the connector: a thread of its own that lends out and fetches blocks.

The engine's thread gives orders and asks what became of them, and never waits. It must not know vLLM or
torch, nor why a block is moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from tokenmill.errors import HandoffFailed, TokenmillError
from tokenmill.serve.engines.vllm.connector.orders import Give, Orders, Pull, Take
from tokenmill.serve.transfer.base import KvMemory
from tokenmill.serve.transfer.control import ExportUnknown, Ticket
from tokenmill.serve.transfer.jobs import all_or_none
from tokenmill.serve.transfer.transport import OpenExport, StreamTransport

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
OUTRUN_S = 1.0
"""An offer may be quicker than the orders of the step it belongs to: the giver's thread takes what comes over
a connection that it is just reading before what was posted, and one of several workers may be behind."""
ASK_AGAIN_S = 0.005
IDLE_TIMEOUT_S = 10.0
"""A giver that says nothing for so long is taken for dead."""


@dataclass(slots=True)
class Results:
    """What has ended since the last look, by request. ``failed`` are among ``received`` too."""

    sent: set[str] = field(default_factory=set)
    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Given:
    """``left``: groups still lent out. ``finished``: vLLM keeps the blocks until we say they are back."""

    left: int
    exports: list[OpenExport] = field(default_factory=list)
    finished: bool = False


class Mover:
    """``start`` it, then call the rest from one thread. Bounded by the requests of the engine."""

    def __init__(
        self,
        memory: KvMemory,
        transport: StreamTransport,
        *,
        rank: int,
        lease_s: float,
        tell: Callable[[str], None],
    ) -> None:
        self._memory = memory
        self._transport = transport
        self._rank = rank
        self._lease_s = lease_s
        self._tell = tell
        self._given: dict[str, _Given] = {}
        self._ended: deque[tuple[Take, str]] = deque()  # appended by the thread, taken by vLLM's
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Ticket:
        """Open the transport; return a blank ticket of the memory. Raises ConfigError, TimeoutError."""
        started: Future[Ticket] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="tokenmill-kv", daemon=True
        )
        self._thread.start()
        return started.result(START_TIMEOUT_S)

    def stop(self) -> None:
        """Withdraw what is lent out, end what is fetched, close everything; again is harmless."""
        if self._loop is None or self._stopping is None or self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # it is ending by itself, and its loop is closed
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOP_TIMEOUT_S)

    def take(self, orders: Orders) -> None:
        """Start to fetch, and stop fetching what is not wanted any more."""
        for request_id in orders.withdrawn:
            given = self._given.pop(request_id, None)
            if given is not None:
                self._post(self._withdraw, given)
        for take in orders.takes:
            self._post(self._begin, take)
        for request_id in orders.dropped:
            self._post(self._drop, request_id)

    def give(self, gives: Iterable[Give], ready: Callable[[], None] | None = None) -> None:
        """Lend out blocks. ``ready``: blocks until they hold what they should; None: they do."""
        for give in gives:
            old = self._given.get(give.request_id)
            if old is not None:  # it was preempted, and computed again elsewhere
                self._post(self._withdraw, old)
            given = self._given[give.request_id] = _Given(len(give.groups))
            self._post(self._lend, give, given, ready)

    def results(self, finished: Iterable[str]) -> Results:
        """Return what has ended. ``finished``: requests of which vLLM now keeps the blocks for us."""
        results = Results()
        for request_id in finished:
            if request_id in self._given:
                self._given[request_id].finished = True
        back = [name for name, given in self._given.items() if given.finished and given.left == 0]
        for name in back:
            del self._given[name]
        results.sent.update(back)
        while self._ended:
            take, problem = self._ended.popleft()
            results.received.add(take.request_id)
            if problem:
                results.failed.add(take.request_id)
        return results

    # On the thread ------------------------------------------------------------------------------------

    def _post(self, what: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(what, *arguments)

    async def _serve(self, started: Future[Ticket]) -> None:
        """Run until ``stop``. Cancelled: everything is closed."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._transport.start(self._memory)
            started.set_result(self._transport.blank_ticket())
        except TokenmillError as error:
            started.set_exception(error)
            return
        try:
            await self._stopping.wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self._transport.stop()

    def _lend(self, give: Give, given: _Given, ready: Callable[[], None] | None) -> None:
        def back(_taken: bool) -> None:
            given.left -= 1

        try:
            for key, blocks in give.groups:
                given.exports.append(
                    self._transport.export(
                        blocks, len(blocks), lease_s=self._lease_s, on_released=back, key=key
                    )
                )
        except ValueError as error:
            self._tell(f"the blocks of {give.request_id} cannot be offered: {error}")
            self._withdraw(given)
            given.left = 0
            return
        if ready is None:
            self._seal(given)
        else:
            self._keep(f"seal {id(given)}", self._seal_when(given, ready))

    async def _seal_when(self, given: _Given, ready: Callable[[], None]) -> None:
        """Seal once the device is done. Cancelled: not sealed."""
        await asyncio.to_thread(ready)
        self._seal(given)

    def _seal(self, given: _Given) -> None:
        for export in given.exports:
            export.seal(b"")

    def _withdraw(self, given: _Given) -> None:
        for export in given.exports:
            export.withdraw("the request was given up")

    def _begin(self, take: Take) -> None:
        self._keep(take.request_id, self._fetch(take)).add_done_callback(partial(self._fetched, take))

    def _drop(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def _keep(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"kv {name}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return task

    async def _fetch(self, take: Take) -> None:
        """Fetch one request's blocks. Cancelled: no thread writes them any more, and the giver's are free."""
        if take.problem:
            raise HandoffFailed(take.problem)
        await all_or_none(self._pull(pull) for pull in take.ranks[self._rank])

    async def _pull(self, pull: Pull) -> None:
        """Pull, or ask again for a moment where the giver's worker does not know the export yet."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + OUTRUN_S
        while True:
            try:
                await self._transport.pull(
                    pull.descriptor,
                    pull.blocks,
                    from_token=pull.skipped,
                    idle_timeout_s=IDLE_TIMEOUT_S,
                    sealed=True,
                )
            except ExportUnknown:
                if clock() > until_s:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                return

    def _fetched(self, take: Take, task: asyncio.Task[None]) -> None:
        """Tell vLLM, which waits for it, whatever went wrong."""
        problem = ""
        if task.cancelled():
            problem = "nobody wants it any more"
        elif (error := task.exception()) is not None:
            problem = str(error) or repr(error)
        if take.waited_for:
            self._ended.append((take, problem))
        if problem:
            self._tell(f"the handoff of {take.request_id} failed: {problem}")
