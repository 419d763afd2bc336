"""How two doubles hand a cache over: the decoder asks the one that prefilled, at the address in the opaque
state.

Stands for the engine's cache transceiver, whose own wire form nobody outside sees. Each cache is given once,
and not after its time.
"""

from __future__ import annotations

import asyncio
import base64
import struct

import msgspec

from tokenmill.clock import Clock

REACH_TIMEOUT_S = 5.0
"""For connection and answer."""

_ASK = struct.Struct("<q")
_GIVE = struct.Struct("<bQq")


class TransferFailed(Exception):
    """The cache did not come."""


class OpaqueState(msgspec.Struct, array_like=True):
    """What the opaque state of this double says."""

    host: str
    port: int
    maker: str = "trtllm-double"


class Held(msgspec.Struct):
    """A prompt's cache that waits for its decoder. ``state``: after the prompt; ``tokens``: how many those
    were."""

    state: int
    tokens: int
    expires_at: float
    given: asyncio.Future[None]


class CacheSender:
    """Gives caches away. Bounded by the prompts that the plant has room for."""

    def __init__(self, clock: Clock) -> None:
        self.held: dict[int, Held] = {}
        self.refuses = False
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Cancelled: call ``stop``."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def opaque_state(self) -> str:
        """Return the state that leads here."""
        return base64.b64encode(msgspec.msgpack.encode(OpaqueState("127.0.0.1", self._port))).decode()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._give(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (request_id,) = _ASK.unpack(await reader.readexactly(_ASK.size))
            held = self.held.pop(request_id, None)
            if held is None or self.refuses or self._clock.now() > held.expires_at:
                writer.write(_GIVE.pack(0, 0, 0))
            else:
                writer.write(_GIVE.pack(1, held.state, held.tokens))
                held.given.set_result(None)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def fetch_cache(encoded: str, request_id: int, prompt_tokens: int) -> int:
    """Return the state that the sender holds. Raises TransferFailed. Cancelled: the connection is closed."""
    try:
        where = msgspec.msgpack.decode(base64.b64decode(encoded), type=OpaqueState)
    except (ValueError, msgspec.DecodeError) as error:
        raise TransferFailed(f"the opaque state cannot be read: {error}") from error
    try:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(where.host, where.port)
            try:
                writer.write(_ASK.pack(request_id))
                found, state, tokens = _GIVE.unpack(await reader.readexactly(_GIVE.size))
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise TransferFailed(f"cannot connect to the context server: {error}") from error
    if not found:
        raise TransferFailed(f"KV cache of context request {request_id} expired or was never there")
    if tokens != prompt_tokens:
        raise TransferFailed(f"the KV cache holds {tokens} tokens, but the prompt has {prompt_tokens}")
    return int(state)
