"""What a worker sees of ``vllm serve``, without a model: flags, routes, log, KV events by rank.

    python fake_vllm.py serve MODEL --port N ...

Output token i of a prompt is ``(sum(prompt) + i) % 1000``. ``GET /seen`` tells what came. Environment:
``FAKE_START_ERROR``: end with this exception; ``FAKE_PACE_S``: between two tokens; ``FAKE_SILENT``: routes
that are not there, by commas; ``FAKE_NIXL_ERROR``: what goes wrong with every cache that should be fetched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

import msgspec
import zmq

PACE_S = float(os.environ.get("FAKE_PACE_S", "0"))
NIXL_ERROR = os.environ.get("FAKE_NIXL_ERROR", "")
SILENT = os.environ.get("FAKE_SILENT", "").split(",")


def log(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("model")
    for name in ("port", "data-parallel-size", "block-size"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("host", "served-model-name", "kv-events-config", "kv-transfer-config"):
        parser.add_argument(f"--{name}", default="")
    known, rest = parser.parse_known_args()
    log("INFO options", *rest)
    return known


class Rank:
    """One rank's cache and its two sockets."""

    def __init__(self, rank: int, block: int, config: dict[str, Any], context: zmq.Context) -> None:
        self.rank = rank
        self.block = block
        self.known: set[int] = set()
        self.number = 0
        self.running = 0
        self.events = context.socket(zmq.PUB) if config else None
        self.replay = context.socket(zmq.ROUTER) if config else None
        self.sent: list[bytes] = []
        if self.events is not None and self.replay is not None:
            self.events.bind(self.address(config["endpoint"]))
            self.replay.bind(self.address(config["replay_endpoint"]))

    def address(self, endpoint: str) -> str:
        scheme, _, rest = endpoint.partition("://")
        if scheme == "ipc":
            return endpoint
        host, _, port = rest.rpartition(":")
        return f"{scheme}://{host}:{int(port) + self.rank}"

    def store(self, prompt: list[int], salt: str | None) -> int:
        """Cache a prompt; returns how many of its tokens were there already."""
        parent, names, first = None, [], None
        for end in range(self.block, len(prompt) + 1, self.block):
            name = hash((salt, tuple(prompt[:end]))) % 2**63
            if name not in self.known:
                names.append(name)
                first = end - self.block if first is None else first
            else:
                parent = name
        if first is not None:
            self.known.update(names)
            event = {
                "type": "BlockStored",
                "block_hashes": names,
                "parent_block_hash": parent,
                "token_ids": prompt[first : first + len(names) * self.block],
                "block_size": self.block,
                "medium": "GPU",
                "extra_keys": [
                    [salt] if salt and first == 0 and not at else None for at in range(len(names))
                ],
            }
            self.tell([event])
        cached = first if first is not None else len(prompt) // self.block * self.block
        return min(cached, len(prompt) - 1)

    def tell(self, events: list[dict[str, Any]]) -> None:
        if self.events is None:
            return
        payload = msgspec.msgpack.encode([time.time(), events, self.rank])
        self.sent.append(payload)
        self.events.send_multipart([b"", self.number.to_bytes(8, "big"), payload])
        self.number += 1

    def answer_replays(self) -> None:
        while self.replay is not None and self.replay.poll(0):
            asker, empty, start = self.replay.recv_multipart()
            for number in range(int.from_bytes(start, "big"), len(self.sent)):
                self.replay.send_multipart([asker, empty, b"", number.to_bytes(8, "big"), self.sent[number]])
            self.replay.send_multipart([asker, empty, b"", (-1).to_bytes(8, "big", signed=True), b""])


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        context = zmq.Context()
        config = json.loads(options.kv_events_config) if options.kv_events_config else {}
        self.config = config
        self.ranks = [
            Rank(rank, options.block_size if options.block_size > 1 else 16, config, context)
            for rank in range(options.data_parallel_size)
        ]
        self.seen: list[dict[str, Any]] = []
        self.turn = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                await self.answer(method, path, headers, body, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, method, path, headers, body, reader, writer) -> None:
        if path.strip("/") in SILENT:
            self.whole(writer, {"detail": "Not Found"}, 404)
        elif path == "/v1/completions":
            await self.complete(json.loads(body), headers, reader, writer)
        elif path == "/metrics":
            self.raw(writer, self.metrics().encode())
        else:
            known = {
                "/health": {},
                "/version": {"version": "0.0.fake"},
                "/v1/models": {"data": [{"id": self.options.served_model_name, "root": self.options.model,
                                         "max_model_len": 512}]},
                "/kv_event_sources": {
                    str(each.rank): {
                        "endpoint": each.address(self.config["endpoint"]),
                        "replay_endpoint": each.address(self.config["replay_endpoint"]),
                    }
                    for each in reversed(self.ranks)
                } if self.config else {},
                "/seen": self.seen,
                "/options": vars(self.options),
            }  # fmt: skip
            if path in known:
                self.whole(writer, known[path])
            else:
                self.whole(writer, {"error": {"message": "off", "code": 403}}, 403)
        await writer.drain()

    async def complete(self, body, headers, reader, writer) -> None:
        rank = headers.get("x-data-parallel-rank")
        self.turn += 1
        chosen = self.ranks[int(rank) if rank is not None else self.turn % len(self.ranks)]
        seen = {"body": body, "headers": headers, "rank": chosen.rank, "ended": False}
        self.seen.append(seen)
        if NIXL_ERROR and "opaque" in (body.get("kv_transfer_params") or {}):
            prefix = "(EngineCore pid=1) ERROR 01-01 00:00:00 [base_worker.py:1354]"
            context = (
                f"{{'failure_type': 'handshake_failed', 'request_id': 'cmpl-{headers['x-request-id']}-0-ab'}}"
            )
            log(prefix, f"NIXL transfer failure: handshake_failed | Context: {context}")
            log(prefix, f"RuntimeError: {NIXL_ERROR}")
            self.whole(writer, {"error": {"message": "Internal server error", "code": 500}}, 500)
            return
        prompt, count = body["prompt"], body["max_tokens"]
        cached = chosen.store(prompt, body.get("cache_salt"))
        for each in self.ranks:
            each.answer_replays()
        tokens = [(sum(prompt) + index) % 1000 for index in range(count)]
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": cached}}
        chosen.running += 1
        try:
            if not body["stream"]:
                params = {"opaque": [1, 2], "of": self.options.port} if "kv_transfer_params" in body else None
                choice = {"token_ids": tokens, "finish_reason": "length"}
                self.whole(writer, {"choices": [choice], "usage": usage, "kv_transfer_params": params})
            else:
                await self.stream(tokens, usage, reader, writer)
            seen["ended"] = True
        finally:
            chosen.running -= 1

    async def stream(self, tokens, usage, reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        gone = asyncio.ensure_future(reader.read(1))
        for index, token in enumerate(tokens):
            reason = "length" if index + 1 == len(tokens) else None
            self.chunk(writer, {"choices": [{"token_ids": [token], "finish_reason": reason}]})
            await writer.drain()
            if PACE_S:
                done, _ = await asyncio.wait((gone,), timeout=PACE_S)
                if done:
                    raise ConnectionResetError
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        self.chunk(writer, {"choices": [], "usage": usage})
        self.chunk(writer, None)
        writer.write(b"0\r\n\r\n")

    def chunk(self, writer, content) -> None:
        data = b"data: " + (b"[DONE]" if content is None else json.dumps(content).encode()) + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def whole(self, writer, content, status: int = 200) -> None:
        self.raw(writer, json.dumps(content).encode(), status)

    def raw(self, writer, data: bytes, status: int = 200) -> None:
        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data))

    def metrics(self) -> str:
        lines = []
        for each in self.ranks:
            lines.append(f'vllm:num_requests_running{{engine="{each.rank}"}} {each.running}.0')
            labels = f'engine="{each.rank}",block_size="{each.block}",num_gpu_blocks="64"'
            lines.append(f"vllm:cache_config_info{{{labels}}} 1.0")
        return "\n".join(lines) + "\n"

    async def run(self) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.options.port)
        log("INFO serving")
        async with server:
            while True:
                await asyncio.sleep(0.01)
                for each in self.ranks:
                    each.answer_replays()


if __name__ == "__main__":
    error = os.environ.get("FAKE_START_ERROR")
    if error:
        log(f"(EngineCore pid=1) ERROR 01-01 00:00:00 [core.py:1] ValueError: {error}")
        log("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    asyncio.run(Server(arguments()).run())
