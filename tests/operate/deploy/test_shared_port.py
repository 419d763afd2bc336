from __future__ import annotations

import socket

import pytest

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.plant import process_specs
from tokenmill.operate.deploy.shared_port import PortReservation, can_share_ports
from tokenmill.spec.load import parse_factory
from tokenmill.spec.process import FrontendConfig

needs_sharing = pytest.mark.skipif(not can_share_ports(), reason="this system deals no connections out")


def fronts(shared_port, *, replicas=2, port=9000):
    text = f"metadata: {{name: a}}\nfrontend: {{port: {port}, replicas: {replicas}}}\nstages: [{{name: w}}]"
    specs = [
        spec for spec in process_specs(parse_factory(text, "f"), 1, shared_port=shared_port)
        if isinstance(spec.config, FrontendConfig)
    ]  # fmt: skip
    return [(s.config.port, s.config.reuse_port, s.config.own_listen, s.exclusive) for s in specs]


def test_front_doors_share_the_port_and_have_an_address_of_their_own() -> None:
    assert fronts(9000) == [(9000, True, "127.0.0.1:0", frozenset())] * 2
    assert fronts(4711, port=0) == [(4711, True, "127.0.0.1:0", frozenset())] * 2


def test_one_front_door_needs_no_second_address() -> None:
    assert fronts(9000, replicas=1) == [(9000, True, "", frozenset())]


def test_without_sharing_each_has_a_port_of_its_own() -> None:
    assert fronts(None) == [
        (9000, False, "", frozenset({"port 9000"})),
        (9001, False, "", frozenset({"port 9001"})),
    ]
    assert fronts(None, port=0) == [(0, False, "", frozenset())] * 2


@needs_sharing
def test_a_reservation_leaves_the_port_to_those_who_share_it_and_takes_no_connection() -> None:
    held = PortReservation("127.0.0.1", 0)
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", held.port), timeout=5)
        with socket.socket() as sharer, socket.socket() as stranger:
            sharer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sharer.bind(("127.0.0.1", held.port))
            sharer.listen()
            with pytest.raises(OSError, match="in use"):
                stranger.bind(("127.0.0.1", held.port))
    finally:
        held.close()


@needs_sharing
def test_a_port_that_somebody_holds_for_himself_cannot_be_reserved() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be used"):
            PortReservation("127.0.0.1", port)
