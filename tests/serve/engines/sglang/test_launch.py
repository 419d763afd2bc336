"""The command line of a launched SGLang server, which the double must be able to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.command_lines import options_in

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.kv_events.rank_events import EventSource
from tokenmill.serve.engines.remote.options import Parallelism
from tokenmill.serve.engines.sglang.launch import (
    OURS,
    Ports,
    SglangOptions,
    plan_launch,
    serve_arguments,
)
from tokenmill.testing.sglang_double import parse_arguments

PORTS = Ports(serve=8100, bootstrap=8200, events=5600, replay=5700)


def options(role: Role = Role.BOTH, **fields: object) -> SglangOptions:
    values: dict[str, object] = {"model": "/models/m", "model_name": "m", "role": role, "run_dir": "/run"}
    return SglangOptions(**{**values, **fields})  # type: ignore[arg-type]


def words_of(asked: SglangOptions) -> dict[str, str]:
    return options_in(serve_arguments(asked, PORTS))


def test_what_every_server_is_told() -> None:
    assert words_of(options()) == {
        "--model-path": "/models/m",
        "--served-model-name": "m",
        "--host": "127.0.0.1",
        "--port": "8100",
        "--page-size": "16",
        "--enable-metrics": "",
        "--incremental-streaming-output": "",
        "--max-running-requests": "256",
        "--kv-events-config": '{"publisher":"zmq","endpoint":"ipc:///run/sglang-events-5600.sock",'
        '"replay_endpoint":"ipc:///run/sglang-replay-5700.sock"}',
    }


def test_roles() -> None:
    prefill, decode = words_of(options(Role.PREFILL)), words_of(options(Role.DECODE))
    assert (prefill["--disaggregation-mode"], prefill["--disaggregation-bootstrap-port"]) == (
        "prefill",
        "8200",
    )
    assert decode["--disaggregation-mode"] == "decode"
    assert "--disaggregation-bootstrap-port" not in decode
    assert "--disaggregation-mode" not in words_of(options())


def test_sizes_and_parallelism() -> None:
    asked = options(
        parallel=Parallelism(tp=8, pp=2, dp=4, ep=8),
        block_tokens=64,
        kv_blocks=100,
        max_model_len=4096,
        max_sequences=32,
        token_budget=2048,
        dtype="bfloat16",
        prefix_cache=False,
    )
    found = words_of(asked)
    expected = {
        "--tensor-parallel-size": "8",
        "--pipeline-parallel-size": "2",
        "--data-parallel-size": "4",
        "--expert-parallel-size": "8",
        "--page-size": "64",
        "--max-total-tokens": "6400",
        "--context-length": "4096",
        "--max-running-requests": "32",
        "--chunked-prefill-size": "2048",
        "--dtype": "bfloat16",
        "--disable-radix-cache": "",
    }
    assert {name: found[name] for name in expected} == expected
    assert "--kv-events-config" not in found
    assert plan_launch(asked, PORTS).sources == ()


def test_several_ranks_tell_events_over_tcp() -> None:
    asked = options(parallel=Parallelism(dp=2), transfer_host="10.0.0.5")
    config = json.loads(words_of(asked)["--kv-events-config"])
    assert (config["endpoint"], config["replay_endpoint"]) == ("tcp://*:5600", "tcp://*:5700")
    plan = plan_launch(asked, PORTS)
    assert plan.url == "http://10.0.0.5:8100"
    assert plan.sources == (
        EventSource("tcp://10.0.0.5:5600", "tcp://10.0.0.5:5700"),
        EventSource("tcp://10.0.0.5:5601", "tcp://10.0.0.5:5701"),
    )


def test_the_users_arguments_win() -> None:
    mine = {
        "context-length": "512",
        "trust_remote_code": "true",
        "incremental_streaming_output": "false",
        "--mem-fraction-static": "0.8",
        "disaggregation_transfer_backend": "nixl",
    }
    found = words_of(options(Role.DECODE, max_model_len=4096, engine_args=mine))
    assert found["--context-length"] == "512"
    assert found["--trust-remote-code"] == ""
    assert "--incremental-streaming-output" not in found
    assert found["--mem-fraction-static"] == "0.8"
    assert found["--disaggregation-transfer-backend"] == "nixl"


@pytest.mark.parametrize("name", [*OURS, "tp", "tp-size", "--port", "dp_size", "model"])
def test_what_the_role_needs_cannot_be_set(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be set: ") as caught:
        words_of(options(engine_args={name: "1"}))
    assert caught.value.param == "engine_args"


def test_a_backend_that_moves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="it moves no KV"):
        words_of(options(Role.DECODE, engine_args={"disaggregation_transfer_backend": "fake"}))
    with pytest.raises(ConfigError, match="role: prefill or decode"):
        words_of(options(engine_args={"disaggregation_transfer_backend": "nixl"}))


def test_memory_in_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="write kv_blocks") as caught:
        words_of(options(kv_memory_mb=64))
    assert caught.value.param == "kv_memory_mb"


def test_environment() -> None:
    plan = plan_launch(options(engine_env={"MC_FORCE_TCP": "1"}), PORTS)
    assert plan.environment == {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1", "MC_FORCE_TCP": "1"}


def test_what_is_run(tmp_path: Path) -> None:
    assert plan_launch(options(), PORTS).command[1:3] == ["-m", "sglang.launch_server"]
    given = plan_launch(options(engine_command="docker run sgl"), PORTS).command
    assert given[:3] == ["docker", "run", "sgl"]
    python = tmp_path / "python"
    with pytest.raises(ConfigError, match="engine_python"):
        plan_launch(options(engine_python=str(python)), PORTS)
    assert plan_launch(options(engine_python=str(python)), PORTS, here=False).command[0] == str(python)


@pytest.mark.parametrize("role", list(Role))
def test_the_double_reads_it_all(role: Role) -> None:
    asked = options(role, kv_blocks=10, max_model_len=512, token_budget=64, dtype="float32")
    read = parse_arguments(serve_arguments(asked, PORTS), {})
    assert (read.served_model_name, read.port, read.page_size) == ("m", 8100, 16)
    assert (read.max_total_tokens, read.context_length) == (160, 512)
    assert read.events is not None


def test_the_double_refuses_what_sglang_does_not_know() -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--model-path", "m", "--no-such-option"], {})
