"""Where the cache lies: in a memory file made in vLLM's place, or in tensors wherever they are."""

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.memory import HostKvMemory

torch = pytest.importorskip("torch")

from tokenmill.serve.engines.vllm.connector.memory import (  # noqa: E402
    SharedAllocation,
    TensorPages,
    memory_of,
)

LAYOUT = KvLayout(planes=2, block_tokens=1, token_bytes=64, dtype="bytes")
BLOCKS = 8
SIZE = 2 * 8 * 64


def allocated() -> tuple[SharedAllocation, "torch.Tensor"]:
    with SharedAllocation(LAYOUT, BLOCKS) as allocation:
        cache = torch.zeros(SIZE, dtype=torch.int8, device=torch.device("cpu"))
    return allocation, cache


def test_the_cache_is_made_in_shared_memory() -> None:
    allocation, cache = allocated()
    view = cache.view(torch.bfloat16).view(2, 8, 32)
    memory = memory_of(allocation, LAYOUT, BLOCKS, {"layer": view})
    assert isinstance(memory, HostKvMemory)
    assert not cache.any()
    view[1, 3] = 1.5
    assert (
        memory.read(1, 3, 1)
        == torch.full((32,), 1.5, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    )
    memory.write(0, 7, bytes(range(64)))
    assert cache.view(torch.uint8)[7 * 64 : 8 * 64].tolist() == list(range(64))
    memory.close()
    view[0, 0] = 2.0  # tensors outlive it
    assert cache.any()


def test_other_tensors_are_not_touched() -> None:
    with SharedAllocation(LAYOUT, BLOCKS) as allocation:
        small = torch.zeros(SIZE - 1, dtype=torch.int8)
        shaped = torch.zeros((2, 8, 64), dtype=torch.int8)
        ones = torch.ones(SIZE)
        elsewhere = torch.zeros(SIZE, dtype=torch.int8, device="meta")
    assert allocation.memory is None
    assert (small.numel(), shaped.numel(), int(ones.sum())) == (SIZE - 1, SIZE, SIZE)
    assert elsewhere.device.type == "meta"


def test_only_the_first_is_made_there() -> None:
    with SharedAllocation(LAYOUT, BLOCKS) as allocation:
        first = torch.zeros(SIZE, dtype=torch.int8)
        second = torch.zeros(SIZE, dtype=torch.int8)
    assert allocation.memory is not None
    second.fill_(1)
    assert not first.any()
    allocation.memory.close()


def test_a_cache_that_vllm_has_made_is_copied_out_and_in() -> None:
    cache = torch.arange(SIZE, dtype=torch.int16).to(torch.uint8)
    memory = memory_of(None, LAYOUT, BLOCKS, {"layer": cache.view(2, 8, 64)[0]})  # a layer shows a part of it
    assert isinstance(memory, TensorPages)
    assert memory.region is None
    assert memory.fd is None
    assert memory.read(1, 2, 1) == cache[8 * 64 + 2 * 64 :][:64].numpy().tobytes()
    memory.write(1, 2, b"x" * 64)
    assert cache[8 * 64 + 2 * 64 :][:64].tolist() == [ord("x")] * 64
    assert cache[8 * 64 + 3 * 64 :][:64].tolist() == [value % 256 for value in range(11 * 64, 12 * 64)]


def test_a_cache_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="1023 bytes"):
        memory_of(None, LAYOUT, BLOCKS, {"layer": torch.zeros(SIZE - 1, dtype=torch.int8)})
