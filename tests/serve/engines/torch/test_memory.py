"""Device memory, on the only device that every machine has."""

import torch

from tokenmill.serve.engines.torch.memory import CudaKvMemory
from tokenmill.serve.transfer.base import KvLayout


def test_read_gives_what_write_and_the_device_put_there():
    layout = KvLayout(planes=2, block_tokens=4, token_bytes=6, dtype="bfloat16")
    memory = CudaKvMemory(layout, 3, torch.bfloat16, torch.device("cpu"))
    data = bytes(range(12))
    memory.write(1, 2, memoryview(data), first_token=1)
    assert memory.read(1, 2, 4) == bytes(6) + data + bytes(6)
    assert memory.read(1, 2, 2) == bytes(6) + data[:6]
    memory.storage[0, 1] = 1.0
    assert memory.read(0, 1, 1) == b"\x80\x3f" * 3
    assert memory.region is None
    memory.close()
