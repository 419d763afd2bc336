"""From the sender's layout to ours: which bytes go where when block sizes, block tables or dtypes differ.

On the wire, tokens are in the sender's dtype, plane by plane, without regard to blocks. It must not know how
bytes travel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tokenmill.errors import ConfigError, HandoffFailed
from tokenmill.serve.transfer.base import KvLayout, KvMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "bytes": 1}

Run = tuple[int, int]
"""(first slot, tokens): consecutive tokens of a plane. Slot: ``block * block_tokens`` + token in it."""


def check_convertible(source: KvLayout, target: KvLayout) -> None:
    """Raise HandoffFailed, naming both layouts, unless ``source`` can be turned into ``target``.

    Raises ConfigError when that takes numpy and it is not installed.
    """
    known = source.dtype in _ITEM_BYTES and target.dtype in _ITEM_BYTES
    floats = "bytes" not in {source.dtype, target.dtype} or source.dtype == target.dtype
    if (
        not known
        or not floats
        or source.planes != target.planes
        or source.token_bytes * _ITEM_BYTES[target.dtype] != target.token_bytes * _ITEM_BYTES[source.dtype]
    ):
        raise HandoffFailed(
            f"a KV cache of {source} cannot be turned into {target}: planes and elements a token must be "
            "equal, and both be floats or both be bytes; run one model on both stages"
        )
    if source.dtype != target.dtype:
        _numpy(source.dtype, target.dtype)


def runs(layout: KvLayout, blocks: Sequence[int], first: int, last: int) -> list[Run]:
    """Return where tokens ``first`` .. ``last`` lie in a plane, neighbouring blocks as one run."""
    size = layout.block_tokens
    found: list[Run] = []
    end = -1
    while first < last:
        index, inside = divmod(first, size)
        count = min(size - inside, last - first)
        slot = blocks[index] * size + inside
        if slot == end:
            found[-1] = (found[-1][0], found[-1][1] + count)
        else:
            found.append((slot, count))
        end = slot + count
        first += count
    return found


def paired(source: Sequence[Run], target: Sequence[Run]) -> list[tuple[int, int, int]]:
    """Cut two lists of runs at each other's ends: (source slot, target slot, tokens), covering both."""
    pairs: list[tuple[int, int, int]] = []
    rest, target_slot, target_left = iter(target), 0, 0
    for source_slot, source_count in source:
        slot, left = source_slot, source_count
        while left:
            if not target_left:
                target_slot, target_left = next(rest)
            count = min(left, target_left)
            pairs.append((slot, target_slot, count))
            slot, left = slot + count, left - count
            target_slot, target_left = target_slot + count, target_left - count
    return pairs


def views(
    memory: KvMemory, blocks: Sequence[int], first: int, last: int, *, planes: range, max_bytes: int
) -> Iterator[memoryview]:
    """Yield tokens ``first`` .. ``last`` of ``planes`` in wire order, in pieces of at most ``max_bytes``.

    Pieces are the memory itself where it has a region (writable, straight to receive into), else copies.
    """
    layout, region = memory.layout, memory.region
    if region is None:
        yield from _read_pieces(memory, blocks, first, last, planes)
        return
    plane_bytes = memory.blocks * layout.block_bytes
    size = layout.token_bytes
    spans = [(slot * size, (slot + count) * size) for slot, count in runs(layout, blocks, first, last)]
    for plane in planes:
        plane_start = plane * plane_bytes
        for begin, end in spans:
            for at in range(plane_start + begin, plane_start + end, max_bytes):
                yield region[at : min(at + max_bytes, plane_start + end)]


def _read_pieces(
    memory: KvMemory, blocks: Sequence[int], first: int, last: int, planes: range
) -> Iterator[memoryview]:
    layout = memory.layout
    for plane in planes:
        at = first
        while at < last:
            index, inside = divmod(at, layout.block_tokens)
            count = min(layout.block_tokens - inside, last - at)
            data = memory.read(plane, blocks[index], inside + count)
            yield memoryview(data)[inside * layout.token_bytes :]
            at += count


def place(
    memory: KvMemory, blocks: Sequence[int], plane: int, first: int, data: memoryview, dtype: str
) -> None:
    """Write consecutive tokens from ``first`` on, given in ``dtype``, into one plane of ``blocks``."""
    layout = memory.layout
    converted = data if dtype == layout.dtype else convert(data, dtype, layout.dtype)
    at, offset = first, 0
    while offset < converted.nbytes:
        index, inside = divmod(at, layout.block_tokens)
        count = min(layout.block_tokens - inside, (converted.nbytes - offset) // layout.token_bytes)
        size = count * layout.token_bytes
        memory.write(plane, blocks[index], converted[offset : offset + size], inside)
        at, offset = at + count, offset + size


def convert(data: bytes | memoryview, source: str, target: str) -> memoryview:
    """Turn elements of one float dtype into another, rounding to nearest even; NaN stays NaN.

    Needs numpy: raises ConfigError without it.
    """
    if source == target:
        return memoryview(data)
    numpy = _numpy(source, target)
    with numpy.errstate(over="ignore", invalid="ignore"):
        wide = _WIDEN[source](numpy, data)
        return memoryview(_NARROW[target](numpy, wide)).cast("B")


def _widen_bfloat16(numpy: Any, data: bytes | memoryview) -> NDArray[np.float32]:
    bits: NDArray[np.uint32] = numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16
    return bits.view(numpy.float32)


def _narrow_bfloat16(numpy: Any, wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits: NDArray[np.uint32] = wide.view(numpy.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # wraps only for NaN
    quiet_nan = (bits >> 16) | 0x40
    narrow: NDArray[np.uint16] = numpy.where(numpy.isnan(wide), quiet_nan, rounded).astype(numpy.uint16)
    return narrow


_WIDEN: dict[str, Callable[[Any, bytes | memoryview], Any]] = {
    "float32": lambda numpy, data: numpy.frombuffer(data, numpy.float32),
    "float16": lambda numpy, data: numpy.frombuffer(data, numpy.float16).astype(numpy.float32),
    "bfloat16": _widen_bfloat16,
}
_NARROW: dict[str, Callable[[Any, Any], Any]] = {
    "float32": lambda _, wide: wide,
    "float16": lambda numpy, wide: wide.astype(numpy.float16),
    "bfloat16": _narrow_bfloat16,
}


def _numpy(source: str, target: str) -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError as error:
        raise ConfigError(
            f"turning a {source} KV cache into {target} needs numpy: pip install numpy, or use one dtype"
        ) from error
