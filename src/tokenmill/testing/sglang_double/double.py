"""The double itself: SGLang's endpoints over the scheduler, in the event loop of whoever starts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from tokenmill.testing.connections import Request
from tokenmill.testing.sglang_double.answers import piece
from tokenmill.testing.sglang_double.contract import Asked, Refused, read_generate
from tokenmill.testing.sglang_double.facts import metrics_text, model_info, models, server_info
from tokenmill.testing.sglang_double.http import HangUp, HttpServer, Reply, json_reply
from tokenmill.testing.sglang_double.mishaps import Journal, Kind, Mishap, Mishaps
from tokenmill.testing.sglang_double.pairing import BootstrapServer, Cache, NotPaired, fetch
from tokenmill.testing.sglang_double.publisher import Publisher
from tokenmill.testing.sglang_double.scheduler import Scheduler, Sequence
from tokenmill.testing.sglang_double.settings import DoubleSettings

_INFORMATION = {
    "/server_info": server_info,
    "/get_server_info": server_info,
    "/model_info": model_info,
    "/get_model_info": model_info,
    "/v1/models": models,
}


class SglangDouble:
    """``start`` it, use ``url``, ``close`` it. ``journal``: what it was asked; ``mishaps``: what is to go
    wrong."""

    def __init__(self, settings: DoubleSettings) -> None:
        self.settings = settings
        self.journal = Journal([], [], [], [])
        self.mishaps = Mishaps()
        self.scheduler = Scheduler(settings)
        self._http = HttpServer(self._handle)
        self._port = settings.port
        self._bootstrap: BootstrapServer | None = None
        self._publisher: Publisher | None = None
        self._wake = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None
        self._moving: dict[str, Sequence] = {}

    @property
    def url(self) -> str:
        """Where it serves, once started."""
        return f"http://{self.settings.host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError where a port is taken."""
        settings = self.settings
        self._port = await self._http.start(settings.host, self._port)
        if settings.mode == "prefill":
            server = BootstrapServer(settings.host, settings.bootstrap_port, settings.bootstrap_timeout_s)
            await server.start()
            self._bootstrap = server
            self.settings = msgspec.structs.replace(settings, bootstrap_port=server.port)
        if settings.events is not None and settings.events.publisher == "zmq":
            self._publisher = Publisher(settings.events, tagged=settings.tagged_events)
            self._publisher.start()
        self._stepping = asyncio.create_task(self._steps(), name="steps of the SGLang double")

    async def close(self) -> None:
        """Drop everybody. Cancelled: call it again."""
        await self._http.stop()
        if self._stepping is not None:
            self._stepping.cancel()
            await asyncio.gather(self._stepping, return_exceptions=True)
        if self._bootstrap is not None:
            await self._bootstrap.close()
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    async def _steps(self) -> None:
        """Step while there is work. Cancelled: between two steps."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.scheduler.work:
                self.scheduler.step()
                self._publish()
                await asyncio.sleep(self.settings.step_s)

    def _publish(self) -> None:
        events, self.scheduler.pages.events = self.scheduler.pages.events, []
        if not events or self._publisher is None:
            return
        lost = self.mishaps.due(Kind.LOSE_EVENTS, Kind.FORGET_EVENTS)
        if lost is not None:
            self._publisher.skip = 1
            self._publisher.forget = lost.kind is Kind.FORGET_EVENTS
        self._publisher.publish(events)

    # Endpoints ----------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> Reply:
        key = self.settings.api_key
        open_to_all = request.path.startswith(("/health", "/metrics", "/double/"))
        if key and not open_to_all and request.headers.get("authorization") != f"Bearer {key}":
            return json_reply({"error": "Unauthorized"}, 401)
        route = request.method, request.path
        if route == ("POST", "/generate"):
            return await self._generate(request)
        if route == ("POST", "/abort_request"):
            return self._abort(request)
        if route == ("POST", "/flush_cache"):
            self.scheduler.pages.clear()
            self._publish()
            return Reply(body=b"Cache flushed.\n", kind="text/plain")
        if route == ("POST", "/double/mishap"):
            self.mishaps.plan(msgspec.json.decode(request.body, type=Mishap))
            return Reply()
        return self._tell(request)

    def _tell(self, request: Request) -> Reply:
        settings = self.settings
        if request.method != "GET":
            return json_reply({"detail": "Method Not Allowed"}, 405)
        if request.path in ("/health", "/health_generate"):
            return Reply(503 if self.mishaps.due(Kind.UNHEALTHY) else 200)
        if request.path == "/metrics" and settings.enable_metrics:
            return Reply(body=metrics_text(settings, self.scheduler, len(self._moving)), kind="text/plain")
        if request.path == "/double/journal":
            return json_reply(self.journal)
        tell = _INFORMATION.get(request.path)
        return json_reply({"detail": "Not Found"}, 404) if tell is None else json_reply(tell(settings))

    def _abort(self, request: Request) -> Reply:
        try:
            fields = msgspec.json.decode(request.body, type=dict[str, str])
        except msgspec.DecodeError as error:
            return json_reply({"error": {"message": str(error)}}, 400)
        if set(fields) != {"rid"} or not fields["rid"]:
            self.journal.refused.append(f"abort_request: {fields}")
            return json_reply({"error": {"message": "abort_request needs one field, rid"}}, 400)
        self.journal.aborted.append(fields["rid"])
        self._end_all(fields["rid"])
        return Reply()

    def _end_all(self, prefix: str) -> None:
        self.scheduler.abort(prefix)
        for rid, sequence in tuple(self._moving.items()):
            if rid.startswith(prefix):
                self.scheduler.fail(sequence, "Aborted", None)

    # Generating ---------------------------------------------------------------------------------------

    async def _generate(self, request: Request) -> Reply:
        """Answer a request. Cancelled, since its client is gone: it is aborted."""
        settings = self.settings
        try:
            asked = read_generate(
                request.body,
                vocab_size=settings.vocab_size,
                context_length=settings.context_length,
                mode=settings.mode,
                bootstrap_port=settings.bootstrap_port,
            )
        except Refused as refused:
            self.journal.refused.append(refused.message)
            return json_reply(refused.body, refused.status)
        self.journal.generate.append(msgspec.json.decode(request.body))
        mishap = self.mishaps.due(Kind.REFUSE, Kind.HANG)
        if mishap is not None and mishap.kind is Kind.HANG:
            await asyncio.Event().wait()
        if mishap is not None:
            return json_reply({"error": {"message": "made to fail"}}, mishap.status)
        events = self._answer(asked)
        if asked.stream:
            return Reply(events=self._framed(events), kind="text/event-stream")
        return await self._whole(events)

    async def _whole(self, events: AsyncIterator[tuple[Sequence, bytes]]) -> Reply:
        sequence, payload = [said async for said in events][-1]
        assert sequence.finish is not None
        status = sequence.finish.get("status_code")
        if sequence.finish["type"] == "abort" and isinstance(status, int):
            message = sequence.finish["message"]
            error = {"object": "error", "message": message, "type": str(status), "code": status}
            return json_reply({"error": {"message": message}} if status == 400 else error, status)
        return Reply(body=payload)

    async def _framed(self, events: AsyncIterator[tuple[Sequence, bytes]]) -> AsyncIterator[bytes]:
        """A stream's events, with what is to go wrong in it."""
        mishap = self.mishaps.due(Kind.HANG_UP, Kind.ABORT, Kind.GARBAGE)
        count = 0
        async for sequence, payload in events:
            if mishap is not None and count == mishap.after:
                if mishap.kind is Kind.HANG_UP:
                    raise HangUp
                if mishap.kind is Kind.GARBAGE:
                    yield b"{"
                    return
                self.scheduler.fail(sequence, "made to fail", mishap.status)
                mishap = None
                continue
            yield payload
            count += 1
        yield b"[DONE]"

    async def _answer(self, asked: Asked) -> AsyncIterator[tuple[Sequence, bytes]]:
        """Everything that is said about a request: after each step that made a token, all that is new."""
        changed = asyncio.Event()
        sequence = Sequence(asked, list(asked.input_ids), lambda _: changed.set())
        work = asyncio.create_task(self._work(sequence), name=f"request {asked.rid}")
        skip = self.mishaps.due(Kind.SKIP_TOKEN) if asked.stream else None
        sent = 0
        try:
            while True:
                await changed.wait()
                changed.clear()
                sent += bool(skip and sent == skip.after)
                incremental = asked.stream and self.settings.incremental
                payload = piece(sequence, sent, self.settings.vocab_size, incremental=incremental)
                sent, over = len(sequence.output), sequence.finish is not None
                yield sequence, payload  # more may happen until the next one is wanted
                if over:
                    return
        finally:
            if sequence.finish is None:
                self.journal.disconnected.append(asked.rid)
                self._end_all(asked.rid)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._moving.pop(asked.rid, None)

    async def _work(self, sequence: Sequence) -> None:
        """Bring a sequence through its stages. Cancelled: whoever waits for it is told."""
        asked = sequence.asked
        if self.settings.mode == "decode":
            await self._receive(sequence)
        elif self.settings.mode == "prefill" and not asked.for_nobody:
            await self._hand_over(sequence)
        else:
            self._run(sequence)

    def _run(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self._wake.set()

    async def _receive(self, sequence: Sequence) -> None:
        asked = sequence.asked
        self._moving[asked.rid] = sequence
        assert asked.bootstrap_room is not None
        try:
            cache = await fetch(
                asked.bootstrap_host,
                asked.bootstrap_port,
                asked.bootstrap_room,
                self.settings.bootstrap_timeout_s,
            )
        except NotPaired as error:
            text = f"Decode handshake failed for request rank=0 {asked.rid=} {asked.bootstrap_room=} {error}"
            self.scheduler.fail(sequence, text, 500)
            return
        finally:
            self._moving.pop(asked.rid, None)
        if sequence.finish is not None:
            return
        sequence.received = True
        sequence.cache = cache.ids[: len(asked.input_ids)]
        sequence.output = [cache.first_token]
        sequence.rankings = [cache.ranking]
        sequence.cached_tokens = cache.cached_tokens
        self.scheduler.judge(sequence)
        if sequence.finish is None:
            self._run(sequence)

    async def _hand_over(self, sequence: Sequence) -> None:
        asked = sequence.asked
        room_number = asked.bootstrap_room
        assert self._bootstrap is not None
        assert room_number is not None
        self._moving[asked.rid] = sequence
        try:
            room = await self._bootstrap.open(room_number)
            computed = asyncio.Event()
            inner = Sequence(asked, sequence.cache, lambda _: computed.set())
            self._run(inner)
            await computed.wait()
            sequence.output, sequence.rankings = inner.output, inner.rankings
            sequence.cached_tokens = inner.cached_tokens
            if self.mishaps.due(Kind.FAIL_TRANSFER):
                raise NotPaired("KV transfer failed")
            if inner.finish is not None and inner.finish["type"] == "abort":
                raise NotPaired(str(inner.finish["message"]))
            await self._bootstrap.hand_over(room, self._cache_of(sequence))
        except NotPaired as error:
            self._bootstrap.leave(room_number, f"prefill failed: {error}")
            text = f"Prefill transfer failed for request rank=0 {asked.rid=} {room_number=} with {error}"
            self.scheduler.fail(sequence, text, 500)
            return
        finally:
            self._bootstrap.leave(room_number, "the prefill side has given the request up")
            self._moving.pop(asked.rid, None)
        if sequence.finish is None:
            sequence.finish = {"type": "length", "length": 0}
            sequence.deliver(sequence)

    def _cache_of(self, sequence: Sequence) -> Cache:
        ids = sequence.cache
        if self.mishaps.due(Kind.OTHER_CACHE):
            ids = [8 + (token - 7) % (self.settings.vocab_size - 8) for token in ids]
        return Cache(ids, sequence.output[0], sequence.rankings[0], sequence.cached_tokens)
