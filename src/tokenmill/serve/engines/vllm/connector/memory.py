"""Where vLLM's KV cache lies: in memory of ours that other processes can map, or where vLLM has put it.

Runs in vLLM's environment, with its torch. It must not know requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.overrides import TorchFunctionMode

from tokenmill.errors import ConfigError
from tokenmill.serve.transfer.base import KvLayout, KvMemory
from tokenmill.serve.transfer.memory import HostKvMemory


class SharedAllocation(TorchFunctionMode):
    """While it is entered, vLLM's one allocation for the cache on a CPU is made in a memory file.

    ``memory`` is what was allocated, None if nothing was.
    """

    def __init__(self, layout: KvLayout, blocks: int) -> None:
        super().__init__()
        self._layout = layout
        self._blocks = blocks
        self.memory: HostKvMemory | None = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Let everything pass but a tensor of zeros as large as the cache."""
        given = dict(kwargs or {})
        size = self._layout.planes * self._blocks * self._layout.block_bytes
        on_cpu = torch.device(str(given.get("device") or "cpu")).type == "cpu"
        if func is torch.zeros and on_cpu and self.memory is None and _elements(args) == size:
            self.memory = HostKvMemory(self._layout, self._blocks)
            return torch.frombuffer(self.memory.region, dtype=given.get("dtype"))  # type: ignore[arg-type]
        return func(*args, **given)


class TensorPages:
    """Implements ``KvMemory`` over the storage of vLLM's tensors, wherever it is, page by page.

    Reads and writes wait for themselves alone: who reads knows that the pages have been written.
    """

    region: memoryview | None = None
    fd: int | None = None

    def __init__(self, layout: KvLayout, blocks: int, cache: torch.Tensor) -> None:
        self.layout = layout
        self.blocks = blocks
        storage = cache.untyped_storage()
        size = layout.planes * blocks * layout.block_bytes
        if storage.nbytes() < size:
            raise ConfigError(f"the KV cache has {storage.nbytes()} bytes, {size} were expected: use nixl")
        flat = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(storage)
        self._pages = flat[:size].view(layout.planes, blocks, layout.block_bytes)

    def read(self, plane: int, block: int, tokens: int) -> bytes:
        """See ``KvMemory.read``."""
        return self._pages[plane, block, : tokens * self.layout.token_bytes].cpu().numpy().tobytes()

    def write(self, plane: int, block: int, data: bytes | memoryview, first_token: int = 0) -> None:
        """See ``KvMemory.write``."""
        given = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        start = first_token * self.layout.token_bytes
        self._pages[plane, block, start : start + len(given)].copy_(given)


def memory_of(
    allocated: SharedAllocation | None, layout: KvLayout, blocks: int, caches: Mapping[str, torch.Tensor]
) -> KvMemory:
    """Return the memory that vLLM's ``caches`` lie in."""
    cache = next(iter(caches.values()))
    shared = allocated.memory if allocated is not None else None
    if shared is not None and _address(shared) == cache.untyped_storage().data_ptr():
        return shared
    return TensorPages(layout, blocks, cache)


def _address(memory: HostKvMemory) -> int:
    return torch.frombuffer(memory.region, dtype=torch.int8).data_ptr()


def _elements(args: Sequence[object]) -> int:
    """Return how many elements ``torch.zeros(*args)`` has, -1 where it is not asked for in one number."""
    return args[0] if len(args) == 1 and isinstance(args[0], int) else -1
