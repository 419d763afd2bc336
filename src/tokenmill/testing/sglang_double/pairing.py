"""How a prefill and a decode double find each other: rooms at the prefill side's bootstrap server.

SGLang's own servers speak a protocol of their own there, which nobody else sees; this one only keeps its
order: the prefill side computes once the decode side has come to its room, answers once the cache is fetched,
and each gives up on the other after a while.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from tokenmill.testing.connections import Request
from tokenmill.testing.sglang_double.http import HttpServer, Reply, json_reply


class Cache(msgspec.Struct, frozen=True):
    """What is handed over: the tokens the KV was made of, the first token and its ranking, cached tokens."""

    ids: list[int]
    first_token: int
    ranking: list[tuple[int, float]]
    cached_tokens: int


class NotPaired(Exception):
    """The other side did not come, or broke off."""


@dataclass(eq=False)
class Room:
    """One request's meeting place. ``arrived``: the decode side is there; ``ready``: the cache or the
    failure; ``fetched``: it has been taken."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Future[Cache] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    prefilling: bool = False


class BootstrapServer:
    """The prefill side."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._rooms: dict[int, Room] = {}
        self._timeout_s = timeout_s
        self._host = host
        self.port = port
        """Where it listens, once started."""
        self._http = HttpServer(self._handle)

    async def start(self) -> None:
        """Listen."""
        self.port = await self._http.start(self._host, self.port)

    async def close(self) -> None:
        """Drop everybody."""
        await self._http.stop()

    async def open(self, room_number: int) -> Room:
        """Wait for the decode side of a request. Raises NotPaired. Cancelled: call ``leave``."""
        room = self._rooms.setdefault(room_number, Room())
        if room.prefilling:
            raise NotPaired(f"bootstrap room {room_number} is in use")
        room.prefilling = True
        try:
            async with asyncio.timeout(self._timeout_s):
                await room.arrived.wait()
        except TimeoutError:
            raise NotPaired(
                f"Request {room_number} timed out after {self._timeout_s}s in KVPoll.Bootstrapping"
            ) from None
        return room

    async def hand_over(self, room: Room, cache: Cache) -> None:
        """Give the cache away and wait until it is taken. Raises NotPaired."""
        room.ready.set_result(cache)
        try:
            async with asyncio.timeout(self._timeout_s):
                await room.fetched.wait()
        except TimeoutError:
            raise NotPaired("the decode instance could be dead") from None
        if not room.arrived.is_set():
            raise NotPaired("Lost connection with the decode instance")

    def leave(self, room_number: int, why: str) -> None:
        """The prefill side's request is over."""
        room = self._rooms.pop(room_number, None)
        if room is not None and not room.ready.done():
            room.ready.set_exception(NotPaired(why))
            room.ready.exception()  # nobody may be there to hear it

    async def _handle(self, request: Request) -> Reply:
        if request.path == "/health":
            return Reply(body=b"OK")
        number = int(request.path.removeprefix("/double/rooms/"))
        room = self._rooms.setdefault(number, Room())
        if room.arrived.is_set():
            return json_reply({"error": f"Duplicate decode bootstrap room {number}"}, 409)
        room.arrived.set()
        try:
            cache = await asyncio.shield(room.ready)
        except NotPaired as error:
            return json_reply({"error": str(error)}, 500)
        except asyncio.CancelledError:
            room.arrived.clear()
            room.fetched.set()
            raise
        room.fetched.set()
        return json_reply(cache)


async def fetch(host: str, port: int, room: int, timeout_s: float) -> Cache:
    """The decode side: fetch a cache. Raises NotPaired. Cancelled: the prefill side sees it."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /double/rooms/{room} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise NotPaired(f"timed out after {timeout_s:g}s in KVPoll.WaitingForInput") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        where = f"bootstrap_addr: {host}:{port}"
        raise NotPaired(
            f"Prefill server with {where} is healthy before, but now it is down. {error}"
        ) from error
    if " 200 " not in head.split("\r\n")[0]:
        raise NotPaired(str(msgspec.json.decode(body, type=dict[str, str])["error"]))
    return msgspec.json.decode(body, type=Cache)
