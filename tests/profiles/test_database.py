"""Step times from the database. What needs it is left out, and says so, where the extra is not installed."""

from pathlib import Path

import pytest
from tests.decide.perf.test_table import table_of

from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.perf.efficiencies import EFFICIENCIES
from tokenmill.decide.perf.estimates import RooflineSource
from tokenmill.decide.perf.fitting import saturating_tokens
from tokenmill.decide.perf.model_config import shape_of
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes
from tokenmill.decide.perf.step_time import decode_batch_ms, prefill_batch_ms
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.errors import TokenmillError
from tokenmill.profiles import database, kernel_tables
from tokenmill.profiles.database import DatabaseSource
from tokenmill.profiles.kernel_tables import SYSTEMS, KernelTables, installed, known_configs
from tokenmill.profiles.known_models import CONFIGS
from tokenmill.profiles.table_cache import TableCache
from tokenmill.spec.stage import Parallel

needs_database = pytest.mark.skipif(
    not installed(), reason="the extra perf is not installed: pip install 'tokenmill[perf]'"
)
LLAMA_FP8 = "nvidia/Llama-3.1-70B-Instruct-FP8"


def ask(model: str = LLAMA_FP8, gpu: str = "h100", engine: str = "trtllm", **parallel: int) -> ReplicaAsk:
    return ReplicaAsk(
        shape=shape_of(model, CONFIGS[model]),
        gpu=CATALOGUE.gpu(gpu),
        parallel=Parallel(**parallel),
        engine=engine,
    )


class OneTable(KernelTables):
    """Tables without the database: one for everything, and how often it was read."""

    reads = 0

    def read(self, ask: ReplicaAsk, *, kv_capacity_tokens: int) -> object:
        self.reads += 1
        if ask.gpu.name == "l4":
            return NoTimes(reason="not measured")
        return table_of()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatabaseSource:
    monkeypatch.setattr(database, "installed", lambda: True)
    monkeypatch.setattr(database, "KernelTables", OneTable)
    return DatabaseSource(TableCache(tmp_path))


def test_tables_are_read_once_and_kept(source: DatabaseSource) -> None:
    first, again = source.replica(ask(tp=2)), source.replica(ask(tp=2))
    assert isinstance(first, ReplicaTimes)
    assert isinstance(again, ReplicaTimes)
    assert source._tables.reads == 1
    assert first.times.prefill_ms(100, 5000) == again.times.prefill_ms(100, 5000)
    assert first.times.kv_capacity_tokens == first.memory.kv_capacity_tokens
    source.replica(ask(tp=4))
    assert source._tables.reads == 2


def test_what_is_not_there_is_remembered_as_well(source: DatabaseSource) -> None:
    for _ in range(2):
        assert source.replica(ask(gpu="l4")) == NoTimes(reason="not measured")
    assert source._tables.reads == 1


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (database, kernel_tables):
        monkeypatch.setattr(module, "installed", lambda: False)
    found = DatabaseSource(TableCache(tmp_path)).replica(ask())
    assert isinstance(found, NoTimes)
    assert "pip install" in found.reason
    with pytest.raises(TokenmillError, match="pip install"):
        kernel_tables.require()


def test_systems_are_gpus_of_the_catalogue() -> None:
    assert all(CATALOGUE.gpu(name).name == name for name in SYSTEMS)


@pytest.mark.parametrize(("gpu", "engine", "why"), [("mi300x", "vllm", "mi300x"), ("h100", "torch", "torch")])
def test_what_was_not_measured_is_said(gpu: str, engine: str, why: str) -> None:
    found = KernelTables().read(ask(gpu=gpu, engine=engine), kv_capacity_tokens=1)
    assert isinstance(found, NoTimes)
    assert why in found.reason


@pytest.fixture(scope="module")
def llama_on_two() -> TableStepTime:
    found = KernelTables().read(ask(tp=2), kv_capacity_tokens=400_000)
    assert not isinstance(found, NoTimes), found
    return TableStepTime(found)


