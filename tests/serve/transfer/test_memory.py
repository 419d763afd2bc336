"""Host KV memory: reading, writing, bounds, and how it ends."""

import os
from pathlib import Path

import numpy as np
import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.memory import HostKvMemory

LAYOUT = KvLayout(planes=2, block_tokens=4, token_bytes=8, dtype="float32")


def mappings():
    return Path("/proc/self/maps").read_text().count("tokenmill-kv")


@pytest.fixture(params=[False, True], ids=["lazy", "prefault"])
def memory(request):
    memory = HostKvMemory(LAYOUT, 3, prefault=request.param)
    yield memory
    memory.close()


def test_is_zero_at_first_and_as_large_as_the_layout_says(memory):
    assert bytes(memory.region) == bytes(2 * 3 * 32)


def test_reads_what_was_written_and_nothing_beside(memory):
    memory.write(1, 2, b"x" * 16, first_token=2)
    assert memory.read(1, 2, 4) == bytes(16) + b"x" * 16
    assert bytes(memory.region) == bytes((3 + 2) * 32 + 16) + b"x" * 16


def test_the_descriptor_leads_to_the_same_bytes(memory):
    memory.write(0, 1, b"seen")
    assert os.pread(memory.fd, 4, 32) == b"seen"


@pytest.mark.parametrize(
    ("plane", "block", "first_token", "size"),
    [(2, 0, 0, 1), (-1, 0, 0, 1), (0, 3, 0, 1), (0, 0, 4, 1), (0, 0, 0, 33), (0, 0, -1, 1)],
)
def test_writing_out_of_bounds_is_refused(memory, plane, block, first_token, size):
    with pytest.raises(IndexError):
        memory.write(plane, block, bytes(size), first_token)
    assert not any(memory.region)


def test_reading_out_of_bounds_is_refused(memory):
    with pytest.raises(IndexError):
        memory.read(0, 0, 5)


@pytest.mark.parametrize("blocks", [0, -1, 1 << 58])
def test_impossible_sizes_are_the_users_error(blocks):
    with pytest.raises(ConfigError, match="blocks"):
        HostKvMemory(LAYOUT, blocks)


def test_close_unmaps_when_nobody_looks_and_may_be_repeated():
    before = mappings()
    memory = HostKvMemory(LAYOUT, 3)
    assert mappings() == before + 1
    memory.close()
    memory.close()
    assert mappings() == before
    with pytest.raises(ValueError, match="closed"):
        memory.region  # noqa: B018
    with pytest.raises(ValueError, match="closed"):
        memory.fd  # noqa: B018


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_tensor_outlives_close(library):
    before = mappings()
    memory = HostKvMemory(LAYOUT, 3)
    if library == "numpy":
        tensor = np.frombuffer(memory.region, np.float32)
    else:
        torch = pytest.importorskip("torch")
        tensor = torch.frombuffer(memory.region, dtype=torch.float32)
    memory.close()
    tensor[:] = 7
    assert float(tensor.sum()) == 7 * len(tensor)
    assert mappings() == before + 1
    del tensor
    assert mappings() == before
