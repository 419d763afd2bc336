"""Step times from the measured kernel tables of ``aiconfigurator-core`` (extra ``perf``).

The only module that knows that package. Each replica is asked for some hundred points once, and becomes a
flat ``StepTable``: nobody who simulates pays the package's start (a second a replica) or its query cost. It
must not know placement or engines.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.perf.model_config import shape_of
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.decide.perf.roofline import CONTEXTS, SEQUENCES, TOKENS
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk
from tokenmill.decide.perf.table import StepTable
from tokenmill.errors import ConfigError, TokenmillError

PACKAGE: Final = "aiconfigurator_core"

SYSTEMS: Final[Mapping[str, str]] = {
    "a100-80-sxm": "a100_sxm",
    "b200-sxm": "b200_sxm",
    "b300-sxm": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
"""GPUs of the catalogue by the package's names. Of some others it has data sheets and no measurements."""

ENGINES: Final = ("vllm", "sglang", "trtllm")

_SHORT: Final = 32
"""A prompt so short that its attention takes no time to speak of."""


class _Handle(Protocol):
    """What is used of the package's compiled engines; times in milliseconds."""

    def predict_prefill_latency(self, bs: int, isl: int, prefix: int) -> float: ...

    def decode_step_latency(self, gen_tokens: int, isl: int, osl: int) -> float: ...

    def mixed_step_breakdown(
        self, ctx_tokens: int, gen_tokens: int, isl: int, osl: int
    ) -> tuple[float, float, float, float]: ...


def installed() -> bool:
    """Whether the extra is there. Does not import it."""
    return importlib.util.find_spec(PACKAGE) is not None


def known_configs() -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Return ``config.json`` and ``hf_quant_config.json`` of the models the package ships, by hub id; none
    without the extra."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return {}
    configs = {}
    ending = "_config.json"
    for path in sorted((Path(spec.origin).parent / "model_configs").glob(f"*{ending}")):
        if path.name.endswith("_hf_quant_config.json"):
            continue
        quantization = path.with_name(path.name.removesuffix(ending) + "_hf_quant_config.json")
        given = json.loads(quantization.read_bytes()) if quantization.is_file() else None
        configs[path.name.removesuffix(ending).replace("--", "/")] = (json.loads(path.read_bytes()), given)
    return configs


def version() -> str:
    """Return the package's version; "" without the extra."""
    if not installed():
        return ""
    return importlib.metadata.version("aiconfigurator-core")


class KernelTables:
    """Reads tables. ``shapes`` of the package's models are read at first use and kept (some hundred)."""

    def __init__(self) -> None:
        self._shapes: dict[str, ModelShape] | None = None

    def read(self, ask: ReplicaAsk, *, kv_capacity_tokens: int) -> StepTable | NoTimes:
        """Return the table of a replica, or why there is none."""
        system = SYSTEMS.get(ask.gpu.name)
        if system is None:
            return NoTimes(reason=f"the database has no measurements of {ask.gpu.name}")
        if ask.engine not in ENGINES:
            return NoTimes(reason=f"the database has no measurements of engine {ask.engine}")
        model = self._model_like(ask.shape)
        if model is None:
            return NoTimes(reason=f"the database knows no model shaped like {ask.shape.name}")
        with _quiet():
            try:
                handle = _compile(ask, system, model, as_shipped=self._known()[model])
                return _table(handle, ask, kv_capacity_tokens)
            except Exception as error:  # noqa: BLE001 - a foreign package fails in any way it likes
                return NoTimes(reason=f"the database cannot answer: {_first_line(error)}")

    def _known(self) -> dict[str, ModelShape]:
        if self._shapes is None:
            self._shapes = {}
            for name, (config, quantization) in known_configs().items():
                with contextlib.suppress(ConfigError):
                    self._shapes[name] = shape_of(name, config, quantization)
        return self._shapes

    def _model_like(self, shape: ModelShape) -> str | None:
        """The package's model of the same bones: first by name, then of the same number formats."""
        known = self._known()
        bones = _bones(shape)
        same = [name for name, other in known.items() if _bones(other) == bones]
        for name in same:
            if name == shape.name:
                return name
        alike = [name for name in same if _formats(known[name]) == _formats(shape)]
        return next(iter([*alike, *same]), None)


