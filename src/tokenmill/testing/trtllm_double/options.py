"""The double's command line and options file, as strict as ``trtllm-serve``'s. No I/O but reading the file.

What only the double has comes by the variable ``TRTLLM_DOUBLE``, a JSON object with the fields of ``Quirks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import yaml

VARIABLE = "TRTLLM_DOUBLE"


class Quirks(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How this double differs from another one.

    ``old``: an early version: no ids of the orchestrator's, and a decode's stream leaves the first token out.
    ``vocab``: tokens are drawn from 8 up to it. ``end_id`` comes at output position ``end_at`` (-1: never),
    as a token or, with ``hides_end``, without one. ``step_ms``: of one iteration. ``quiet_ms``: how long an
    answer with events is held back. ``prometheus``: metrics are told there, and no iterations.
    ``events_lost``: every so many events one is lost. ``text_only``: token ids are never told.
    ``no_openapi``: nor are its fields.
    """

    old: bool = False
    version: str = "1.2.0"
    vocab: int = 256
    end_id: int = 256
    end_at: int = -1
    hides_end: bool = False
    step_ms: float = 1.0
    quiet_ms: float = 0.0
    prometheus: bool = False
    text_only: bool = False
    no_openapi: bool = False
    mute: bool = False
    """The load is never told."""
    events_lost: int = 0


class CacheOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``kv_cache_config``."""

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = None
    max_gpu_total_bytes: int = 0
    host_cache_size: int | None = None
    event_buffer_max_size: int = 0
    tokens_per_block: int = 32
    dtype: str = "auto"
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True


class TransceiverOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``cache_transceiver_config``."""

    backend: str | None = None
    transceiver_runtime: str | None = None
    max_tokens_in_buffer: int | None = None
    kv_transfer_timeout_ms: int | None = None


class EngineOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The options file; those options of ``LlmArgs`` that a worker may write."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    moe_expert_parallel_size: int | None = None
    enable_attention_dp: bool = False
    max_batch_size: int = 2048
    max_num_tokens: int = 8192
    max_seq_len: int | None = None
    dtype: str = "auto"
    enable_iter_perf_stats: bool = False
    return_perf_metrics: bool = False
    disable_overlap_scheduler: bool = False
    enable_chunked_prefill: bool = False
    trust_remote_code: bool = False
    kv_cache_config: CacheOptions = msgspec.field(default_factory=CacheOptions)
    cache_transceiver_config: TransceiverOptions | None = None


class CommandLine(msgspec.Struct, kw_only=True):
    """What the double was started with."""

    model: str
    host: str
    port: int
    engine: EngineOptions
    quirks: Quirks


class BadUsage(Exception):
    """The command line is wrong: exit status 2."""


_VALUES = (
    *("host", "port", "tokenizer", "custom_tokenizer", "backend", "log_level", "max_beam_width"),
    *("max_batch_size", "max_num_tokens", "max_seq_len", "tp_size", "pp_size", "ep_size", "cluster_size"),
    *("gpus_per_node", "kv_cache_free_gpu_memory_fraction", "num_postprocess_workers", "chat_template"),
    *("extra_llm_api_options", "config", "reasoning_parser", "tool_parser", "server_role"),
)
_FLAGS = ("trust_remote_code", "enable_chunked_prefill")
_TO_FILE = {"tp_size": "tensor_parallel_size", "pp_size": "pipeline_parallel_size"}
_BACKENDS = ("DEFAULT", "UCX", "NIXL", "MOONCAKE", "MPI")


def read_command_line(words: Sequence[str], environment: Mapping[str, str]) -> CommandLine:
    """Return what ``serve MODEL [--option value]...`` means. Raises BadUsage."""
    rest = list(words)
    if rest[:1] != ["serve"]:
        raise BadUsage("Usage: trtllm-serve serve [OPTIONS] MODEL")
    given: dict[str, str] = {}
    models: list[str] = []
    rest.pop(0)
    while rest:
        word = rest.pop(0)
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            models.append(word)
        elif name in _FLAGS:
            given[name] = "true"
        elif name not in _VALUES:
            raise BadUsage(f"Error: No such option: --{name}")
        elif not value and not rest:
            raise BadUsage(f"Error: Option '--{name}' requires an argument.")
        else:
            given[name] = value or rest.pop(0)
    if len(models) != 1:
        raise BadUsage(
            "Error: Missing argument 'MODEL'." if not models else "Error: Got unexpected arguments"
        )
    try:
        quirks = msgspec.json.decode(environment.get(VARIABLE) or "{}", type=Quirks)
        port = int(given.get("port", "8000"))
    except (ValueError, msgspec.DecodeError) as error:
        raise BadUsage(f"Error: {error}") from error
    return CommandLine(
        model=models[0],
        host=given.get("host", "localhost"),
        port=port,
        engine=_engine_options(given),
        quirks=quirks,
    )


def _engine_options(given: Mapping[str, str]) -> EngineOptions:
    """The file wins over the command line."""
    names = ("max_batch_size", "max_num_tokens", "max_seq_len", "tp_size", "pp_size")
    content: dict[str, object] = {
        _TO_FILE.get(name, name): int(given[name]) for name in names if name in given
    }
    file = given.get("extra_llm_api_options") or given.get("config")
    if file:
        content |= yaml.safe_load(Path(file).read_text("utf-8")) or {}
    try:
        options = msgspec.convert(content, EngineOptions)
    except msgspec.ValidationError as error:
        raise BadUsage(f"Error: LlmArgs: {error}") from error
    transceiver = options.cache_transceiver_config
    if transceiver is not None and transceiver.backend not in (None, *_BACKENDS):
        raise BadUsage(f"Error: cache_transceiver_config.backend: {transceiver.backend!r} is none")
    return options
