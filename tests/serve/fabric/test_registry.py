"""What every registry driver must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmill.errors import ConfigError, DeadlineExceeded, ServiceError
from tokenmill.serve.fabric.registry import SYNCED, Change, Registry, Watch, open_registry

WAIT_S = 5.0


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"file://{tmp_path}/registry%20folder"


@pytest.fixture
async def registry(url: str) -> AsyncIterator[Registry]:
    registry = open_registry(url)
    await registry.start()
    yield registry
    await registry.stop()
    assert len(asyncio.all_tasks()) == 1, "tasks left behind"


async def following(watch: Watch) -> Change:
    async with asyncio.timeout(WAIT_S):
        return await anext(watch)


async def until_synced(watch: Watch) -> list[Change]:
    found = []
    while (change := await following(watch)).key != SYNCED:
        found.append(change)
    return found


class TestKeys:
    async def test_put_get_list_delete(self, registry: Registry) -> None:
        assert await registry.get("a/1") is None
        await registry.put("a/1", b"one")
        await registry.put("a/2", b"")
        await registry.put("b/1", b"other\nline")
        await registry.put("a/1", b"uno")
        assert await registry.get("a/1") == b"uno"
        assert await registry.list("a/") == {"a/1": b"uno", "a/2": b""}
        assert list(await registry.list("")) == ["a/1", "a/2", "b/1"]
        assert await registry.list("c") == {}
        assert await registry.delete("a/1") is True
        assert await registry.delete("a/1") is False
        assert await registry.get("a/1") is None

    @pytest.mark.parametrize(
        "key",
        [
            "/",
            "..",
            "../../etc/passwd",
            ".",
            "a b%2F",
            "ü/日本語",
            "new\nline",
            "x" * 512,
            "/" * 512,
            "k.a",
            "%",
        ],
    )
    async def test_any_text_is_a_key(self, registry: Registry, key: str) -> None:
        await registry.put(key, b"value")
        assert await registry.get(key) == b"value"
        assert await registry.list(key) == {key: b"value"}
        assert await registry.delete(key)
        assert await registry.list("") == {}

    @pytest.mark.parametrize("key", ["", "a\0b", "x" * 513, "ü" * 257, "\ud800"])
    async def test_but_not_these(self, registry: Registry, key: str) -> None:
        for act in (
            registry.put(key, b""),
            registry.get(key),
            registry.delete(key),
            registry.compare_and_swap(key, None, b""),
        ):
            with pytest.raises(ConfigError, match="registry key"):
                await act

    async def test_values_have_a_limit(self, registry: Registry) -> None:
        await registry.put("key", b"x" * 1024 * 1024)
        with pytest.raises(ConfigError, match="registry value"):
            await registry.put("key", b"x" * (1024 * 1024 + 1))
        with pytest.raises(ConfigError, match="registry value"):
            await registry.compare_and_swap("new", None, b"x" * (1024 * 1024 + 1))

    async def test_compare_and_swap(self, registry: Registry) -> None:
        assert not await registry.compare_and_swap("key", b"x", b"1")
        assert await registry.compare_and_swap("key", None, b"1")
        assert not await registry.compare_and_swap("key", None, b"2")
        assert await registry.compare_and_swap("key", b"1", b"2")
        assert await registry.get("key") == b"2"
        assert not await registry.compare_and_swap("key", b"1", None)
        assert await registry.compare_and_swap("key", b"2", None)
        assert await registry.compare_and_swap("key", None, None)
        assert await registry.get("key") is None

    async def test_concurrent_counting_loses_nothing(self, registry: Registry) -> None:
        async def add() -> None:
            for _ in range(10):
                while True:
                    before = await registry.get("count")
                    after = str(int(before or b"0") + 1).encode()
                    if await registry.compare_and_swap("count", before, after):
                        break

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(add())
        assert await registry.get("count") == b"40"


class TestLeases:
    async def test_revoking_deletes_its_keys_alone(self, registry: Registry) -> None:
        lease = await registry.lease(5.0)
        other = await registry.lease(5.0)
        assert lease.id != other.id
        assert lease.ttl_s == 5.0
        await registry.put("mine", b"1", lease=lease)
        await registry.compare_and_swap("mine too", None, b"1", lease=lease)
        await registry.put("theirs", b"1", lease=other)
        await registry.put("nobody's", b"1")
        await lease.revoke()
        await lease.revoke()
        assert list(await registry.list("")) == ["nobody's", "theirs"]
        assert not lease.lost

    async def test_a_later_put_takes_a_key_out_of_a_lease(self, registry: Registry) -> None:
        lease = await registry.lease(5.0)
        await registry.put("a", b"1", lease=lease)
        await registry.put("a", b"2")
        await lease.revoke()
        assert await registry.get("a") == b"2"

    async def test_a_lease_that_has_ended_takes_no_keys(self, registry: Registry) -> None:
        lease = await registry.lease(5.0)
        await lease.revoke()
        with pytest.raises(DeadlineExceeded, match="has ended"):
            await registry.put("a", b"1", lease=lease)
        with pytest.raises(DeadlineExceeded, match="has ended"):
            await registry.compare_and_swap("a", None, b"1", lease=lease)
        assert await registry.list("") == {}

    async def test_it_is_kept_alive(self, registry: Registry) -> None:
        lease = await registry.lease(0.3)
        await registry.put("a", b"1", lease=lease)
        await asyncio.sleep(1.0)
        assert await registry.get("a") == b"1"
        assert not lease.lost

    async def test_stop_revokes(self, registry: Registry) -> None:
        await registry.put("a", b"1", lease=await registry.lease(5.0))
        await registry.stop()
        await registry.stop()
        assert await registry.get("a") is None

    @pytest.mark.parametrize("ttl_s", [0, -1, float("inf"), float("nan")])
    async def test_ttl_is_a_duration(self, registry: Registry, ttl_s: float) -> None:
        with pytest.raises(ConfigError, match="ttl_s"):
            await registry.lease(ttl_s)


class TestWatch:
    async def test_present_keys_then_synced_then_changes(self, registry: Registry) -> None:
        await registry.put("w/1", b"1")
        await registry.put("w/2", b"2")
        await registry.put("x/1", b"3")
        async with registry.watch("w/") as watch:
            assert await until_synced(watch) == [Change("w/1", b"1"), Change("w/2", b"2")]
            await registry.put("w/3", b"3")
            assert await following(watch) == Change("w/3", b"3")
            await registry.put("w/1", b"one")
            assert await following(watch) == Change("w/1", b"one")
            await registry.delete("w/2")
            assert await following(watch) == Change("w/2", None)
            await registry.put("x/2", b"not watched")
            await registry.compare_and_swap("w/2", None, b"again")
            assert await following(watch) == Change("w/2", b"again")

    async def test_a_lease_that_ends_is_a_change(self, registry: Registry) -> None:
        lease = await registry.lease(5.0)
        async with registry.watch("") as watch:
            assert await until_synced(watch) == []
            await registry.put("a", b"1", lease=lease)
            assert await following(watch) == Change("a", b"1")
            await lease.revoke()
            assert await following(watch) == Change("a", None)

    async def test_a_slow_reader_gets_the_last_value(self, registry: Registry) -> None:
        async with registry.watch("") as watch, registry.watch("") as fast:
            await until_synced(watch)
            await until_synced(fast)
            for number in range(20):
                await registry.put("a", str(number).encode())
                assert await following(fast) == Change("a", str(number).encode())
            await registry.put("b", b"1")
            await following(fast)
            assert await following(watch) == Change("a", b"19")
            assert await following(watch) == Change("b", b"1")

    async def test_what_came_and_went_unread_leaves_no_trace(self, registry: Registry) -> None:
        async with registry.watch("") as watch, registry.watch("") as fast:
            await until_synced(watch)
            await until_synced(fast)
            for number in range(5):
                await registry.put(f"a{number}", b"1")
                await following(fast)
                await registry.delete(f"a{number}")
                assert await following(fast) == Change(f"a{number}", None)
            await registry.put("last", b"1")
            assert await following(watch) == Change("last", b"1")

    async def test_two_watches_are_told_apart(self, registry: Registry) -> None:
        async with registry.watch("a") as first, registry.watch("b") as second:
            await until_synced(first)
            await until_synced(second)
            await registry.put("b", b"2")
            await registry.put("a", b"1")
            assert await following(first) == Change("a", b"1")
            assert await following(second) == Change("b", b"2")

    async def test_a_cancelled_read_loses_nothing(self, registry: Registry) -> None:
        async with registry.watch("") as watch:
            await until_synced(watch)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(watch)
            await registry.put("a", b"1")
            assert await following(watch) == Change("a", b"1")

    async def test_stop_ends_the_iteration(self, registry: Registry) -> None:
        found = []

        async def read() -> None:
            async with registry.watch("") as watch:
                found.extend([change async for change in watch])

        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            group.create_task(read())
            await asyncio.sleep(0.1)
            await registry.stop()
        assert found == [Change(SYNCED, None)]

    async def test_after_stop_there_are_no_watches_and_no_leases(self, registry: Registry) -> None:
        await registry.put("a", b"1")
        await registry.stop()
        async with registry.watch("") as watch:
            assert [change async for change in watch] == [Change("a", b"1"), Change(SYNCED, None)]
        with pytest.raises(ServiceError, match="stopped"):
            await registry.lease(1.0)


keys = st.sampled_from(["a", "b", "a/b"])
values = st.sampled_from([b"", b"1", b"2"])
operations = st.one_of(
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("cas"), keys, st.none() | values, st.none() | values),
    st.tuples(st.just("put leased"), keys, values),
    st.tuples(st.just("revoke")),
)


@given(steps=st.lists(operations, max_size=12))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_behaves_like_a_dictionary(url: str, steps: list[Any]) -> None:
    asyncio.run(_compare_with_dictionary(url, steps))


async def _compare_with_dictionary(url: str, steps: list[Any]) -> None:
    registry = open_registry(url)
    await registry.start()
    for key in await registry.list(""):
        await registry.delete(key)
    model: dict[str, bytes] = {}
    leased: set[str] = set()
    lease = await registry.lease(30.0)
    async with _seen(registry) as seen:
        for step in steps:
            match step:
                case ("put", key, value):
                    await registry.put(key, value)
                    model[key] = value
                    leased.discard(key)
                case ("put leased", key, value):
                    await registry.put(key, value, lease=lease)
                    model[key] = value
                    leased.add(key)
                case ("delete", key):
                    assert await registry.delete(key) == (key in model)
                    model.pop(key, None)
                    leased.discard(key)
                case ("cas", key, expected, value):
                    swapped = await registry.compare_and_swap(key, expected, value)
                    assert swapped == (model.get(key) == expected)
                    if swapped:
                        leased.discard(key)
                        model.pop(key, None)
                        if value is not None:
                            model[key] = value
                case ("revoke",):
                    await lease.revoke()
                    lease = await registry.lease(30.0)
                    for key in leased:
                        del model[key]
                    leased.clear()
            assert await registry.list("") == dict(sorted(model.items()))
        async with asyncio.timeout(WAIT_S):
            while seen != model:
                await asyncio.sleep(0.005)
    await registry.stop()


@asynccontextmanager
async def _seen(registry: Registry) -> AsyncIterator[dict[str, bytes]]:
    """What a watch would make of it."""
    seen: dict[str, bytes] = {}

    async def read() -> None:
        async with registry.watch("") as watch:
            async for change in watch:
                if change.value is not None:
                    seen[change.key] = change.value
                elif change.key != SYNCED:
                    del seen[change.key]

    task = asyncio.create_task(read())
    try:
        yield seen
    finally:
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)


@pytest.mark.parametrize("url", ["", "memory://x", "file:", "file://host/folder", "etcd://a", "file:///"])
def test_unknown_registries_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match='"memory:" or "file:///folder"'):
        open_registry(url)
