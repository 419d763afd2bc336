"""A request is freed when it is over, and not by the garbage collector: its pauses would be everybody's."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from tokenmill.protocol.ids import Role

from .conftest import Plant

REQUESTS = 8


@pytest.fixture
def kept_garbage() -> Iterator[list[object]]:
    """What the collector finds from the second look on; the first one is the test's to ask for."""
    gc.collect()
    gc.disable()
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"n": 2, "stop": "wör"}])
async def test_requests_leave_no_cycles(
    plant: Plant, kept_garbage: list[object], split: bool, fields: dict[str, object]
) -> None:
    if split:
        await plant.worker("p1", role=Role.PREFILL)
        await plant.worker("d1", role=Role.DECODE)
    else:
        await plant.worker("b1")
    for _ in range(3):
        assert (await plant.chat(**fields)).status == 200
    await asyncio.sleep(0)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    for _ in range(REQUESTS):
        assert (await plant.chat(**fields)).status == 200
    await asyncio.sleep(0)
    gc.collect()
    ours = [each for each in kept_garbage if type(each).__module__.startswith("tokenmill.serve.frontend")]
    assert not ours
