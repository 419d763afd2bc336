"""What the double tells of itself: SGLang's information endpoints and metrics. No I/O."""

from __future__ import annotations

from tokenmill.testing.sglang_double.scheduler import Scheduler
from tokenmill.testing.sglang_double.settings import DoubleSettings

VERSION = "0.5.23"


def server_info(settings: DoubleSettings) -> dict[str, object]:
    """Return ``/server_info``: the settings as resolved, and the room of one rank."""
    return {
        "model_path": settings.model_path,
        "served_model_name": settings.name,
        "host": settings.host,
        "port": settings.port,
        "page_size": settings.page_size,
        "context_length": settings.context_length,
        "dp_size": settings.dp_size,
        "kv_cache_dtype": "auto",
        "disaggregation_mode": settings.mode,
        "disaggregation_bootstrap_port": settings.bootstrap_port,
        "disaggregation_transfer_backend": "mooncake",
        "kv_events_config": settings.events_text or None,
        "enable_metrics": settings.enable_metrics,
        "incremental_streaming_output": settings.incremental,
        "disable_radix_cache": not settings.caches_prefixes,
        "skip_tokenizer_init": False,
        "max_total_num_tokens": settings.max_total_tokens,
        "max_req_input_len": settings.context_length - 6,
        "internal_states": [{}],
        "version": VERSION,
        "frontend": "python",
    }


def model_info(settings: DoubleSettings) -> dict[str, object]:
    """Return ``/model_info``."""
    return {
        "model_path": settings.model_path,
        "served_model_name": settings.name,
        "is_generation": True,
        "disaggregation_mode": settings.mode,
        "weight_version": "default",
    }


def models(settings: DoubleSettings) -> dict[str, object]:
    """Return ``/v1/models``."""
    card = {
        "id": settings.name,
        "object": "model",
        "root": settings.name,
        "max_model_len": settings.context_length,
    }
    return {"object": "list", "data": [card]}


def metrics_text(settings: DoubleSettings, scheduler: Scheduler, moving: int) -> bytes:
    """Return ``/metrics``."""
    counts = scheduler.counts
    capacity = settings.max_total_tokens // settings.page_size
    moving_name = {"prefill": "num_prefill_bootstrap_queue_reqs", "decode": "num_decode_prealloc_queue_reqs"}
    values: list[tuple[str, str, float]] = [
        ("num_running_reqs", "", len(scheduler.running)),
        ("num_queue_reqs", "", len(scheduler.waiting)),
        ("token_usage", "", scheduler.pages.held / capacity),
        ("num_retracted_requests_total", "", counts.retracted),
        ("prompt_tokens_total", "", counts.prompts),
        ("generation_tokens_total", "", counts.decoded),
        ("cached_tokens_total", ',cache_source="device"', counts.cached),
        ("realtime_tokens_total", ',mode="prefill_compute"', counts.computed),
        ("realtime_tokens_total", ',mode="prefill_cache"', counts.cached),
        ("realtime_tokens_total", ',mode="decode"', counts.decoded),
        ("cuda_graph_passes_total", ',mode="decode_none"', counts.steps),
    ]
    if settings.mode in moving_name:
        values.append((moving_name[settings.mode], "", moving))
    labels = f'engine_type="unified",model_name="{settings.name}",pp_rank="0",tp_rank="0"'
    lines = [f"sglang:{name}{{{labels}{extra}}} {float(value)}" for name, extra, value in values]
    return ("\n".join(lines) + "\n").encode()
