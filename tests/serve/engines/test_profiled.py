"""A profile's saturation point is what a prefill worker's batch goes by."""

from pathlib import Path

import msgspec
import pytest
from tests.profiles.test_profile_file import PROFILE

from tokenmill.decide.perf.table import TableStepTime
from tokenmill.errors import ConfigError
from tokenmill.profiles.profile_file import save_profile
from tokenmill.profiles.step_times_file import save_step_table
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import ExecutorFacts
from tokenmill.serve.engines.opening import batching_config, sim_settings
from tokenmill.serve.engines.profiled import DEFAULT_PREFILL_BUDGET, step_table_of, with_profile
from tokenmill.spec.models import shipped_model
from tokenmill.spec.process import WorkerConfig

KNEE = PROFILE.knee.tokens


@pytest.fixture
def path(tmp_path: Path) -> str:
    save_profile(PROFILE, tmp_path / "p.json")
    return str(tmp_path / "p.json")


def facts(prefill_budget: int | None = 4096) -> ExecutorFacts:
    return ExecutorFacts(
        model="m", vocab_size=10, max_model_len=100, kv_blocks=10, block_tokens=16, eos_token_ids=[],
        fingerprint="", prefill_budget=prefill_budget,
    )  # fmt: skip


def test_a_prefill_worker_takes_what_saturates(path: str) -> None:
    config = with_profile(WorkerConfig(role=Role.PREFILL, profile=path))
    assert batching_config(config, facts()).prefill_budget == KNEE
    assert config.token_budget == 0


def test_one_that_also_decodes_takes_no_more_than_decodes_can_wait_for(path: str) -> None:
    config = with_profile(WorkerConfig(profile=path))
    assert batching_config(config, facts()).prefill_budget == min(KNEE, DEFAULT_PREFILL_BUDGET)


def test_what_the_user_says_goes_first(path: str) -> None:
    config = with_profile(WorkerConfig(role=Role.PREFILL, profile=path, prefill_budget=77))
    assert batching_config(config, facts()).prefill_budget == 77


def test_a_launched_prefill_engine_is_told_in_its_own_budget(path: str) -> None:
    config = WorkerConfig(engine="vllm", role=Role.PREFILL, profile=path, max_sequences=16)
    assert with_profile(config).token_budget == max(KNEE, 16)
    many = WorkerConfig(engine="vllm", role=Role.PREFILL, profile=path, max_sequences=KNEE * 2)
    assert with_profile(many).token_budget == KNEE * 2
    assert with_profile(WorkerConfig(engine="vllm", role=Role.DECODE, profile=path)).token_budget == 0


def test_without_a_profile_nothing_changes() -> None:
    config = WorkerConfig(role=Role.PREFILL)
    assert with_profile(config) is config
    assert batching_config(config, facts()).prefill_budget == 4096


def test_a_profile_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="tokenmill profile"):
        with_profile(WorkerConfig(profile="/nowhere/p.json"))


def test_the_sim_engine_plays_a_profile(path: str) -> None:
    settings = sim_settings(WorkerConfig(engine="sim", profile=path), shipped_model())
    assert settings.saturating_tokens == KNEE
    wanted = TableStepTime(PROFILE.table)
    assert settings.step_time.mixed_ms(100, 5000, 3, 900) == wanted.mixed_ms(100, 5000, 3, 900)


def test_a_worker_tells_the_step_times_that_it_is_given_before_its_profiles(
    path: str, tmp_path: Path
) -> None:
    assert step_table_of(WorkerConfig()) is None
    assert step_table_of(WorkerConfig(profile=path)) == PROFILE.table
    planned = msgspec.structs.replace(PROFILE.table, kv_capacity_tokens=12345)
    save_step_table(planned, tmp_path / "decode.steps.json")
    told = step_table_of(WorkerConfig(profile=path, step_times=str(tmp_path / "decode.steps.json")))
    assert told == planned
