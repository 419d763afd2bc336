from __future__ import annotations

import pytest

from tokenmill.decide.perf.device_priors import DEVICES, step_time_of
from tokenmill.decide.perf.step_time import LinearStepTime, prompt_ms

TIMES = LinearStepTime(
    fixed_ms=5, prefill_token_ms=0.1, prefill_context_ms=1e-5, decode_sequence_ms=0.1, decode_context_ms=1e-4
)


def stepwise(new, cached, chunk, sequences, read):
    """Add step after step, as the step scheduler makes them."""
    total_ms, start = 0.0, cached
    while start < cached + new:
        length = min(chunk, cached + new - start)
        total_ms += TIMES.mixed_ms(length, length * start + length * (length + 1) / 2, sequences, read)
        start += length
    return total_ms


@pytest.mark.parametrize(("new", "cached"), [(1, 0), (100, 0), (512, 64), (513, 0), (5000, 3000)])
@pytest.mark.parametrize("sequences", [0, 20])
def test_a_prompt_takes_the_sum_of_its_steps(new, cached, sequences):
    read = 1000 * sequences
    expected_ms = stepwise(new, cached, 512, sequences, read)
    found_ms = prompt_ms(TIMES, new, cached, chunk_tokens=512, sequences=sequences, decode_context=read)
    assert found_ms == pytest.approx(expected_ms, rel=0.005)


def test_nothing_takes_no_time():
    assert prompt_ms(TIMES, 0, 100, chunk_tokens=512) == 0.0


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "a100_sxm", "A100"])
def test_devices_are_known_by_many_names(name):
    assert step_time_of(name) == step_time_of("a100") != step_time_of("h100")


def test_priors_order_devices_as_data_sheets_do():
    assert step_time_of("H100") == LinearStepTime() == step_time_of("") == step_time_of("something new")
    assert step_time_of("l4").fixed_ms > step_time_of("h100").fixed_ms > step_time_of("h200").fixed_ms
    assert step_time_of("a30").prefill_token_ms > step_time_of("b200").prefill_token_ms
    assert all(device.tflops > 0 and device.tb_per_s > 0 for device in DEVICES.values())
