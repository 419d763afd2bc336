"""From an engine's command-line options to a stage's fields. Plain functions over words.

What a stage has a field for goes there; what Tokenmill sets itself is dropped; all else goes to
``engine_args`` as it is. Read against vLLM 0.32, and Dynamo 1.3's wrappers of vLLM, SGLang and TensorRT-LLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tokenmill.spec.imports.shell import UNKNOWN

_OPTION: Final = re.compile(r"--?[A-Za-z]")

_NUMBERS: Final[Mapping[str, Mapping[str, str]]] = {
    "vllm": {
        "block_size": "block_tokens",
        "max_model_len": "max_model_len",
        "max_num_seqs": "max_sequences",
        "max_num_batched_tokens": "token_budget",
        "num_gpu_blocks_override": "kv_blocks",
    },
    "sglang": {
        "page_size": "block_tokens",
        "context_length": "max_model_len",
        "max_running_requests": "max_sequences",
    },
    "trtllm": {
        "kv_block_size": "block_tokens",
        "kv_cache_config.tokens_per_block": "block_tokens",
        "max_seq_len": "max_model_len",
        "max_batch_size": "max_sequences",
        "max_num_tokens": "token_budget",
    },
    "sim": {},
}
"""Options that are whole numbers, by engine, and the stage's fields for them."""

_RANKS: Final = {
    "tensor_parallel_size": "tp", "tp": "tp", "tp_size": "tp",
    "pipeline_parallel_size": "pp", "pp": "pp", "pp_size": "pp",
    "data_parallel_size": "dp", "dp": "dp", "dp_size": "dp",
    "expert_parallel_size": "ep", "ep": "ep", "ep_size": "ep", "moe_expert_parallel_size": "ep",
}  # fmt: skip

_OF_THE_FACTORY: Final = "the worker chooses how it reaches the engine"
_IN_A_FILE: Final = "the file is in the container; copy its settings to engine_args"
_DYNAMO: Final = "it is of Dynamo's own wrapper"

_FILES: Final = ("config", "extra_engine_args", "extra_llm_api_options")
"""Options that name a file with further ones."""

_DROPPED: Final = {
    "host", "port", "kv_events_config", "is_prefill_worker", "is_decode_worker", "disaggregation_mode",
    "disaggregation_strategy", "disaggregation_transfer_backend", "disaggregation_bootstrap_port",
    "skip_tokenizer_init", "publish_events_and_metrics", "enable_prefix_caching", "enable_attention_dp",
    "disable_overlap_scheduler", "kv_cache_config.enable_block_reuse", "enable_metrics",
    "incremental_streaming_output", "enable_iter_perf_stats",
}  # fmt: skip
"""What the role, or the worker, sets in any case."""

_LOST: Final = {
    "dyn_tool_call_parser": "tool calls are read as the chat template shows; or set the model's tool_parser",
    "dyn_reasoning_parser": "a factory has no setting for reasoning parsers",
    "dyn_chat_processor": _DYNAMO,
    "connector": "it names a KV connector of Dynamo's wrapper; Tokenmill sets the engine's own by role",
    "endpoint": _DYNAMO,
    "namespace": _DYNAMO,
    "migration_limit": "see migration.max_attempts",
    "request_plane": _DYNAMO,
    "discovery_backend": _DYNAMO,
    "frontend_decoding": _DYNAMO,
    "route_to_encoder": _DYNAMO,
    "enable_multimodal": _DYNAMO,
    "mm_prompt_template": _DYNAMO,
    "multimodal_embedding_cache_capacity_gb": _DYNAMO,
    "extra_engine_args": _IN_A_FILE,
    "extra_llm_api_options": _IN_A_FILE,
    "disable_log_requests": "vLLM has no such option any more",
    "data_parallel_hybrid_lb": "one worker has one engine on one machine",
    "data_parallel_rpc_port": "one worker has one engine on one machine",
    "config": _IN_A_FILE,
    "uds": _OF_THE_FACTORY,
    "headless": "one worker has one engine on one machine",
    "disable_log_stats": "the worker reads the engine's metrics",
    "api_key": "a key does not belong in a file",
}
"""Options that are not carried over, and why."""

_SWITCHES: Final = {"true", "false"}

PARSED_BY_NAME: Final = {"model", "model_path", "model_name", "served_model_name"}


