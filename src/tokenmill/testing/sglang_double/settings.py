"""What the double is told: SGLang's own command line, refused where SGLang would refuse it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

DEFAULT_BOOTSTRAP_PORT = 8998


class EventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``--kv-events-config``."""

    publisher: str = "null"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    topic: str = ""
    bind: bool | None = None


class DoubleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Fields as SGLang's options; ``step_s``, ``bootstrap_timeout_s`` and ``tagged_events`` are the double's.

    ``tagged_events`` False: KV events as arrays, as SGLang before 0.5.2x sends them. ``eos_token_id`` -1:
    none.
    """

    model_path: str = "double"
    served_model_name: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    page_size: int = 1
    vocab_size: int = 1024
    eos_token_id: int = -1
    context_length: int = 8192
    max_total_tokens: int = 65_536
    max_running_requests: int = 64
    max_queued_requests: int = 0
    mode: str = "null"
    bootstrap_port: int = DEFAULT_BOOTSTRAP_PORT
    dp_size: int = 1
    enable_metrics: bool = False
    incremental: bool = False
    disable_radix_cache: bool = False
    events: EventsConfig | None = None
    events_text: str = ""
    api_key: str = ""
    step_s: float = 0.001
    bootstrap_timeout_s: float = 300.0
    tagged_events: bool = True

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.model_path

    @property
    def caches_prefixes(self) -> bool:
        """A decode server keeps no prefixes unless it is told to."""
        return not self.disable_radix_cache and self.mode != "decode"


_OWN_NAMES: Mapping[str, str] = {
    **{
        name: name
        for name in (
            *("model_path", "served_model_name", "host", "page_size", "max_total_tokens", "enable_metrics"),
            *("max_running_requests", "max_queued_requests", "disable_radix_cache", "api_key"),
        )
    },
    "mode": "disaggregation_mode",
    "bootstrap_port": "disaggregation_bootstrap_port",
    "incremental": "incremental_streaming_output",
    "events": "kv_events_config",
}
"""Fields of ``DoubleSettings`` by SGLang's options."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": ("auto", "half", "float16", "bfloat16", "float", "float32"),
    "disaggregation_mode": ("null", "prefill", "decode"),
    "disaggregation_transfer_backend": ("mooncake", "nixl", "mori", "ascend", "fake"),
}


def parse_arguments(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> DoubleSettings:
    """Read a command line; ends the process with status 2 for what SGLang does not take."""
    parser = argparse.ArgumentParser(prog="sglang.launch_server", allow_abbrev=False)
    for names, kind in _OPTIONS:
        if kind is bool:
            parser.add_argument(*names, action="store_true")
        else:
            parser.add_argument(*names, type=kind)
    given = parser.parse_args(words)
    _refuse(parser, given)
    model = _model_facts(given.model_path)
    events = given.kv_events_config
    told: dict[str, object] = {
        **{own: getattr(given, option) for own, option in _OWN_NAMES.items()},
        "port": given.port or 30_000,
        "vocab_size": model.get("vocab_size"),
        "eos_token_id": model.get("eos_token_id"),
        "context_length": given.context_length or model.get("max_position_embeddings"),
        "events_text": msgspec.json.encode(events).decode() if events else None,
        "step_s": float(environment.get("SGLANG_DOUBLE_STEP_S", "0.001")),
        "bootstrap_timeout_s": float(environment.get("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "300")),
    }
    return msgspec.convert({name: value for name, value in told.items() if value is not None}, DoubleSettings)


def _refuse(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if not given.model_path:
        parser.error("the following arguments are required: --model-path/--model")
    for name, known in _CHOICES.items():
        value = getattr(given, name)
        if value is not None and value not in known:
            parser.error(f"argument --{name.replace('_', '-')}: invalid choice: {value!r}")
    if given.disaggregation_mode == "prefill" and given.disaggregation_transfer_backend == "fake":
        parser.error("Prefill server does not support 'fake' as the transfer backend")
    if (given.data_parallel_size or 1) != 1:
        parser.error("the double has one data-parallel rank")


def _events(text: str) -> EventsConfig:
    try:
        return msgspec.json.decode(text, type=EventsConfig)
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _model_facts(model_path: str) -> dict[str, int]:
    file = Path(model_path) / "config.json"
    if not file.exists():
        return {}
    facts = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    return {name: value for name, value in facts.items() if isinstance(value, int)}


_OPTIONS: tuple[tuple[tuple[str, ...], Callable[[str], object]], ...] = (
    (("--model-path", "--model"), str),
    (("--served-model-name",), str),
    (("--host",), str),
    (("--port",), int),
    (("--page-size",), int),
    (("--context-length",), int),
    (("--max-total-tokens",), int),
    (("--max-running-requests",), int),
    (("--max-queued-requests",), int),
    (("--chunked-prefill-size",), int),
    (("--dtype",), str),
    (("--tensor-parallel-size", "--tp-size", "--tp"), int),
    (("--pipeline-parallel-size", "--pp-size"), int),
    (("--data-parallel-size", "--dp-size", "--dp"), int),
    (("--expert-parallel-size", "--ep-size", "--ep"), int),
    (("--mem-fraction-static",), float),
    (("--trust-remote-code",), bool),
    (("--disaggregation-mode",), str),
    (("--disaggregation-bootstrap-port",), int),
    (("--disaggregation-transfer-backend",), str),
    (("--kv-events-config",), _events),
    (("--enable-metrics",), bool),
    (("--incremental-streaming-output",), bool),
    (("--disable-radix-cache",), bool),
    (("--api-key",), str),
)
"""Of SGLang's options those that a worker may be told to pass on; any other is refused."""
