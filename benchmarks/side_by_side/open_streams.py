"""Many streams held open at once, to see what they cost in memory.

It must not know which system it talks to.
"""

from __future__ import annotations

import json
import random
import resource
import selectors
import socket
import time
from types import TracebackType
from typing import Self

from benchmarks.side_by_side.load import Scenario, body
from benchmarks.side_by_side.model import lexicon

_LONG = Scenario("e", 200, 2000, stream=True)
_STARTED_S = 120.0


class HeldStreams:
    """Opens ``count`` streamed chats, each on a connection of its own, and returns once all have sent
    something.

    ``started``: how many did. They are read on only until then; leaving closes them.
    """

    def __init__(self, port: int, count: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 100)), hard))
        self._port = port
        self._count = count
        self._sockets: list[socket.socket] = []
        self.started = 0

    def __enter__(self) -> Self:
        selector = selectors.DefaultSelector()
        chance, lexicon_words = random.Random(9), lexicon()[0]
        for index in range(self._count):
            connection = socket.create_connection(("127.0.0.1", self._port), 30)
            connection.setblocking(False)
            words = " ".join(chance.choices(lexicon_words, k=_LONG.words))
            data = json.dumps(body(_LONG, words)).encode()
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"content-length: {len(data)}\r\n\r\n"
            )
            connection.send(head.encode() + data)
            self._sockets.append(connection)
            selector.register(connection, selectors.EVENT_READ, index)
        seen: set[int] = set()
        deadline = time.monotonic() + _STARTED_S
        while len(seen) < self._count and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                data = self._sockets[key.data].recv(1 << 16)
                if b'"content":"' in data or b'"content": "' in data:
                    seen.add(key.data)
        selector.close()
        self.started = len(seen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._sockets:
            connection.close()
