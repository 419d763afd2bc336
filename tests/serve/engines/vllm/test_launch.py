"""The command line of a launched vLLM server."""

from __future__ import annotations

import json

import pytest
from tests.command_lines import options_in

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.options import Parallelism, ServerOptions
from tokenmill.serve.engines.vllm.launch import (
    OURS,
    Places,
    serve_arguments,
    serve_environment,
)

PLACES = Places(port=8100, events="ipc:///run/events", replay="ipc:///run/replay", side_channel_port=5600)


def words_for(role: Role = Role.BOTH, **fields: object) -> list[str]:
    values: dict[str, object] = {"model": "/models/m", "model_name": "m", "max_sequences": 0, **fields}
    return serve_arguments(ServerOptions(role=role, **values), PLACES)  # type: ignore[arg-type]


def options(words: list[str]) -> dict[str, str]:
    return options_in(words[1:])


def test_what_every_server_is_told() -> None:
    words = words_for()
    assert words[0] == "/models/m"
    assert options(words) == {
        "--host": "127.0.0.1",
        "--port": "8100",
        "--served-model-name": "m",
        "--enable-prompt-tokens-details": "",
        "--disable-uvicorn-access-log": "",
        "--kv-events-config": '{"enable_kv_cache_events":true,"publisher":"zmq",'
        '"endpoint":"ipc:///run/events","replay_endpoint":"ipc:///run/replay"}',
    }


@pytest.mark.parametrize(("role", "kv_role"), [(Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer")])
def test_a_stage_gets_a_connector_for_its_role(role: Role, kv_role: str) -> None:
    config = json.loads(options(words_for(role))["--kv-transfer-config"])
    assert config == {"kv_connector": "NixlConnector", "kv_role": kv_role}


def test_sizes_and_parallelism() -> None:
    found = options(
        words_for(
            parallel=Parallelism(tp=2, pp=3, dp=4, ep=8),
            block_tokens=32,
            kv_blocks=100,
            kv_memory_mb=64,
            max_model_len=4096,
            max_sequences=16,
            token_budget=2048,
            dtype="bfloat16",
            prefix_cache=False,
        )
    )
    assert found["--tensor-parallel-size"] == "2"
    assert found["--pipeline-parallel-size"] == "3"
    assert found["--data-parallel-size"] == "4"
    assert found["--enable-expert-parallel"] == ""
    assert found["--block-size"] == "32"
    assert found["--num-gpu-blocks-override"] == "100"
    assert found["--kv-cache-memory-bytes"] == str(64 * 2**20)
    assert found["--max-model-len"] == "4096"
    assert found["--max-num-seqs"] == "16"
    assert found["--max-num-batched-tokens"] == "2048"
    assert found["--dtype"] == "bfloat16"
    assert found["--no-enable-prefix-caching"] == ""
    assert "--kv-events-config" not in found


def test_the_users_arguments_win() -> None:
    mine = {
        "max-model-len": "512",
        "enforce_eager": "true",
        "enable_chunked_prefill": "false",
        "quantization": "fp8",
        "disable_uvicorn_access_log": "false",
        "no_enable_prompt_tokens_details": "true",
    }
    found = options(words_for(max_model_len=4096, engine_args=mine))
    assert found["--max-model-len"] == "512"
    assert found["--enforce-eager"] == ""
    assert found["--no-enable-chunked-prefill"] == ""
    assert found["--quantization"] == "fp8"
    for name in ("disable-uvicorn-access-log", "enable-prompt-tokens-details"):
        assert f"--no-{name}" in found
        assert f"--{name}" not in found


@pytest.mark.parametrize("name", [*OURS, "tensor-parallel-size", "--port", "no-enable-prefix-caching"])
def test_what_the_role_needs_cannot_be_set(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be set: ") as caught:
        words_for(engine_args={name: "1"})
    assert caught.value.param == "engine_args"


def test_the_users_connector_must_do_for_the_role() -> None:
    mine = {"kv_transfer_config": '{"kv_connector":"Other","kv_role":"kv_both"}'}
    found = options(words_for(Role.DECODE, engine_args=mine))
    assert found["--kv-transfer-config"] == mine["kv_transfer_config"]
    for text in ('{"kv_role":"kv_producer"}', "{}", "no json"):
        with pytest.raises(ConfigError, match="kv_transfer_config"):
            words_for(Role.DECODE, engine_args={"kv_transfer_config": text})


def test_side_channels_are_apart() -> None:
    assert serve_environment(PLACES)["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
