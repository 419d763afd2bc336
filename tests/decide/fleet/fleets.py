"""Fleets, models and asks that the placement tests share."""

from __future__ import annotations

from functools import lru_cache

from tokenmill.decide.fleet.candidates import find_candidates
from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.inventory import Inventory, NodeGroup
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.fleet.options import Ask
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.perf.efficiency import Efficiency
from tokenmill.decide.perf.estimates import RooflineSource
from tokenmill.decide.perf.model_config import shape_of

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}


@lru_cache
def llama_70b():
    return shape_of("llama-70b-fp8", LLAMA_70B)


@lru_cache
def source():
    return RooflineSource({"": Efficiency()})


def group(gpu, nodes=1, gpus_per_node=8, dollars=None, zone="", **more):
    figures = CATALOGUE.gpu(gpu)
    return NodeGroup(
        name=more.pop("name", f"{gpu.lower()}{zone}"),
        gpu=figures,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        dollars_per_hour=figures.dollars_per_hour if dollars is None else dollars,
        within=Link(gb_per_s=figures.node_gb_per_s * 0.8, latency_ms=0.1),
        network=Link(gb_per_s=figures.nic_gb_per_s * 0.8, latency_ms=0.5),
        zone=zone,
        **more,
    )


def fleet(*groups, zone_links=None):
    inventory = Inventory(list(groups), zone_links or {})
    return inventory, *find_candidates(llama_70b(), inventory, source(), longest=4000)


def ask(rate=None, isl=3000, osl=150, cached=0, ttft=1000, itl=30, percentile=90, objective="cost"):
    return Ask(
        workload=steady(isl, osl, cached),
        promise=Promise(ttft_ms=ttft, itl_ms=itl, percentile=percentile),
        rate_per_s=rate,
        objective=objective,
    )
