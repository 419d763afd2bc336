"""Reading SGLang's metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.sglang.metrics import read_metrics

TEXT = r"""
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="prefill",model_name="m",tp_rank="0"} 3.0
sglang:num_running_reqs{engine_type="prefill",model_name="m",tp_rank="1"} 3.0
sglang:num_prefill_inflight_queue_reqs{model_name="m",tp_rank="0"} 1.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:num_prefill_bootstrap_queue_reqs{model_name="m",tp_rank="0"} 4.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.25
sglang:num_retracted_requests_total{model_name="m"} 1.0
sglang:realtime_tokens_total{mode="prefill_compute",model_name="m",tp_rank="0"} 700.0
sglang:realtime_tokens_total{mode="prefill_cache",model_name="m",tp_rank="0"} 300.0
sglang:realtime_tokens_total{mode="decode",model_name="m",tp_rank="0"} 50.0
sglang:cuda_graph_passes_total{mode="decode_cuda_graph",model_name="m",tp_rank="0"} 40.0
sglang:cuda_graph_passes_total{mode="decode_cuda_graph",model_name="m",tp_rank="1"} 40.0
sglang:cuda_graph_passes_total{mode="prefill_none",model_name="m",tp_rank="0"} 2.0
sglang:prompt_tokens_total{is_streaming="true",model_name="m"} 1.2e+06
sglang:generation_tokens_total{is_streaming="true",model_name="a \"quoted\" name"} 200.0
sglang:generation_tokens_total{is_streaming="false",model_name="m"} 96.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 9.0
sglang:e2e_request_latency_seconds_bucket{le="+Inf"} 12.0
process_cpu_seconds_total 12.5
"""


def test_an_answer() -> None:
    assert read_metrics(TEXT) == EngineGauges(
        running=4,
        waiting=6,
        kv_used=0.25,
        prefix_hit_tokens=300,
        prefix_query_tokens=1000,
        prompt_tokens=1000,
        output_tokens=296,
        preemptions=1,
        steps=42,
    )


def test_data_parallel_ranks_add_up_and_tensor_parallel_ones_do_not() -> None:
    lines = [
        f'sglang:num_running_reqs{{dp_rank="{dp}",tp_rank="{2 * dp + tp}"}} {value}'
        for dp, value in ((0, 5.0), (1, 7.0))
        for tp in (0, 1)
    ]
    assert read_metrics("\n".join(lines)).running == 12


def test_older_servers_count_prompts_only() -> None:
    text = (
        "sglang:prompt_tokens_total 80.0\n"
        'sglang:cached_tokens_total{cache_source="device"} 10.0\n'
        'sglang:cached_tokens_total{cache_source="host"} 6.0\n'
    )
    gauges = read_metrics(text)
    assert (gauges.prompt_tokens, gauges.prefix_hit_tokens) == (80, 16)


def test_what_is_no_number_is_left_out() -> None:
    assert read_metrics("sglang:num_queue_reqs NaN\nsglang:num_running_reqs 2.0\n").running == 2


@given(st.text())
def test_nothing_crashes_it(text: str) -> None:
    read_metrics(text)
    read_metrics(f"sglang:{text}")
