"""Profile files: what is written is read again; what is no profile is refused with the fix."""

from pathlib import Path

import msgspec
import pytest
from tests.decide.perf.test_fitting import sweep

from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.perf.fitting import find_knee, fit_error, fit_table
from tokenmill.decide.perf.model_config import shape_of
from tokenmill.decide.perf.profile import Machine, Profile
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.errors import ConfigError
from tokenmill.profiles.known_models import CONFIGS
from tokenmill.profiles.measured import MeasuredSource
from tokenmill.profiles.profile_file import load_profile, save_profile
from tokenmill.profiles.sources import step_time_source
from tokenmill.spec.stage import Parallel

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def a_profile(**changes: object) -> Profile:
    measurements = sweep(LinearStepTime(), 0.01)
    table = fit_table(measurements, kv_bytes_per_token=131072, kv_capacity_tokens=400_000)
    profile = Profile(
        model="/models/Llama-3.1-8B-Instruct",
        engine="vllm",
        machine=Machine(cpu="a", cores=8, gpu="NVIDIA H100 80GB HBM3", gpus=1),
        versions={"tokenmill": "1"},
        method="steps",
        measurements=measurements,
        table=table,
        knee=find_knee(measurements),
        fit=fit_error(table, measurements),
        taken="2026-01-02",
    )
    return msgspec.structs.replace(profile, **changes)


PROFILE = a_profile()


def ask(**changes: object) -> ReplicaAsk:
    plain = ReplicaAsk(shape=shape_of(LLAMA, CONFIGS[LLAMA]), gpu=CATALOGUE.gpu("h100"))
    return msgspec.structs.replace(plain, **changes)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    save_profile(PROFILE, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == PROFILE
    assert '"kind": "Profile"' in (tmp_path / "p.json").read_text()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "Factory"}', "\xff\xfe"])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="make it anew with"):
        load_profile(tmp_path / "p.json")


def test_a_table_that_was_edited_wrongly_is_refused(tmp_path: Path) -> None:
    save_profile(PROFILE, tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text().replace('"sequences": [\n   1.0,', '"sequences": [\n   99.0,')
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match="sequences"):
        load_profile(tmp_path / "p.json")


def test_places_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        save_profile(PROFILE, tmp_path / "no" / "p.json")


def test_a_measured_replica_is_found_by_gpu_model_engine_and_parallelism() -> None:
    source = MeasuredSource([PROFILE])
    found = source.replica(ask())
    assert isinstance(found, ReplicaTimes)
    assert found.origin == "measured"
    assert found.expected_error == PROFILE.fit.mean_error
    assert found.times.prefill_ms(100, 5000) > 0
    for other in (
        ask(gpu=CATALOGUE.gpu("a100")),
        ask(engine="sglang"),
        ask(parallel=Parallel(tp=2)),
        ask(shape=shape_of("Qwen/Qwen3-8B", CONFIGS["Qwen/Qwen3-8B"])),
    ):
        assert isinstance(source.replica(other), NoTimes)


def test_room_that_a_profile_does_not_know_is_reckoned() -> None:
    table = msgspec.structs.replace(PROFILE.table, kv_capacity_tokens=0, kv_bytes_per_token=0.0)
    found = MeasuredSource([a_profile(table=table)]).replica(ask())
    assert isinstance(found, ReplicaTimes)
    assert found.times.kv_capacity_tokens == found.memory.kv_capacity_tokens > 0
    assert found.times.kv_bytes_per_token == 131072


def test_what_was_measured_goes_before_what_is_reckoned(tmp_path: Path) -> None:
    save_profile(PROFILE, tmp_path / "p.json")
    source = step_time_source(profiles=[tmp_path / "p.json"], database=False)
    answers = [source.replica(each) for each in (ask(), ask(gpu=CATALOGUE.gpu("mi300x")))]
    assert [each.origin for each in answers if isinstance(each, ReplicaTimes)] == ["measured", "roofline"]
