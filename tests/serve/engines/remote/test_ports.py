"""Ports that nobody else is given."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from tokenmill.errors import WorkerFailed
from tokenmill.serve.engines.remote import ports as module
from tokenmill.serve.engines.remote.ports import FIRST_PORT, PAST_PORT, ReservedPorts

LOW = 19_340
"""A few ports that nothing else on a machine is likely to use."""


def _only(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(module, "FIRST_PORT", LOW)
    monkeypatch.setattr(module, "PAST_PORT", LOW + count)


def test_servers_can_bind_them() -> None:
    reserved = ReservedPorts(4, neighbours=2)
    try:
        every = [port + offset for port in reserved.ports for offset in (0, 1)]
        assert len(set(every)) == 8
        assert all(FIRST_PORT <= port < PAST_PORT for port in every)
        for port in every:
            with closing(socket.socket()) as server:
                server.bind(("127.0.0.1", port))
                server.listen()
    finally:
        reserved.release()


def test_two_never_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a range of three there is one pair of neighbours, or three single ones."""
    _only(monkeypatch, 4)
    one = ReservedPorts(1, neighbours=2)
    with pytest.raises(WorkerFailed, match="neighbouring"):
        ReservedPorts(2, neighbours=2)
    one.release()
    three = ReservedPorts(3)
    assert sorted(three.ports) == [LOW, LOW + 1, LOW + 2]
    three.release()


def test_a_port_in_use_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, 3)
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", LOW))
        server.listen()
        reserved = ReservedPorts(1)
        assert reserved.ports == [LOW + 1]
        reserved.release()
