"""The cache of tables: what is kept is found, by another process too; damage only costs time."""

import os
from pathlib import Path

import pytest
from tests.decide.perf.test_table import table_of

from tokenmill.decide.perf.source import NoTimes
from tokenmill.profiles import table_cache
from tokenmill.profiles.table_cache import TableCache, cache_folder


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    TableCache(tmp_path / "c").put("key", table_of())
    TableCache(tmp_path / "c").put("other", NoTimes(reason="nobody measured it"))
    again = TableCache(tmp_path / "c")
    assert again.get("key") == table_of()
    assert again.get("other") == NoTimes(reason="nobody measured it")
    assert again.get("third") is None
    assert not list((tmp_path / "c").glob(".table-*"))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"key": "another"}', b'{"key": 1}'])
def test_damaged_files_are_as_none(tmp_path: Path, damage: bytes) -> None:
    cache = TableCache(tmp_path)
    cache.put("key", table_of())
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(damage)
    assert cache.get("key") is None
    cache.put("key", table_of())
    assert cache.get("key") == table_of()


def test_the_oldest_go_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_cache, "MAX_FILES", 3)
    cache = TableCache(tmp_path)
    for number in range(5):
        cache.put(f"key {number}", table_of())
        for age, file in enumerate(sorted(tmp_path.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)):
            os.utime(file, (1000 + number * 10 + age, 1000 + number * 10 + age))
    kept = [number for number in range(5) if cache.get(f"key {number}") is not None]
    assert len(kept) == 3
    assert 4 in kept


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TableCache(tmp_path / "file")
    cache.put("key", table_of())
    assert cache.get("key") is None


def test_where_it_is() -> None:
    assert cache_folder({"HOME": "/home/a"}) == Path("/home/a/.cache/tokenmill/step-times")
    assert cache_folder({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/tokenmill/step-times")
    assert cache_folder({"HOME": "/h", "TOKENMILL_CACHE_DIR": "/own"}) == Path("/own/step-times")
