"""What a worker is told of an engine that is a server of its own, whichever it is.

It must not know one engine's flags.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tokenmill.protocol.ids import Role

LOOPBACK = "127.0.0.1"


class Parallelism(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks: tensor, pipeline, data (of the attention), and those that share the experts."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``attach``: address of a running server; else one is launched. 0 leaves the server's own default.

    ``engine_args``: names as the server's, with "_" or "-". ``max_sequences``: of one data-parallel rank.
    """

    model: str
    model_name: str
    role: Role
    attach: str = ""
    api_key: str = ""
    engine_python: str = ""
    engine_command: str = ""
    engine_args: Mapping[str, str] = {}
    engine_env: Mapping[str, str] = {}
    parallel: Parallelism = Parallelism()
    run_dir: str = ""
    start_timeout_s: float = 1800.0
    block_tokens: int = 0
    kv_blocks: int = 0
    kv_memory_mb: int = 0
    max_model_len: int = 0
    max_sequences: int = 256
    max_waiting: int = 1024
    token_budget: int = 0
    dtype: str = "auto"
    prefix_cache: bool = True
