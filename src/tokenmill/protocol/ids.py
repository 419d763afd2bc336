"""Names that must not be mixed up."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

RequestId = NewType("RequestId", str)
"""One sequence at one worker. A client's request with ``n=2`` becomes two of them."""

WorkerId = NewType("WorkerId", str)
"""One engine replica for as long as its process lives; a restarted worker gets a new one."""

BlockHash = NewType("BlockHash", int)
"""Unsigned 64-bit chained hash: it names a block's tokens and all tokens before them."""


class Role(StrEnum):
    """Which stage a worker serves."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"
