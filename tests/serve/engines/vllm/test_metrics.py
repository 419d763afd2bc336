"""Reading vLLM's metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.vllm.metrics import read_metrics

TEXT = r"""
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 5732.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 2816.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.2e+06
vllm:generation_tokens_total{engine="0",model_name="a \"quoted\" name"} 296.0
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="1024"} 1.0
vllm:request_success_created{engine="0"} 1.795257413e+09
process_cpu_seconds_total 12.5
"""


def test_a_real_answer() -> None:
    assert read_metrics(TEXT) == EngineGauges(
        running=5,
        waiting=7,
        kv_used=0.5,
        prefix_hit_tokens=2816,
        prefix_query_tokens=5732,
        prompt_tokens=1_200_000,
        output_tokens=296,
        preemptions=1,
        kv_blocks=1024,
        block_tokens=32,
        ranks=2,
    )


def test_older_names() -> None:
    gauges = read_metrics("vllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_hits_total 8.0\n")
    assert (gauges.kv_used, gauges.prefix_hit_tokens) == (0.5, 8)


@given(st.text())
def test_nothing_crashes_it(text: str) -> None:
    read_metrics(text)
