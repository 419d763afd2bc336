"""Where a server's key is kept, and that nobody is shown it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.remote.keys import grounded_key, hidden, read_key, stands_for_itself


def test_a_key_is_read_where_it_is_kept(tmp_path: Path):
    (tmp_path / "key").write_text("sk-1\n")
    assert read_key("env:MY_KEY", {"MY_KEY": " sk-2 "}) == "sk-2"
    assert read_key(f"file:{tmp_path}/key", {}) == "sk-1"
    assert read_key("sk-3", {}) == "sk-3"
    assert read_key("", {}) == ""


@pytest.mark.parametrize(
    ("kept", "word"),
    [
        ("env:NONE", "the variable NONE is not set"),
        ("file:/no/such/key", "No such file"),
        ("file:EMPTY", "is empty"),
        ("file:BINARY", "holds no key"),
        ("sk\n", "printable ASCII"),
        ("schlüssel", "printable ASCII"),
    ],
)
def test_what_is_wrong_is_said_without_showing_a_key(tmp_path: Path, kept: str, word: str):
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "BINARY").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match=word) as caught:
        read_key(kept.replace("EMPTY", f"{tmp_path}/EMPTY").replace("BINARY", f"{tmp_path}/BINARY"), {})
    assert "schlüssel" not in caught.value.message
    assert caught.value.param == "attach_key"


def test_a_relative_file_is_seen_from_the_factory_file(tmp_path: Path):
    assert grounded_key("file:keys/a", tmp_path) == f"file:{tmp_path}/keys/a"
    assert grounded_key("file:/etc/a", tmp_path) == "file:/etc/a"
    assert grounded_key("env:A", tmp_path) == "env:A"


def test_only_a_key_itself_is_to_be_hidden():
    assert [stands_for_itself(kept) for kept in ("sk-1", "env:A", "file:a", "")] == [
        True,
        False,
        False,
        False,
    ]
    assert hidden("no such key: sk-1!", "sk-1") == "no such key: ***!"
    assert hidden("text", "") == "text"
