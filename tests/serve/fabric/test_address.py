"""How addresses are written."""

from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.fabric.address import UNIX_PATH_BYTES, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:///run/a.sock", UnixAddress("/run/a.sock")),
        ("tcp://127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("tcp://worker-3.local:0", TcpAddress("worker-3.local", 0)),
        ("tcp://[::1]:9", TcpAddress("::1", 9)),
    ],
)
def test_good_addresses(text: str, address: object) -> None:
    parsed = parse_address(text)
    assert parsed == address
    assert parse_address(str(parsed)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:80",
        "http://a:1",
        "unix:",
        "unix:relative",
        "unix:/a\0b",
        "tcp://",
        "tcp://host",
        "tcp://:80",
        "tcp://host:port",
        "tcp://host:70000",
        "tcp://host:1/path",
        "tcp://user@host:1",
        "tcp://::1:9:9x",
    ],
)
def test_bad_addresses_name_the_field(text: str) -> None:
    with pytest.raises(ConfigError, match="address") as caught:
        parse_address(text)
    assert caught.value.param == "address"


def test_a_unix_path_has_a_limit_in_bytes() -> None:
    longest = "/" + "x" * (UNIX_PATH_BYTES - 1)
    assert parse_address(f"unix:{longest}") == UnixAddress(longest)
    with pytest.raises(ConfigError, match="shorter folder"):
        parse_address(f"unix:{longest}y")
    with pytest.raises(ConfigError, match="shorter folder"):
        parse_address("unix:/" + "ü" * (UNIX_PATH_BYTES // 2 + 1))
