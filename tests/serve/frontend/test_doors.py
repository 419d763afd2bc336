from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.doors import parse_host_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:9101", ("::1", 9101)), ("host:1", ("host", 1))],
)
def test_addresses_are_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize("text", ["", "9101", "host", "host:x", ":9101", "host:99999"])
def test_anything_else_is_refused_with_the_field_and_the_fix(text: str) -> None:
    with pytest.raises(ConfigError, match="own_listen") as raised:
        parse_host_port(text)
    assert raised.value.param == "own_listen"
