"""Shapes from config.json: the sizes that makers publish, and errors that name the field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.perf.model_config import shape_of
from tokenmill.errors import ConfigError
from tokenmill.profiles.known_models import CONFIGS
from tokenmill.spec.stage import Parallel

PUBLISHED_BILLIONS = {
    "meta-llama/Llama-3.1-8B-Instruct": (8.03, None),
    "meta-llama/Llama-3.1-70B-Instruct": (70.6, None),
    "meta-llama/Llama-3.1-405B-Instruct": (405.9, None),
    "mistralai/Mistral-7B-Instruct-v0.3": (7.25, None),
    "mistralai/Mixtral-8x7B-v0.1": (46.7, 12.9),
    "Qwen/Qwen2.5-7B-Instruct": (7.62, None),
    "Qwen/Qwen2.5-72B-Instruct": (72.7, None),
    "Qwen/Qwen3-8B": (8.2, None),
    "Qwen/Qwen3-32B": (32.8, None),
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),
    "Qwen/Qwen3-235B-A22B": (235, 22),
    "openai/gpt-oss-20b": (20.9, 3.6),
    "openai/gpt-oss-120b": (116.8, 5.1),
    "deepseek-ai/DeepSeek-V3": (671, 37),
}


@pytest.mark.parametrize("name", PUBLISHED_BILLIONS)
def test_parameters_are_what_makers_publish(name: str) -> None:
    shape = shape_of(name, CONFIGS[name])
    total, active = PUBLISHED_BILLIONS[name]
    assert shape.parameters / 1e9 == pytest.approx(total, rel=0.015)
    if active is not None:
        assert shape.active_parameters / 1e9 == pytest.approx(active, rel=0.12)


def test_kv_bytes_of_a_token() -> None:
    kib = {name: shape_of(name, CONFIGS[name]).kv_bytes_per_token() / 1024 for name in CONFIGS}
    assert kib["meta-llama/Llama-3.1-8B-Instruct"] == 128
    assert kib["meta-llama/Llama-3.1-70B-Instruct"] == 320
    assert kib["nvidia/Llama-3.1-70B-Instruct-FP8"] == 160
    assert kib["openai/gpt-oss-120b"] == 36  # half the layers keep a window only
    assert kib["deepseek-ai/DeepSeek-V3"] == pytest.approx(61 * 576 * 2 / 1024)


def test_weights_of_quantized_checkpoints() -> None:
    gib = {name: shape_of(name, CONFIGS[name]).weight_bytes / 2**30 for name in CONFIGS}
    assert gib["openai/gpt-oss-120b"] == pytest.approx(61, rel=0.08)
    assert gib["nvidia/Llama-3.1-70B-Instruct-FP8"] == pytest.approx(67.7, rel=0.02)
    assert gib["nvidia/Llama-3.3-70B-Instruct-NVFP4"] == pytest.approx(39.8, rel=0.03)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2]))
def test_more_gpus_hold_no_more_each(tp: int, pp: int, dp: int, ep: int) -> None:
    for name in ("openai/gpt-oss-120b", "Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-V3"):
        shape = shape_of(name, CONFIGS[name])
        spread = Parallel(tp=tp, pp=pp, dp=dp, ep=ep)
        assert shape.weight_bytes_per_gpu(spread) <= shape.weight_bytes * 1.0001
        assert shape.weight_bytes_per_gpu(spread) * tp * pp * dp >= shape.weight_bytes * 0.9999
        assert shape.kv_bytes_per_token_per_gpu(spread) * tp * pp >= shape.kv_bytes_per_token() * 0.9999


def test_other_names_of_the_same_fields() -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257,
            "n_positions": 1024, "tie_word_embeddings": True}  # fmt: skip
    shape = shape_of("gpt2", gpt2)
    assert shape.parameters / 1e6 == pytest.approx(124, rel=0.02)
    assert not shape.gated
    assert shape.max_model_len == 1024


def test_a_model_of_text_and_more_is_sized_by_its_text() -> None:
    config = {"architectures": ["X"], "text_config": dict(CONFIGS["Qwen/Qwen3-8B"]), "vision_config": {}}
    assert shape_of("x", config).layers == 36


@pytest.mark.parametrize(
    ("quantization", "dtypes"),
    [
        ({"quant_method": "fp8"}, ("fp8", "fp8", "bf16")),
        ({"quant_method": "awq", "bits": 4}, ("int4", "int4", "bf16")),
        ({"quant_method": "gptq", "bits": 8}, ("int8", "int8", "bf16")),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, ("fp4", "fp4", "fp8")),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}}},
            ("fp8", "fp8", "bf16"),
        ),
        ({"quant_method": "bitsandbytes"}, ("bf16", "bf16", "bf16")),
    ],
)
def test_number_formats(quantization: dict, dtypes: tuple) -> None:
    shape = shape_of("q", {**CONFIGS["Qwen/Qwen3-8B"], "quantization_config": quantization})
    assert (shape.dtype, shape.attention_dtype, shape.kv_dtype) == dtypes


def test_a_missing_field_is_named() -> None:
    config = {key: value for key, value in CONFIGS["Qwen/Qwen3-8B"].items() if key != "vocab_size"}
    with pytest.raises(ConfigError, match="vocab_size"):
        shape_of("q", config)


def test_layers_that_differ_one_by_one_are_not_guessed() -> None:
    with pytest.raises(ConfigError, match="hybrid_override_pattern"):
        shape_of("h", {**CONFIGS["Qwen/Qwen3-8B"], "hybrid_override_pattern": "MM*M"})
