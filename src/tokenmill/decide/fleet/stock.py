"""From a fleet file to an inventory: figures from the catalogue, the file's own on top of them.

Pure; the file has been read and checked (``spec.load_fleet``).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tokenmill.decide.fleet.catalogue import Catalogue, Gpu
from tokenmill.decide.fleet.inventory import Inventory, NodeGroup, zone_pair
from tokenmill.decide.fleet.links import Link
from tokenmill.spec.fleet import Fleet, GpuFigures, Nodes

WITHIN_MS: Final = 0.05
"""Between two GPUs of a node, before the first byte: starting a copy."""

NETWORK_MS: Final = 0.3
"""Between two nodes of a zone: a few round trips; connections stand already."""

REACHED: Final = 0.8
"""Of a line's rate, what large transfers get."""

_FIGURES: Final = (
    "memory_gib",
    "memory_gb_per_s",
    "peer_gb_per_s",
    "pcie_gb_per_s",
    "nic_gb_per_s",
    "power_w",
    "gpus_per_node",
)


def inventory_of(fleet: Fleet, catalogue: Catalogue) -> Inventory:
    """Return what the fleet file declares. Raises ConfigError for a GPU that nobody knows."""
    catalogue = catalogue.replaced(_own(figures, catalogue) for figures in fleet.gpus)
    prices = {catalogue.gpu(name).name: price for name, price in fleet.prices.items()}
    groups = [_group(nodes, catalogue.gpu(nodes.gpu), prices) for nodes in fleet.nodes]
    links = {
        zone_pair(link.zones[0], link.zones[1]): Link(gb_per_s=link.gb_per_s, latency_ms=link.latency_ms)
        for link in fleet.links
    }
    return Inventory(groups, links)


def inventory_of_one(gpu: Gpu, gpus: int) -> Inventory:
    """Return ``gpus`` GPUs in as few of the usual servers as hold them: for plans without a fleet file."""
    per_node = min(gpus, gpu.gpus_per_node)
    nodes = Nodes(name=gpu.name, gpu=gpu.name, count=-(-gpus // per_node), gpus=per_node)
    return Inventory([_group(nodes, gpu, {})], {})


def _own(figures: GpuFigures, catalogue: Catalogue) -> Gpu:
    given: dict[str, Any] = {name: value for name in _FIGURES if (value := getattr(figures, name))}
    known = catalogue.find(figures.name)
    if known is None:
        given["tflops"] = figures.tflops
        sources = dict.fromkeys(given, "fleet file")
        return Gpu(name=figures.name, maker="", dollars_per_hour=0.0, sources=sources, **given)
    if figures.tflops:
        given["tflops"] = {**known.tflops, **figures.tflops}
    sources = {**known.sources, **dict.fromkeys(given, "fleet file")}
    return msgspec.structs.replace(known, **given, sources=sources)


def _group(nodes: Nodes, gpu: Gpu, prices: dict[str, float]) -> NodeGroup:
    price = nodes.dollars_per_gpu_hour
    if price is None:
        price = prices.get(gpu.name, gpu.dollars_per_hour)
    return NodeGroup(
        name=nodes.name,
        gpu=gpu,
        nodes=nodes.count,
        gpus_per_node=nodes.gpus or gpu.gpus_per_node,
        dollars_per_hour=price,
        within=Link(gb_per_s=(nodes.node_gb_per_s or gpu.node_gb_per_s) * REACHED, latency_ms=WITHIN_MS),
        network=Link(gb_per_s=(nodes.nic_gb_per_s or gpu.nic_gb_per_s) * REACHED, latency_ms=NETWORK_MS),
        zone=nodes.zone,
        availability=nodes.availability,
        interruptions_per_day=nodes.interruptions_per_day,
    )
