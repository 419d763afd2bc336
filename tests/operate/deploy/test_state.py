from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy.state import (
    MAX_SOCKET_PATH_BYTES,
    StateFolder,
    SupervisorRecord,
    short_path,
    state_folders,
    state_root,
)


def test_where_the_state_is():
    assert state_root({"TOKENMILL_STATE_DIR": "/s", "XDG_STATE_HOME": "/x"}) == Path("/s")
    assert state_root({"XDG_STATE_HOME": "/x"}) == Path("/x/tokenmill")
    assert state_root({}) == Path.home() / ".local/state/tokenmill"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="set TOKENMILL_STATE_DIR"):
        state_root({})


def test_a_name_is_held_once_and_free_again_afterwards(tmp_path):
    state = StateFolder(tmp_path, "a")
    assert not state.running
    with state.held():
        assert state.running
        with pytest.raises(TokenmillError, match='"a" is running already'), StateFolder(tmp_path, "a").held():
            pass
    assert not state.running
    with state.held():
        pass
    assert [each.name for each in state_folders(tmp_path)] == ["a"]
    assert state_folders(tmp_path / "none") == []


def test_what_a_killed_supervisor_left_is_found_and_cleaned(tmp_path):
    state = StateFolder(tmp_path, "a")
    with state.held():
        pass
    run_dir = state.make_run_dir()
    (run_dir / "x.sock").touch()
    state.write_record(SupervisorRecord(name="a", pid=1, started=0.0, run_dir=str(run_dir)))
    state.registry.mkdir()
    assert state.stale
    with state.held():
        assert not run_dir.exists()
        assert not state.registry.exists()
        assert state.read_record() is None
    assert not state.stale


def test_a_record_that_names_a_strange_folder_removes_nothing(tmp_path):
    state = StateFolder(tmp_path / "root", "a")
    with state.held():
        pass
    mine = tmp_path / "mine"
    mine.mkdir()
    state.write_record(SupervisorRecord(name="a", pid=1, started=0.0, run_dir=str(mine)))
    with state.held():
        assert mine.is_dir()


def test_half_a_record_is_no_record(tmp_path):
    state = StateFolder(tmp_path, "a")
    state.path.mkdir()
    state.record.write_text("{")
    assert state.read_record() is None


def test_a_state_folder_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(TokenmillError, match="set TOKENMILL_STATE_DIR"),
        StateFolder(tmp_path / "file", "a").held(),
    ):
        pass


def test_sockets_bind_under_long_paths(tmp_path):
    folder = tmp_path / ("x" * 150)
    folder.mkdir()
    path = folder / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with short_path(path) as address:
            assert len(address) <= MAX_SOCKET_PATH_BYTES
            listener.bind(address)
        listener.listen()
        assert path.exists()
        with short_path(path) as address:
            client.connect(address)
    assert not Path(address).parent.exists()
