"""What a worker's role makes of ``trtllm-serve``'s command line and options file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import yaml

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.launches import engine_launch
from tokenmill.serve.engines.remote.options import Parallelism
from tokenmill.serve.engines.trtllm.engine import TrtllmEngine
from tokenmill.serve.engines.trtllm.plan import LaunchPlan, TrtllmOptions, plan_launch
from tokenmill.spec.process import WorkerConfig
from tokenmill.testing.engine_client import EngineClient, hand_over
from tokenmill.testing.trtllm_double.options import BadUsage, CommandLine, read_command_line

DOUBLE = f"{sys.executable} -m tokenmill.testing.trtllm_double"


def plan(role: Role = Role.BOTH, run_dir: str = "/run/w", **fields: object) -> LaunchPlan:
    options = TrtllmOptions(model="/m", model_name="m", role=role, run_dir=run_dir, **fields)  # type: ignore[arg-type]
    return plan_launch(options, 20001)


def options_of(role: Role = Role.BOTH, **fields: object) -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load(plan(role, **fields).options)
    return content


def understood(folder: Path, role: Role = Role.BOTH, **fields: object) -> CommandLine:
    """What the double makes of it: it refuses what the engine would."""
    found = plan(role, str(folder), **fields)
    Path(found.options_file).write_text(found.options, "utf-8")
    return read_command_line(found.command[1:], found.environment)


def test_the_command_line() -> None:
    found = plan()
    assert found.command == [
        *("trtllm-serve", "serve", "/m", "--host", "127.0.0.1", "--port", "20001"),
        *("--extra_llm_api_options", "/run/w/trtllm-20001.yaml"),
    ]
    assert found.url == "http://127.0.0.1:20001"
    assert found.environment == {"TRTLLM_NO_USAGE_STATS": "1"}


@pytest.mark.parametrize(
    ("role", "transceiver", "serial"),
    [(Role.BOTH, None, None), (Role.PREFILL, "DEFAULT", True), (Role.DECODE, "DEFAULT", None)],
)
def test_roles(tmp_path: Path, role: Role, transceiver: str | None, serial: bool | None) -> None:
    options = options_of(role)
    config = options.get("cache_transceiver_config")
    assert (config["backend"] if isinstance(config, dict) else None) == transceiver
    assert options.get("disable_overlap_scheduler") == serial
    assert understood(tmp_path, role).engine.enable_iter_perf_stats


def test_everything_is_understood(tmp_path: Path) -> None:
    engine = understood(
        tmp_path,
        parallel=Parallelism(tp=4, pp=2, ep=2),
        block_tokens=64,
        kv_blocks=10,
        kv_memory_mb=3,
        max_model_len=2000,
        max_sequences=8,
        token_budget=512,
        dtype="bfloat16",
        engine_args={"kv_cache_config.dtype": "fp8", "--log-level": "info", "enable_chunked_prefill": "true"},
    ).engine
    assert (engine.tensor_parallel_size, engine.pipeline_parallel_size) == (4, 2)
    assert engine.moe_expert_parallel_size == 2
    assert (engine.max_seq_len, engine.max_batch_size, engine.max_num_tokens) == (2000, 8, 512)
    assert engine.enable_chunked_prefill
    cache = engine.kv_cache_config
    assert (cache.tokens_per_block, cache.max_tokens, cache.max_gpu_total_bytes) == (64, 640, 3 * 2**20)
    assert (cache.dtype, cache.event_buffer_max_size) == ("fp8", 65536)


def test_attention_by_data() -> None:
    options = options_of(parallel=Parallelism(dp=8, ep=8))
    assert (options["tensor_parallel_size"], options["enable_attention_dp"]) == (8, True)
    with pytest.raises(ConfigError, match="dp: 4"):
        plan(parallel=Parallelism(tp=2, dp=2))
    with pytest.raises(ConfigError, match="divide"):
        plan(parallel=Parallelism(tp=4, ep=3))


def test_no_prefix_cache_no_events() -> None:
    assert options_of(prefix_cache=False)["kv_cache_config"] == {"enable_block_reuse": False}


def test_the_users_words_win() -> None:
    options = options_of(
        Role.PREFILL,
        max_sequences=8,
        engine_args={
            "max_batch_size": "16",
            "cache_transceiver_config": "{backend: NIXL, kv_transfer_timeout_ms: 5000}",
            "kv_cache_config.free_gpu_memory_fraction": "0.7",
        },
    )
    assert options["max_batch_size"] == 16
    assert options["cache_transceiver_config"] == {"backend": "NIXL", "kv_transfer_timeout_ms": 5000}
    cache = options["kv_cache_config"]
    assert isinstance(cache, dict)
    assert (cache["free_gpu_memory_fraction"], cache["enable_block_reuse"]) == (0.7, True)


@pytest.mark.parametrize(
    ("role", "arguments", "words"),
    [
        (Role.BOTH, {"port": "1"}, "port cannot be set"),
        (Role.BOTH, {"tp-size": "2"}, "parallel"),
        (Role.BOTH, {"extra_llm_api_options": "x.yaml"}, "a.b"),
        (Role.BOTH, {"enable_iter_perf_stats": "false"}, "enable_iter_perf_stats"),
        (Role.BOTH, {"kv_cache_config": "{"}, "no YAML"),
        (Role.BOTH, {"enable_iter_perf_stats.x": "1"}, "plain value"),
        (Role.PREFILL, {"disable_overlap_scheduler": "false"}, "overlap"),
        (Role.DECODE, {"cache_transceiver_config.backend": "null"}, "cache_transceiver_config"),
    ],
)
def test_what_the_worker_could_not_work_with(role: Role, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(role, engine_args=arguments)


def test_where_it_is_run_from(tmp_path: Path) -> None:
    python = tmp_path / "python"
    with pytest.raises(ConfigError, match="engine_python"):
        plan(engine_python=str(python))
    python.touch()
    assert plan(engine_python=str(python)).command[:4] == [
        str(python),
        "-m",
        "tensorrt_llm.commands.serve",
        "serve",
    ]
    assert plan(engine_command="docker run trtllm-serve").command[:4] == [
        "docker",
        "run",
        "trtllm-serve",
        "serve",
    ]


def test_what_is_shown_is_what_is_run() -> None:
    config = WorkerConfig(
        engine="trtllm", model="org/name", role=Role.DECODE, tp=2, gpus=[2, 3], run_dir="/run/w"
    )
    shown = engine_launch(config, 20001, {})
    assert shown is not None
    assert shown.command[:3] == ["trtllm-serve", "serve", "org/name"]
    assert shown.environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert shown.ports == 1
    assert "tensor_parallel_size: 2" in shown.files["/run/w/trtllm-20001.yaml"]


@pytest.mark.parametrize(
    "words",
    [["serve"], ["m"], ["serve", "m", "--prot", "1"], ["serve", "m", "--port"], ["serve", "m", "n"]],
)
def test_the_double_refuses_a_wrong_command_line(words: list[str]) -> None:
    with pytest.raises(BadUsage):
        read_command_line(words, {})


def launched(checkpoint: Path, role: Role, **fields: object) -> TrtllmEngine:
    options = TrtllmOptions(
        model=str(checkpoint),
        model_name="tiny",
        role=role,
        checkpoint=checkpoint,
        engine_command=DOUBLE,
        block_tokens=16,
        **fields,  # type: ignore[arg-type]
    )
    return TrtllmEngine(options, SystemClock())


async def test_launched_servers_hand_over(checkpoint: Path) -> None:
    """Real processes, each with its own ports and options file."""
    async with (
        EngineClient(launched(checkpoint, Role.PREFILL)) as prefill,
        EngineClient(launched(checkpoint, Role.DECODE)) as decode,
    ):
        prompt = list(range(20, 60))
        expected = await decode.generate(prompt)
        tokens, _, _ = await hand_over(prefill, decode, prompt)
        assert tokens == expected
        assert decode.engine.metrics().handoffs_in_total == 1
        assert decode.info.engine == "trtllm 1.2.0"
        assert decode.info.fingerprint == prefill.info.fingerprint


async def test_a_server_that_ends_is_told_at_once(checkpoint: Path) -> None:
    engine = launched(checkpoint, Role.BOTH)
    async with EngineClient(engine):
        child = engine._child
        assert child is not None
        stopped = asyncio.create_task(child.stop())
        async with asyncio.timeout(30):
            assert "trtllm both ended" in await engine.failure()
            await stopped


async def test_a_server_that_does_not_start_says_why(checkpoint: Path) -> None:
    engine = launched(checkpoint, Role.BOTH, engine_args={"no_such_option": "1"})
    with pytest.raises(ConfigError, match="no_such_option"):
        await engine.start(lambda _: None)
