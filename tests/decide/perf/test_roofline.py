"""The roofline: from first principles, so that what physics says holds for all models and GPUs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.perf.efficiencies import EFFICIENCIES
from tokenmill.decide.perf.efficiency import Efficiency
from tokenmill.decide.perf.estimates import FirstThatKnows, RooflineSource
from tokenmill.decide.perf.model_config import shape_of
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes
from tokenmill.decide.perf.step_time import decode_batch_ms, prefill_batch_ms
from tokenmill.profiles.known_models import CONFIGS
from tokenmill.spec.stage import Parallel

SOURCE = RooflineSource(EFFICIENCIES)
LLAMA_8B, LLAMA_70B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_70B_FP8 = "nvidia/Llama-3.1-70B-Instruct-FP8"
MODELS = st.sampled_from([LLAMA_8B, LLAMA_70B_FP8, "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V3"])
GPUS = st.sampled_from(CATALOGUE.gpus)
PARALLEL = st.builds(Parallel, tp=st.sampled_from([1, 2, 4, 8]), dp=st.sampled_from([1, 2]), ep=st.just(2))


def ask(model: str, gpu: str | Gpu, **parallel: int) -> ReplicaAsk:
    found = CATALOGUE.gpu(gpu) if isinstance(gpu, str) else gpu
    return ReplicaAsk(shape=shape_of(model, CONFIGS[model]), gpu=found, parallel=Parallel(**parallel))


def answer(model: str, gpu: str | Gpu, **parallel: int) -> ReplicaTimes:
    found = SOURCE.replica(ask(model, gpu, **parallel))
    assert isinstance(found, ReplicaTimes)
    return found


def test_decode_of_one_is_reading_the_weights() -> None:
    ms = decode_batch_ms(answer(LLAMA_70B, "h100", tp=4).times, [100])
    reading_ms = 141e9 / 4 / 3350e9 * 1e3
    assert reading_ms < ms < 2.5 * reading_ms


def test_prefill_is_arithmetic() -> None:
    ms = prefill_batch_ms(answer(LLAMA_8B, "h100").times, [(8192, 0)])
    arithmetic_ms = 2 * 7.5e9 * 8192 / 989e12 * 1e3
    assert arithmetic_ms < ms < 3 * arithmetic_ms


@settings(max_examples=30, deadline=None)
@given(MODELS, GPUS, PARALLEL)
def test_tables_rise_for_any_model_on_any_gpu(model: str, gpu: Gpu, parallel: Parallel) -> None:
    found = SOURCE.replica(ReplicaAsk(shape=shape_of(model, CONFIGS[model]), gpu=gpu, parallel=parallel))
    assert isinstance(found, ReplicaTimes)
    table = found.times.table  # type: ignore[attr-defined]
    for line in (table.dense_ms, table.decode_dense_ms):
        assert line[0] > 0
        assert list(line) == sorted(line)
    for plane in (table.prefill_attention_ms, table.decode_attention_ms):
        for row in (*plane, *zip(*plane, strict=True)):
            assert list(row) == sorted(row)


@pytest.mark.parametrize(
    ("slower", "faster"), [("a100", "h100"), ("h100", "h200"), ("l40s", "h100"), ("l4", "l40s")]
)
def test_better_gpus_are_faster(slower: str, faster: str) -> None:
    slow, fast = answer(LLAMA_8B, slower).times, answer(LLAMA_8B, faster).times
    assert decode_batch_ms(fast, [2000] * 16) < decode_batch_ms(slow, [2000] * 16)
    assert prefill_batch_ms(fast, [(4096, 0)]) <= prefill_batch_ms(slow, [(4096, 0)]) * 1.05


def test_tensor_parallelism_shares_the_work_and_pays_for_it() -> None:
    one, four = answer(LLAMA_70B_FP8, "h100", tp=1).times, answer(LLAMA_70B_FP8, "h100", tp=4).times
    ratio = prefill_batch_ms(one, [(4096, 0)]) / prefill_batch_ms(four, [(4096, 0)])
    assert 1.5 < ratio < 4


def test_over_pcie_sharing_pays_less_than_over_nvlink() -> None:
    def gain(gpu: str) -> float:
        one, four = answer(LLAMA_8B, gpu, tp=1).times, answer(LLAMA_8B, gpu, tp=4).times
        return prefill_batch_ms(one, [(4096, 0)]) / prefill_batch_ms(four, [(4096, 0)])

    assert gain("l40s") < gain("h100")


def test_narrow_weights_without_units_for_them_are_widened() -> None:
    fp8, wide = answer(LLAMA_70B_FP8, "a100", tp=4).times, answer(LLAMA_70B, "a100", tp=4).times
    assert prefill_batch_ms(fp8, [(8192, 0)]) == pytest.approx(prefill_batch_ms(wide, [(8192, 0)]), rel=0.1)
    assert decode_batch_ms(fp8, [100]) < 0.75 * decode_batch_ms(wide, [100])


def test_windows_bound_attention() -> None:
    times = answer("openai/gpt-oss-120b", "h100", tp=2).times
    near, far = (decode_batch_ms(times, [context] * 64) for context in (128, 8192))
    all_full_ms = 64 * (8192 - 128) * 72 * 1024 / 2 / 3350e9 * 1e3
    assert far - near < all_full_ms


def test_memory_says_what_fits() -> None:
    assert not answer(LLAMA_70B, "h100").memory.fits
    assert answer(LLAMA_70B, "h100").memory.lacking_gib() > 40
    found = answer(LLAMA_70B_FP8, "h100", tp=2)
    assert found.memory.fits
    assert 300_000 < found.memory.kv_capacity_tokens < 500_000
    assert found.times.kv_capacity_tokens == found.memory.kv_capacity_tokens
    assert found.times.kv_bytes_per_token == 160 * 1024


def test_an_fp8_cache_holds_twice_as_much() -> None:
    wide = ask(LLAMA_8B, "h100")
    narrow = ReplicaAsk(shape=wide.shape, gpu=wide.gpu, kv_dtype="fp8")
    answers = [SOURCE.replica(each) for each in (wide, narrow)]
    capacities = [each.memory.kv_capacity_tokens for each in answers if isinstance(each, ReplicaTimes)]
    assert capacities[1] == pytest.approx(2 * capacities[0], rel=0.01)


def test_gpus_that_nobody_measured_say_so() -> None:
    assert "mi300x" in answer(LLAMA_8B, "mi300x").note
    assert answer(LLAMA_8B, "h100").note == ""
    assert answer(LLAMA_8B, "mi300x").expected_error >= answer(LLAMA_8B, "a100").expected_error


def test_a_fit_is_never_perfect() -> None:
    assert {"", "pcie", "h100-sxm", "a100-80-sxm"} <= EFFICIENCIES.keys()
    assert all(0.01 < each.fit_error < 1 for each in EFFICIENCIES.values())
    assert all(
        0 < getattr(each, name) <= 1.3 for each in EFFICIENCIES.values() for name in ("products", "weights")
    )


class Counting:
    def __init__(self, inner: RooflineSource | None) -> None:
        self.asked = 0
        self._inner = inner

    def replica(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        self.asked += 1
        return NoTimes(reason="not me") if self._inner is None else self._inner.replica(ask)


def test_the_first_source_that_knows_answers_and_is_asked_once() -> None:
    ignorant, knowing, never = Counting(None), Counting(SOURCE), Counting(SOURCE)
    source = FirstThatKnows([ignorant, knowing, never])
    first, again = source.replica(ask(LLAMA_8B, "h100")), source.replica(ask(LLAMA_8B, "h100"))
    assert first is again
    assert (ignorant.asked, knowing.asked, never.asked) == (1, 1, 0)
    source.replica(ask(LLAMA_8B, "h100", tp=2))
    assert knowing.asked == 2


def test_where_nobody_knows_all_say_why() -> None:
    found = FirstThatKnows([Counting(None), Counting(None)]).replica(ask(LLAMA_8B, "h100"))
    assert found == NoTimes(reason="not me; not me")


def test_higher_efficiency_is_faster() -> None:
    slow = RooflineSource({"": Efficiency(products=0.4, weights=0.4)})
    fast = RooflineSource({"": Efficiency(products=0.8, weights=0.8)})
    slow_times, fast_times = (each.replica(ask(LLAMA_8B, "h100")) for each in (slow, fast))
    assert isinstance(slow_times, ReplicaTimes)
    assert isinstance(fast_times, ReplicaTimes)
    assert decode_batch_ms(fast_times.times, [10]) < decode_batch_ms(slow_times.times, [10])
