"""KV events over ZMQ as SGLang publishes them: a PUB socket, and a ROUTER that replays what was missed."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec
import zmq

from tokenmill.clock import SystemClock
from tokenmill.testing.sglang_double.settings import EventsConfig

_END = (-1).to_bytes(8, "big", signed=True)

_FIELDS = {
    "BlockStored": ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}


class Publisher:
    """``start`` it, ``publish``, ``close`` it. ``skip``: so many messages are numbered but not sent, as a
    slow subscriber loses them; ``forget``: nor can they be replayed."""

    def __init__(self, config: EventsConfig, *, tagged: bool) -> None:
        self.skip = 0
        self.forget = False
        self._config = config
        self._tagged = tagged
        self._clock = SystemClock()
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)

    def start(self) -> None:
        """Bind. Raises zmq.ZMQError where an address is taken."""
        self._pub.bind(self._config.endpoint)
        if self._config.replay_endpoint:
            self._router.bind(self._config.replay_endpoint)
            asyncio.get_running_loop().add_reader(self._router.fileno(), self._readable)

    def close(self) -> None:
        """Say no more."""
        if self._config.replay_endpoint:
            asyncio.get_running_loop().remove_reader(self._router.fileno())
        self._context.destroy(linger=0)

    def publish(self, events: list[dict[str, object]]) -> None:
        """Send what one step changed."""
        content = [self._clock.wall(), [self._form(event) for event in events], 0]
        payload = msgspec.msgpack.encode(content)
        number, self._number = self._number, self._number + 1
        if self.skip:
            self.skip -= 1
            if not self.forget:
                self._kept.append((number, payload))
            return
        self._kept.append((number, payload))
        self._pub.send_multipart((self._config.topic.encode(), number.to_bytes(8, "big"), payload))
        self._readable()

    def _form(self, event: dict[str, object]) -> object:
        if self._tagged:
            return event
        kind = str(event["type"])
        return [kind, *(event.get(name) for name in _FIELDS[kind])]

    def _readable(self) -> None:
        while self._config.replay_endpoint and self._router.poll(0):
            frames = self._router.recv_multipart()
            if len(frames) != 3:
                continue
            client, _, first = frames
            for number, payload in self._kept:
                if number >= int.from_bytes(first, "big"):
                    parts = (client, b"", self._config.topic.encode(), number.to_bytes(8, "big"), payload)
                    self._router.send_multipart(parts)
            self._router.send_multipart((client, b"", b"", _END, b""))