@needs_database
@pytest.mark.parametrize(
    ("prompts", "ms"),
    [
        ([(256, 0)], 25.5),
        ([(1000, 0)], 77.5),
        ([(3000, 0)], 215),
        ([(3000, 0)] * 2, 407),
        ([(1000, 2000)], 81.6),
        ([(3000, 0)] * 4, 810),
    ],
)
def test_prefill_is_what_the_database_says(llama_on_two: TableStepTime, prompts: list, ms: float) -> None:
    assert prefill_batch_ms(llama_on_two, prompts) == pytest.approx(ms, rel=0.02)


@needs_database
@pytest.mark.parametrize(("batch", "ms"), [(1, 16.2), (16, 18.2), (64, 23.4), (128, 30.1)])
def test_decode_is_what_the_database_says(llama_on_two: TableStepTime, batch: int, ms: float) -> None:
    assert decode_batch_ms(llama_on_two, [3000] * batch) == pytest.approx(ms, rel=0.02)


@needs_database
def test_mixed_is_what_the_database_says(llama_on_two: TableStepTime) -> None:
    found = llama_on_two.mixed_ms(512, 512 * 257, 32, 32 * 3000)
    assert found == pytest.approx(48.2, rel=0.04)


@needs_database
def test_one_prompt_saturates_this_plant(llama_on_two: TableStepTime) -> None:
    assert 256 <= saturating_tokens(llama_on_two.table) <= 2048


@needs_database
def test_other_number_formats_of_a_known_model() -> None:
    found = KernelTables().read(ask("nvidia/Llama-3.3-70B-Instruct-NVFP4", "b200"), kv_capacity_tokens=1)
    wide = KernelTables().read(ask("meta-llama/Llama-3.3-70B-Instruct", "b200"), kv_capacity_tokens=1)
    assert not isinstance(found, NoTimes)
    assert not isinstance(wide, NoTimes)
    prompt = [(4096, 0)]
    assert prefill_batch_ms(TableStepTime(found), prompt) < 0.6 * prefill_batch_ms(
        TableStepTime(wide), prompt
    )


@needs_database
@pytest.mark.parametrize("spread", [{"tp": 4}, {"tp": 4, "ep": 4}, {"dp": 4, "ep": 4}])
def test_experts_under_all_ways_to_spread_them(spread: dict) -> None:
    replica = ask("openai/gpt-oss-120b", engine="vllm", **spread)
    found = KernelTables().read(replica, kv_capacity_tokens=1)
    assert not isinstance(found, NoTimes), found
    assert 2 < decode_batch_ms(TableStepTime(found), [3000] * 16) < 20


@needs_database
def test_known_models_are_what_the_database_ships() -> None:
    """Two sources of the same facts."""
    pairs = {"openai/gpt-oss-120b": "openai/gpt-oss-120b", "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
             "deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-V3", LLAMA_FP8: LLAMA_FP8,
             "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B"}  # fmt: skip
    shipped = known_configs()
    for ours, theirs in pairs.items():
        mine, other = shape_of("m", CONFIGS[ours]), shape_of("m", *shipped[theirs])
        assert (mine.parameters, mine.attention, mine.experts) == (
            other.parameters,
            other.attention,
            other.experts,
        )
        assert (mine.dtype, mine.expert_dtype, mine.kv_dtype) == (
            other.dtype,
            other.expert_dtype,
            other.kv_dtype,
        )


@needs_database
@pytest.mark.parametrize("gpu", ["h100", "a100"])
def test_the_roofline_is_about_as_far_off_as_it_says(gpu: str) -> None:
    replica = ask("meta-llama/Llama-3.1-8B-Instruct", gpu, "vllm")
    table = KernelTables().read(replica, kv_capacity_tokens=1)
    assert not isinstance(table, NoTimes)
    roofline = RooflineSource(EFFICIENCIES).replica(replica)
    assert isinstance(roofline, ReplicaTimes)
    for prompts in ([(128, 0)], [(1024, 0)], [(4096, 0)] * 2):
        ratio = prefill_batch_ms(roofline.times, prompts) / prefill_batch_ms(TableStepTime(table), prompts)
        assert abs(ratio - 1) < 2 * roofline.expected_error