def _compile(ask: ReplicaAsk, system: str, model: str, *, as_shipped: ModelShape) -> _Handle:
    from aiconfigurator_core.sdk.engine import EngineHandle  # noqa: PLC0415 - the extra, slow to import

    shape, parallel = ask.shape, ask.parallel
    width = parallel.tp * parallel.dp
    spread: dict[str, Any] = {"tp_size": parallel.tp, "pp_size": parallel.pp}
    if shape.experts is not None:
        spread["attention_dp_size"] = parallel.dp
        spread["moe_ep_size" if parallel.ep > 1 else "moe_tp_size"] = width
    if _formats(shape) != _formats(as_shipped):
        spread["gemm_quant_mode"] = _products_mode(shape.dtype, ask.gpu)
        if shape.experts is not None:
            spread["moe_quant_mode"] = _products_mode(shape.expert_dtype, ask.gpu)
    kv_dtype = ask.kv_dtype or shape.kv_dtype
    if kv_dtype != as_shipped.kv_dtype:
        spread["kvcache_quant_mode"] = "fp8" if kv_dtype == "fp8" else "bfloat16"
    handle: _Handle = EngineHandle.compile(model, system, ask.engine, **spread)
    return handle


def _table(handle: _Handle, ask: ReplicaAsk, kv_capacity_tokens: int) -> StepTable:
    """Ask for all points. Data parallel ranks share a step's work evenly; the package is asked for one.

    Attention to one token is taken for none: prompts that short would be counted with a head for each.
    """
    ranks = ask.parallel.dp
    prefill = [_share(count, ranks) for count in TOKENS]
    dense = [_dense_ms(handle, count) for count in prefill]
    decode = [_share(count, ranks) for count in SEQUENCES]
    alone = [handle.decode_step_latency(count, 1, 2) for count in decode]
    return StepTable(
        tokens=TOKENS,
        sequences=SEQUENCES,
        contexts=CONTEXTS,
        dense_ms=_rising(dense),
        decode_dense_ms=_rising(alone),
        prefill_attention_ms=tuple(
            _rising([0.0, *(_prefill_ms(handle, count, context) - base for context in CONTEXTS[1:])])
            for count, base in zip(prefill, dense, strict=True)
        ),
        decode_attention_ms=tuple(
            _rising([handle.decode_step_latency(count, context, 2) - base for context in CONTEXTS])
            for count, base in zip(decode, alone, strict=True)
        ),
        kv_bytes_per_token=ask.shape.kv_bytes_per_token(1.0 if ask.kv_dtype == "fp8" else 0.0),
        kv_capacity_tokens=kv_capacity_tokens,
    )


def _share(count: int, ranks: int) -> int:
    return max(1, round(count / ranks))


def _dense_ms(handle: _Handle, tokens: int) -> float:
    """Everything but attention. Where the package cannot tell attention apart (latent attention is one kernel
    with its projections), prompts too short to need any."""
    _, rest, attention, _ = handle.mixed_step_breakdown(tokens, 0, tokens, 2)
    if attention > 0:
        return rest
    return handle.predict_prefill_latency(max(1, tokens // _SHORT), min(tokens, _SHORT), 0)


def _prefill_ms(handle: _Handle, tokens: int, context: float) -> float:
    """``tokens`` new tokens that attend to ``context`` each in the mean: one prompt after a cached prefix, or
    where that is more than they could have, several prompts."""
    if context >= (tokens + 1) / 2:
        cached = round(context - (tokens + 1) / 2)
        return handle.predict_prefill_latency(1, tokens + cached, cached)
    prompts = max(1, round(tokens / (2 * context - 1)))
    return handle.predict_prefill_latency(prompts, max(1, round(tokens / prompts)), 0)


def _rising(values: list[float]) -> tuple[float, ...]:
    """Measured points wobble: none is below the one before, nor below 0."""
    risen, least = [], 0.0
    for value in values:
        least = max(least, value)
        risen.append(round(least, 6))
    return tuple(risen)


def _bones(shape: ModelShape) -> tuple[object, ...]:
    return (shape.layers, shape.hidden, shape.vocab, shape.attention, shape.width, shape.experts)


def _formats(shape: ModelShape) -> tuple[str, ...]:
    return (shape.dtype, shape.attention_dtype, shape.expert_dtype)


def _products_mode(dtype: str, gpu: Gpu) -> str:
    narrow = dtype if dtype in gpu.tflops else f"{dtype}-wide"
    modes = {
        "fp8": "fp8",
        "fp8-wide": "int8_wo",
        "fp4": "nvfp4",
        "fp4-wide": "nvfp4_wo",
        "int4-wide": "int4_wo",
        "int8": "int8_wo",
        "int8-wide": "int8_wo",
    }
    return modes.get(narrow, "bfloat16")


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The package logs and warns about each point that it interpolates."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def require() -> None:
    """Raise TokenmillError with the fix where the extra is not installed."""
    if not installed():
        raise TokenmillError("the step-time database is not installed: pip install 'tokenmill[perf]'")
