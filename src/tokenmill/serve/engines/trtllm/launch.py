"""What ``trtllm-serve`` is told for a worker's role: words of its command line and its options file. Plain
functions: settings in, words out.

Read against TensorRT-LLM's public source (``commands/serve.py``, ``llmapi/llm_args.py``). The options file
wins over the command line there, so that nearly everything stands in it. What the role needs is set here;
what the user says wins, unless the worker could not do its work with it.
"""

from __future__ import annotations

import yaml

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.options import Parallelism, ServerOptions

OURS = {
    "host": "the worker chooses it, so that nobody else reaches the engine; use attach for one of your own",
    "port": "the worker chooses it, so that replicas do not collide; use attach for a server of your own",
    "tp_size": "write parallel: {tp: N}",
    "tensor_parallel_size": "write parallel: {tp: N}",
    "pp_size": "write parallel: {pp: N}",
    "pipeline_parallel_size": "write parallel: {pp: N}",
    "ep_size": "write parallel: {ep: N}",
    "moe_expert_parallel_size": "write parallel: {ep: N}",
    "enable_attention_dp": "write parallel: {dp: N}",
    "server_role": "it follows role",
    "metadata_server_config_file": "the worker announces the engine; write registry in the factory file",
    "disagg_cluster": "the worker announces the engine; write registry in the factory file",
    "disagg_cluster_uri": "the worker announces the engine; write registry in the factory file",
    "extra_llm_api_options": "write its options into engine_args, nested ones as a.b: value",
    "config": "write its options into engine_args, nested ones as a.b: value",
}
"""Options that ``engine_args`` may not set, and why."""

COMMAND_LINE = frozenset(
    (
        "backend",
        "tokenizer",
        "custom_tokenizer",
        "log_level",
        "reasoning_parser",
        "tool_parser",
        "chat_template",
    )
)
"""Options of the command line alone; all others stand in the options file."""

EVENT_BUFFER = 65_536
"""KV events that the server keeps until they are asked for: seconds of a busy one."""

DEFAULT_BLOCK_TOKENS = 32
"""The server's own, as of the source read."""

FileContent = dict[str, object]


def serve_arguments(options: ServerOptions, host: str, port: int, options_file: str) -> list[str]:
    """Return the words after ``trtllm-serve serve``. Raises ConfigError for arguments that cannot be."""
    given = _given(options)
    words = [options.model, "--host", host, "--port", str(port)]
    for name in sorted(COMMAND_LINE & given.keys()):
        words += [f"--{name}", given[name]]
    return [*words, "--extra_llm_api_options", options_file]


def serve_options(options: ServerOptions) -> FileContent:
    """Return the content of the options file. Raises ConfigError for arguments that cannot be."""
    content: FileContent = {
        "tensor_parallel_size": _tensor_ranks(options.parallel),
        "enable_iter_perf_stats": True,
        "kv_cache_config": _cache_options(options),
    }
    if options.parallel.pp > 1:
        content["pipeline_parallel_size"] = options.parallel.pp
    if options.parallel.dp > 1:
        content["enable_attention_dp"] = True
    if options.parallel.ep > 1:
        content["moe_expert_parallel_size"] = options.parallel.ep
    numbers = {
        "max_batch_size": options.max_sequences,
        "max_seq_len": options.max_model_len,
        "max_num_tokens": options.token_budget,
    }
    content |= {name: number for name, number in numbers.items() if number}
    if options.dtype != "auto":
        content["dtype"] = options.dtype
    if options.role is not Role.BOTH:
        content["cache_transceiver_config"] = {"backend": "DEFAULT"}
    if options.role is Role.PREFILL:
        content["disable_overlap_scheduler"] = True
    for name, text in _given(options).items():
        if name not in COMMAND_LINE:
            _put(content, name, text)
    _check(options, content)
    return content


def options_text(content: FileContent) -> str:
    """Return the options file's text."""
    return yaml.safe_dump(content, sort_keys=True)


def serve_environment() -> dict[str, str]:
    """Return environment variables that the server gets; the user's ``engine_env`` wins over them."""
    return {"TRTLLM_NO_USAGE_STATS": "1"}


def _given(options: ServerOptions) -> dict[str, str]:
    given = {name.replace("-", "_").lstrip("_"): value for name, value in options.engine_args.items()}
    for name in given:
        if name in OURS:
            raise ConfigError(f"engine_args: {name} cannot be set: {OURS[name]}", param="engine_args")
    return given


def _tensor_ranks(ranks: Parallelism) -> int:
    if ranks.dp > 1 and ranks.tp > 1:
        raise ConfigError(
            "parallel: TensorRT-LLM spreads attention over all ranks either by tensors or by data; "
            f"write {{dp: {ranks.dp * ranks.tp}}} or {{tp: {ranks.dp * ranks.tp}}}",
            param="parallel",
        )
    count = max(ranks.tp, ranks.dp)
    if count % ranks.ep:
        raise ConfigError(
            f"parallel: the experts are spread over ep: {ranks.ep} of {count} ranks, which it must divide",
            param="parallel",
        )
    return count


def _cache_options(options: ServerOptions) -> FileContent:
    content: FileContent = {"enable_block_reuse": options.prefix_cache}
    if options.prefix_cache:
        content["event_buffer_max_size"] = EVENT_BUFFER
    if options.block_tokens:
        content["tokens_per_block"] = options.block_tokens
    if options.kv_blocks:
        content["max_tokens"] = options.kv_blocks * (options.block_tokens or DEFAULT_BLOCK_TOKENS)
    if options.kv_memory_mb:
        content["max_gpu_total_bytes"] = options.kv_memory_mb * 2**20
    return content


def _put(content: FileContent, name: str, text: str) -> None:
    """Set ``a.b.c`` to what ``text`` means in YAML."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"engine_args: {name}: {text!r} is no YAML value", param="engine_args") from error
    *outer, last = name.split(".")
    at = content
    for key in outer:
        inner = at.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"engine_args: {name}: {key} is a plain value", param="engine_args")
        at = inner
    before = at.get(last)
    at[last] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def _check(options: ServerOptions, content: FileContent) -> None:
    """Raise ConfigError for options with which the worker could not do its work."""
    transceiver = content.get("cache_transceiver_config")
    backend = transceiver.get("backend") if isinstance(transceiver, dict) else None
    if options.role is not Role.BOTH and not backend:
        raise ConfigError(
            f"engine_args: cache_transceiver_config names no backend, but a {options.role.value} worker "
            "hands KV caches over; write cache_transceiver_config.backend: DEFAULT",
            param="engine_args",
        )
    if options.role is Role.PREFILL and content.get("disable_overlap_scheduler") is not True:
        raise ConfigError(
            "engine_args: disable_overlap_scheduler is off, but TensorRT-LLM refuses to prefill for others "
            "while its scheduler overlaps; remove it",
            param="engine_args",
        )
    if content.get("enable_iter_perf_stats") is not True:
        raise ConfigError(
            "engine_args: enable_iter_perf_stats is off, but the worker reads the load from it; remove it",
            param="engine_args",
        )
