"""From a fleet file to an inventory: prices, figures, links."""

import pytest

from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.fleet.stock import REACHED, inventory_of, inventory_of_one
from tokenmill.spec.fleet import Fleet
from tokenmill.spec.load_fleet import parse_fleet

FLEET = """
metadata: {name: lab}
nodes:
  - {name: fast, gpu: H100, count: 2, zone: east}
  - {name: also, gpu: h100-sxm, zone: east, dollars_per_gpu_hour: 0}
  - name: cheap
    gpu: l40s
    gpus: 4
    count: 3
    zone: west
    availability: spot
    interruptions_per_day: 0.5
    nic_gb_per_s: 10
  - {name: own, gpu: mine}
links: [{zones: [west, east], gb_per_s: 1.25, latency_ms: 20}]
prices: {H100: 2.0}
gpus:
  - {name: l40s, power_w: 300, tflops: {fp8: 700}}
  - {name: mine, memory_gib: 32, memory_gb_per_s: 1000, tflops: {bf16: 100}, pcie_gb_per_s: 32, power_w: 200,
     nic_gb_per_s: 5, gpus_per_node: 2}
"""


def read(text: str = FLEET) -> Fleet:
    return parse_fleet(
        text, "fleet.yaml", is_known=lambda name: CATALOGUE.find(name) is not None, known=CATALOGUE.names
    )


INVENTORY = inventory_of(read(), CATALOGUE)
FAST, ALSO, CHEAP, OWN = INVENTORY.groups


def test_prices_go_from_near_to_far() -> None:
    assert FAST.dollars_per_hour == 2.0  # of the file
    assert ALSO.dollars_per_hour == 0.0  # of the group
    assert CHEAP.dollars_per_hour == CATALOGUE.gpu("l40s").dollars_per_hour


def test_figures_of_the_file_go_before_the_catalogues() -> None:
    assert CHEAP.power_w == 300
    assert CHEAP.gpu.tflops["fp8"] == 700
    assert CHEAP.gpu.tflops["bf16"] == CATALOGUE.gpu("l40s").tflops["bf16"]
    assert CHEAP.gpu.sources["power_w"] == "fleet file"
    assert CATALOGUE.gpu("l40s").power_w == 350
    assert OWN.gpu.memory_gib == 32
    assert OWN.gpus == 2


def test_gpus_are_counted() -> None:
    assert (FAST.gpus, ALSO.gpus, CHEAP.gpus) == (16, 8, 12)
    assert INVENTORY.gpus == 16 + 8 + 12 + 2
    assert INVENTORY.group("cheap") is CHEAP


@pytest.mark.parametrize(
    ("gpus", "replicas"), [(1, 12), (2, 6), (3, 3), (4, 3), (5, 1), (8, 1), (12, 1), (13, 0)]
)
def test_replicas_stand_within_nodes_or_on_whole_ones(gpus: int, replicas: int) -> None:
    assert CHEAP.replicas_that_fit(gpus) == replicas


def test_links_are_bound_by_the_slowest_part() -> None:
    near = INVENTORY.link(FAST, FAST, same_node=True, sender_gpus=2, receiver_gpus=4)
    assert near.gb_per_s == pytest.approx(450 * REACHED * 2)
    rack = INVENTORY.link(FAST, ALSO, sender_gpus=4, receiver_gpus=2)
    assert rack.gb_per_s == pytest.approx(50 * REACHED * 2)
    far = INVENTORY.link(FAST, CHEAP, sender_gpus=8, receiver_gpus=8)
    assert far.gb_per_s == 1.25
    assert far.latency_ms > 20
    assert far.shared == INVENTORY.link(CHEAP, FAST).shared
    assert INVENTORY.link(FAST, OWN).gb_per_s == 2.5  # zones that no line links
    assert near.transfer_ms(1e9) < rack.transfer_ms(1e9) < far.transfer_ms(1e9)


def test_a_link_needs_a_speed() -> None:
    with pytest.raises(ValueError, match="speed"):
        Link(gb_per_s=0)


def test_an_inventory_without_a_file() -> None:
    found = inventory_of_one(CATALOGUE.gpu("h100"), 12)
    assert [(group.nodes, group.gpus_per_node) for group in found.groups] == [(2, 8)]
    assert inventory_of_one(CATALOGUE.gpu("b200"), 1).gpus == 1
