"""The file driver: several processes, crashes, damage."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tokenmill.clock import VirtualClock
from tokenmill.errors import ConfigError, DeadlineExceeded
from tokenmill.serve.fabric import registry_file_store
from tokenmill.serve.fabric.process_mark import ProcessMark, is_gone, own_mark
from tokenmill.serve.fabric.registry import SYNCED, Change
from tokenmill.serve.fabric.registry_file import FileRegistry
from tokenmill.serve.fabric.registry_file_store import FileStore

WAIT_S = 5.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
async def registry(folder: Path) -> AsyncIterator[FileRegistry]:
    registry = FileRegistry(folder)
    await registry.start()
    yield registry
    await registry.stop()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


@pytest.fixture
def store(folder: Path, clock: VirtualClock) -> FileStore:
    store = FileStore(folder, clock)
    store.prepare()
    return store


async def wait_for(watch: Any, wanted: Change) -> None:
    async with asyncio.timeout(WAIT_S):
        async for change in watch:
            if change == wanted:
                return


@pytest.mark.processes
class TestProcesses:
    async def test_a_killed_process_loses_its_keys_long_before_the_ttl(
        self, registry: FileRegistry, folder: Path, peer_process: Any
    ) -> None:
        async with peer_process("announce", f"file://{folder}", "workers/1", "3600") as peer:
            assert await peer.line() == "put"
            async with registry.watch("workers/") as watch:
                await wait_for(watch, Change("workers/1", b"here"))
                await wait_for(watch, Change(SYNCED, None))
                peer.signal(signal.SIGKILL)
                await wait_for(watch, Change("workers/1", None))
            assert await registry.get("workers/1") is None
            assert await registry.list("") == {}
        assert not list((folder / "leases").iterdir())
        assert not list((folder / "keys").iterdir())

    async def test_reads_are_right_without_anyone_clearing_away(
        self, registry: FileRegistry, folder: Path, peer_process: Any
    ) -> None:
        async with peer_process("announce", f"file://{folder}", "leader", "3600") as peer:
            assert await peer.line() == "put"
            assert not await registry.compare_and_swap("leader", None, b"me")
            peer.signal(signal.SIGKILL)
            async with asyncio.timeout(WAIT_S):
                while await registry.get("leader") is not None:
                    await asyncio.sleep(0.005)
            assert await registry.compare_and_swap("leader", None, b"me")
            assert await registry.get("leader") == b"me"

    async def test_a_frozen_process_loses_its_keys_after_the_ttl_and_learns_of_it(
        self, registry: FileRegistry, folder: Path, peer_process: Any
    ) -> None:
        async with peer_process("announce", f"file://{folder}", "leader", "0.5") as peer:
            assert await peer.line() == "put"
            async with registry.watch("") as watch:
                await wait_for(watch, Change("leader", b"here"))
                peer.signal(signal.SIGSTOP)
                await wait_for(watch, Change("leader", None))
            assert await registry.compare_and_swap("leader", None, b"me")
            peer.signal(signal.SIGCONT)
            while (line := await peer.line()) != "lost":
                assert "lease lost" in line
            assert await registry.get("leader") == b"me"

    async def test_processes_count_together(
        self, registry: FileRegistry, folder: Path, peer_process: Any
    ) -> None:
        async with (
            peer_process("count", f"file://{folder}", "n", "40") as first,
            peer_process("count", f"file://{folder}", "n", "40") as second,
        ):
            for word in ("ready", "done"):
                for peer in (first, second):
                    assert await peer.line() == word
        assert await registry.get("n") == b"80"

    async def test_a_stopped_holder_of_the_lock_costs_a_deadline(
        self, registry: FileRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registry_file_store, "LOCK_TIMEOUT_S", 0.05)
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(DeadlineExceeded, match="stopped process"):
                await registry.put("a", b"1")
            assert await registry.get("a") is None
        await registry.put("a", b"1")


class TestDamage:
    @pytest.mark.parametrize(
        "content",
        [b"", b"garbage", b'{"key":"a"}\nx', b'{"key":"a","size":5,"crc32":0}\nabc', b"\xff\xfe\n", b"[1]\n"],
    )
    def test_a_torn_or_foreign_file_is_skipped_with_one_warning(
        self, store: FileStore, folder: Path, content: bytes
    ) -> None:
        store.put("good", b"1", "")
        (folder / "keys" / "k.a").write_bytes(content)
        with capture_logs() as logs:
            assert store.read_all() == {"good": b"1"}
            assert store.get("a") is None
        assert [log["log_level"] for log in logs] == ["warning"]
        assert store.compare_and_swap("a", None, b"whole", "")
        assert store.get("a") == b"whole"

    def test_a_copy_under_another_name_is_skipped(self, store: FileStore, folder: Path) -> None:
        store.put("a", b"1", "")
        (folder / "keys" / "k.b").write_bytes((folder / "keys" / "k.a").read_bytes())
        (folder / "keys" / "sub").mkdir()
        with capture_logs() as logs:
            assert store.read_all() == {"a": b"1"}
        assert len(logs) == 2

    def test_a_foreign_lease_file_holds_nothing(self, store: FileStore, folder: Path) -> None:
        (folder / "leases" / "x").write_bytes(b"garbage")
        with capture_logs() as logs:
            store.reap()
        assert len(logs) == 1

    def test_records_can_be_read_by_people(self, store: FileStore, folder: Path) -> None:
        store.put("workers/1", b'{"role":"decode"}', "")
        text = (folder / "keys" / "k.workers%2F1").read_text()
        crc = zlib.crc32(b'{"role":"decode"}')
        assert text == f'{{"key":"workers/1","size":17,"crc32":{crc},"lease":""}}\n{{"role":"decode"}}'

    async def test_a_folder_that_vanishes_comes_back(self, registry: FileRegistry, folder: Path) -> None:
        await registry.put("a", b"1")
        async with registry.watch("") as watch:
            await wait_for(watch, Change("a", b"1"))
            shutil.rmtree(folder)
            await wait_for(watch, Change("a", None))
            await registry.put("b", b"2")
            await wait_for(watch, Change("b", b"2"))

    async def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError, match="registry folder"):
            await FileRegistry(tmp_path / "file" / "folder").start()


class TestLeases:
    def test_it_ends_when_silent_for_its_ttl(self, store: FileStore, clock: VirtualClock) -> None:
        lease = store.create_lease(10.0)
        store.put("a", b"1", lease)
        clock.advance_to(1009.0)
        assert store.get("a") == b"1"
        assert store.renew(lease)
        clock.advance_to(1018.0)
        assert store.get("a") == b"1"
        clock.advance_to(1019.5)
        assert store.get("a") is None
        assert store.read_all() == {}
        assert not store.renew(lease)

    def test_who_was_replaced_while_silent_stays_out(self, store: FileStore, clock: VirtualClock) -> None:
        mine, other = store.create_lease(10.0), store.create_lease(100.0)
        store.put("leader", b"me", mine)
        clock.advance_to(1011.0)
        assert store.compare_and_swap("leader", None, b"other", other)
        assert not store.renew(mine)
        assert store.get("leader") == b"other"

    def test_poll_clears_away_and_tells_once(
        self, store: FileStore, clock: VirtualClock, folder: Path
    ) -> None:
        store.put("a", b"1", store.create_lease(10.0))
        found = store.poll(None)
        assert found is not None
        assert found[1] == {"a": b"1"}
        assert store.poll(found[0]) is None
        clock.advance_to(1011.0)
        found = store.poll(found[0])
        assert found is not None
        assert found[1] == {}
        assert not list((folder / "leases").iterdir())
        assert store.poll(found[0]) is None

    def test_a_lease_of_an_earlier_boot_has_ended(self, store: FileStore, folder: Path) -> None:
        lease = store.create_lease(10.0)
        store.put("a", b"1", lease)
        path = folder / "leases" / lease
        stamp_ns = path.stat().st_mtime_ns
        path.write_text(path.read_text().replace(own_mark().boot, "another-boot"))
        os.utime(path, ns=(stamp_ns, stamp_ns))
        assert FileStore(folder, VirtualClock(1000.0)).get("a") is None


class TestProcessMark:
    def test_this_process_is_here(self) -> None:
        assert not is_gone(own_mark(), own_mark())

    def test_another_boot_is_gone(self) -> None:
        mine = own_mark()
        assert is_gone(ProcessMark(mine.pid, mine.started, "other", mine.namespace), mine)

    def test_a_pid_used_again_is_gone(self) -> None:
        mine = own_mark()
        assert is_gone(ProcessMark(mine.pid, "1", mine.boot, mine.namespace), mine)

    def test_another_container_proves_nothing(self) -> None:
        mine = own_mark()
        assert not is_gone(ProcessMark(2**22 + 1, "1", mine.boot, "pid:[1]"), mine)

    def test_without_proc_a_signal_must_do(self) -> None:
        mine = own_mark()
        assert not is_gone(ProcessMark(mine.pid, "", mine.boot, mine.namespace), mine)
        assert is_gone(ProcessMark(2**22 + 1, "", mine.boot, mine.namespace), mine)

    def test_a_zombie_is_gone(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            mark = own_mark_of(process.pid)
            assert not is_gone(mark, own_mark())
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert is_gone(mark, own_mark())
        assert is_gone(mark, own_mark())


def own_mark_of(pid: int) -> ProcessMark:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    mine = own_mark()
    return ProcessMark(pid, fields[19], mine.boot, mine.namespace)
