from __future__ import annotations

import asyncio

import pytest

from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy import control
from tokenmill.operate.deploy.control import ControlReply, ControlRequest, ask, control_server
from tokenmill.operate.deploy.state import StateFolder


@pytest.fixture
def state(tmp_path):
    folder = StateFolder(tmp_path, "a")
    folder.path.mkdir()
    return folder


def answer(request):
    if request.op == "bad":
        raise ConfigError("your fault")
    if request.op == "fail":
        raise TokenmillError("my fault")
    return ControlReply(error="" if request.replicas == {"d": 2} else "lost on the way")


async def raw(state, data):
    reader, writer = await asyncio.open_unix_connection(str(state.control))
    writer.write(data)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def test_requests_are_answered_and_errors_keep_their_kind(state):
    async with control_server(state.control, answer):
        await asyncio.to_thread(ask, state, ControlRequest(op="x", replicas={"d": 2}))
        with pytest.raises(ConfigError, match="your fault"):
            await asyncio.to_thread(ask, state, ControlRequest(op="bad"))
        with pytest.raises(TokenmillError, match="my fault") as caught:
            await asyncio.to_thread(ask, state, ControlRequest(op="fail"))
        assert not isinstance(caught.value, ConfigError)
    assert not state.control.exists()


async def test_odd_bytes_are_refused_politely(state):
    async with control_server(state.control, answer):
        assert b"not a request" in await raw(state, b"hello\n")
        assert b"not a request" in await raw(state, b'{"op": 3}\n')


async def test_a_line_without_end_is_dropped_at_the_bound(state, monkeypatch):
    monkeypatch.setattr(control, "MAX_LINE_BYTES", 1000)
    async with control_server(state.control, answer):
        assert await raw(state, b"x" * 5000) == b""


async def test_a_silent_client_is_dropped_at_the_deadline(state, monkeypatch):
    monkeypatch.setattr(control, "DEADLINE_S", 0.05)
    async with control_server(state.control, answer):
        assert await raw(state, b"") == b""


async def test_too_many_at_once_are_turned_away(state, monkeypatch):
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 1)
    async with control_server(state.control, answer):
        _, first = await asyncio.open_unix_connection(str(state.control))
        await asyncio.sleep(0.05)
        assert await raw(state, b"") == b""
        first.close()
        await first.wait_closed()


def test_nobody_there_is_said_plainly(state):
    with pytest.raises(TokenmillError, match='"a" is not running'):
        ask(state, ControlRequest(op="status"))


def test_a_supervisor_that_does_not_answer_is_given_up(state, monkeypatch):
    import socket

    monkeypatch.setattr(control, "DEADLINE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.control))
        listener.listen()
        with pytest.raises(TokenmillError, match="does not answer"):
            ask(state, ControlRequest(op="status"))
