"""The frontend as a process: ready line, drain, parent's death, bad settings."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmill.serve.fabric.registry import open_registry
from tokenmill.testing.scripted_worker import ScriptedWorker

from .conftest import reply
from .http_client import exchange, request_bytes

PROGRAM = (
    "import sys, json; from tokenmill.serve.frontend.main import main; "
    "from tokenmill.spec.process import FrontendConfig; "
    "sys.exit(main(FrontendConfig(**json.loads(sys.argv[1]))))"
)


class Process:
    def __init__(self, folder: Path, tokenizer: Path, **settings) -> None:
        ready, ready_fd = os.pipe()
        parent_fd, self.parent = os.pipe()
        settings = {
            "registry": f"file://{folder}/registry",
            "model": str(tokenizer),
            "port": 0,
            "ready_fd": ready_fd,
            "parent_fd": parent_fd,
            **settings,
        }
        self.registry = settings["registry"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(settings)],
            pass_fds=(ready_fd, parent_fd),
            env={**os.environ, "PYTHONPATH": "src"},
        )
        os.close(ready_fd)
        os.close(parent_fd)
        with os.fdopen(ready) as lines:
            self.ready = json.loads(lines.readline())

    @property
    def port(self) -> int:
        return int(self.ready["url"].rsplit(":", 1)[1])

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.parent)


@pytest.fixture
def start(tmp_path, model_folder):
    made: list[Process] = []

    def begin(**settings) -> Process:
        made.append(Process(tmp_path, model_folder, **settings))
        return made[-1]

    yield begin
    for process in made:
        process.close()


@pytest.mark.processes
async def test_a_term_signal_lets_running_requests_end(start):
    process = start()
    assert process.ready["ready"] is True
    registry = open_registry(process.registry)
    await registry.start()
    worker = ScriptedWorker(registry, "b1", reply("abcdefghij" * 3), pace_s=0.02)
    await worker.start()
    try:
        async with asyncio.timeout(20):
            while (await exchange(process.port, "GET", "/ready")).status != 200:
                await asyncio.sleep(0.02)
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            body = {"prompt": "a", "max_tokens": 30, "stream": True}
            writer.write(request_bytes("POST", "/v1/completions", body))
            await reader.readuntil(b"text")
            process.process.send_signal(signal.SIGTERM)
            rest = await reader.read()
            assert rest.count(b"[DONE]") == 1
            assert rest.endswith(b"0\r\n\r\n")
            writer.close()
            await writer.wait_closed()
        assert await process.ended() == 0
    finally:
        await worker.stop()
        await registry.stop()


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs port sharing")
async def test_two_share_a_port_and_each_has_an_address_of_its_own(start):
    first = start(reuse_port=True, own_listen="127.0.0.1:0")
    second = start(reuse_port=True, own_listen="127.0.0.1:0", port=first.port)
    assert second.port == first.port
    own = [int(each.ready["own_url"].rsplit(":", 1)[1]) for each in (first, second)]
    ids = [(await exchange(port, "GET", "/health")).json()["frontend"] for port in own]
    async with asyncio.timeout(20):
        seen = set()
        while seen != set(ids):
            seen.add((await exchange(first.port, "GET", "/health")).json()["frontend"])
    text = (await exchange(own[0], "GET", "/metrics")).body.decode()
    assert f'tokenmill_frontend_info{{frontend="{ids[0]}"}} 1.0' in text


@pytest.mark.processes
async def test_a_port_of_another_is_not_shared_unasked(start):
    first = start(reuse_port=True)
    second = start(port=first.port)
    assert second.ready["fatal"] is True
    assert str(first.port) in second.ready["error"]


@pytest.mark.processes
async def test_it_ends_with_its_parent(start):
    process = start()
    os.close(process.parent)
    process.parent = os.open(os.devnull, os.O_RDONLY)
    assert await process.ended() == 0


@pytest.mark.processes
@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"model": "/nowhere"}, "/nowhere"),
        ({"registry": "redis:"}, "registry"),
        ({"router_policy": "x"}, "router policy"),
        ({"router_weights": {"queu": 1.0}}, "queu"),
        ({"own_listen": "9101"}, "own_listen"),
        ({"host": "192.0.2.1"}, "192.0.2.1"),
    ],
)
async def test_bad_settings_are_told_and_exit_with_2(start, settings, word):
    process = start(**settings)
    assert process.ready["ready"] is False
    assert process.ready["fatal"] is True
    assert word in process.ready["error"]
    assert await process.ended() == 2
