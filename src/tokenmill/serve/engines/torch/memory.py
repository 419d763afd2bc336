"""KV memory on a CUDA device, staged through pinned host memory for transports. Knows no attention."""

from __future__ import annotations

import torch

from tokenmill.serve.transfer.base import KvLayout


class CudaKvMemory:
    """Implements ``KvMemory`` with a device tensor ``storage`` of [planes, blocks, block_tokens, elements].

    Copies wait for the device's work so far, so that a read sees what a finished step wrote.
    """

    region: memoryview | None = None
    fd: int | None = None

    def __init__(self, layout: KvLayout, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layout = layout
        self.blocks = blocks
        elements = layout.token_bytes // dtype.itemsize
        self.storage = torch.zeros(
            (layout.planes, blocks, layout.block_tokens, elements), dtype=dtype, device=device
        )
        self._bytes = self.storage.view(torch.uint8)
        self._staging = torch.empty(
            (layout.block_tokens, layout.token_bytes), dtype=torch.uint8, pin_memory=device.type == "cuda"
        )

    def read(self, plane: int, block: int, tokens: int) -> bytes:
        """See ``KvMemory.read``."""
        staged = self._staging[:tokens]
        staged.copy_(self._bytes[plane, block, :tokens])
        return staged.numpy().tobytes()

    def write(self, plane: int, block: int, data: bytes | memoryview, first_token: int = 0) -> None:
        """See ``KvMemory.write``."""
        given = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, self.layout.token_bytes)
        staged = self._staging[: len(given)]
        staged.copy_(given)
        self._bytes[plane, block, first_token : first_token + len(given)].copy_(staged)

    def close(self) -> None:
        """Give the device memory back once no tensor refers to it."""
        self.storage = self._bytes = self._staging = torch.empty(0)