@dataclass
class Drafted:
    """What an engine's options say. ``role``: "prefill", "decode", "both", or "" where they don't tell.
    ``losses``: an option and why it is not carried over."""

    model: str = ""
    served: str = ""
    role: str = ""
    fields: dict[str, object] = field(default_factory=dict)
    parallel: dict[str, int] = field(default_factory=dict)
    engine_args: dict[str, str] = field(default_factory=dict)
    losses: list[tuple[str, str]] = field(default_factory=list)


def read_options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split words into those that stand alone and options by name, "_" for "-"; a switch is "true".

    An option that is given twice has its last value.
    """
    alone: list[str] = []
    options: dict[str, str] = {}
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not _OPTION.match(word):
            alone.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and index < len(words) and not _OPTION.match(words[index]):
            value = words[index]
            index += 1
        elif not equals:
            value = "true"
        options[name.replace("-", "_")] = value
    return alone, options


def draft(engine: str, words: list[str], files: Callable[[str], dict[str, str] | None]) -> Drafted:
    """Return what the words after an engine's program say. ``files``: a file's options, where it is known."""
    alone, options = read_options(words)
    for name in _FILES:
        if (more := files(options.get(name, ""))) is not None:
            del options[name]
            # TensorRT-LLM lets the file win, all others the command line.
            options = {**options, **more} if engine == "trtllm" else {**more, **options}
    drafted = Drafted(model=alone[0] if alone else "")
    for name, value in options.items():
        if UNKNOWN in value:
            drafted.losses.append((name, "its value is known only in the container"))
        else:
            _read(engine, name, value, drafted)
    drafted.role = drafted.role or _role(options)
    if options.get("enable_attention_dp") == "true":
        drafted.parallel = {**drafted.parallel, "tp": 1, "dp": drafted.parallel.get("tp", 1)}
    return drafted


def _read(engine: str, name: str, value: str, drafted: Drafted) -> None:
    number = _NUMBERS[engine].get(name)
    if name in PARSED_BY_NAME:
        if name in ("model", "model_path"):
            drafted.model = value
        else:
            drafted.served = value
    elif name in _RANKS and value.isdecimal():
        drafted.parallel[_RANKS[name]] = int(value)
    elif number is not None and value.isdecimal():
        drafted.fields[number] = int(value)
    elif name == "enable_expert_parallel":
        drafted.parallel["ep"] = -1
    elif name == "dtype":
        drafted.fields["dtype"] = value
    elif name in ("no_enable_prefix_caching", "disable_radix_cache"):
        drafted.fields["prefix_cache"] = False
    elif name == "kv_transfer_config":
        _read_transfer(value, drafted)
    elif name in _LOST:
        drafted.losses.append((name, _LOST[name]))
    elif name in _DROPPED:
        if name in ("enable_prefix_caching", "kv_cache_config.enable_block_reuse") and value == "false":
            drafted.fields["prefix_cache"] = False
    elif engine == "sim":
        _read_mocker(name, value, drafted)
    elif value.startswith("/"):
        drafted.losses.append((name, f"{value} is in the container; set it in engine_args where you have it"))
    elif name.startswith("no_") and value == "true":
        drafted.engine_args[name.removeprefix("no_")] = "false"
    else:
        drafted.engine_args[name] = value


def _read_mocker(name: str, value: str, drafted: Drafted) -> None:
    if name == "speedup_ratio":
        drafted.engine_args["speedup"] = value
    else:
        drafted.losses.append((name, "the simulated engine has no such setting"))


def _read_transfer(text: str, drafted: Drafted) -> None:
    """Drop a KV connector that the role sets anyway; keep one that says more; lose others."""
    try:
        config = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.MsgspecError:
        drafted.losses.append(("kv_transfer_config", "is no JSON object"))
        return
    role = {"kv_producer": "prefill", "kv_consumer": "decode"}.get(str(config.get("kv_role")), "")
    drafted.role = drafted.role or role
    if config.get("kv_connector") != "NixlConnector":
        other = config.get("kv_connector")
        why = f"Tokenmill does not hand over through {other}; it sets NixlConnector by role"
        drafted.losses.append(("kv_transfer_config", why))
    elif set(config) - {"kv_connector", "kv_role"}:
        drafted.engine_args["kv_transfer_config"] = text


def _role(options: Mapping[str, str]) -> str:
    """Return the role that the options name, "" where they do not."""
    if "is_prefill_worker" in options:
        return "prefill"
    if "is_decode_worker" in options:
        return "decode"
    mode = options.get("disaggregation_mode", "")
    if mode in ("prefill", "decode"):
        return mode
    return "both" if mode else ""
