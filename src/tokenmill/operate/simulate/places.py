"""Where a factory's workers stand: which nodes of the fleet, at which price, on which hosts, by which links.

A stage stands in one group of equal nodes; its replicas fill them one node after the other. It must not know
step times or batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.inventory import Inventory, NodeGroup
from tokenmill.decide.fleet.stock import inventory_of_one
from tokenmill.protocol.ids import Role
from tokenmill.simulate.scene import LinkScene
from tokenmill.spec.placement import HERE, gpus_of_replica, host_of
from tokenmill.spec.scenario import LinkSetting, Scenario
from tokenmill.spec.stage import Stage

HERE_NAME: Final = "host"
"""What the one machine is called that stages without GPUs run on."""

MEMORY_LINK: Final = LinkScene(bytes_per_s=4e9, latency_s=0.001)
"""Between two processes of one machine without GPUs: copying within memory, and a few round trips."""

NETWORK_LINK: Final = LinkScene(bytes_per_s=1e9, latency_s=0.001)
"""Between two such machines: a network of 10 Gbit/s."""


class Places:
    """``of`` each stage once, in the order of the file."""

    def __init__(self, inventory: Inventory | None, prices: Mapping[str, float]) -> None:
        self._inventory = inventory
        self._prices = {CATALOGUE.gpu(name).name: price for name, price in prices.items()}
        self._taken: dict[str, int] = {}
        """GPUs taken, by group or machine."""
        self.notes: list[str] = []

    def group_of(self, stage: Stage) -> NodeGroup | None:
        """Return the nodes that a stage stands in; None where it names no GPU. Raises ConfigError."""
        if not stage.gpu:
            return None
        gpu = CATALOGUE.gpu(stage.gpu)
        need = stage.replicas * max(1, gpus_of_replica(stage))
        group = self._owned(gpu.name, need, stage.name) or inventory_of_one(gpu, gpu.gpus_per_node).groups[0]
        price = self._prices.get(gpu.name, group.dollars_per_hour)
        return msgspec.structs.replace(group, dollars_per_hour=price)

    def _owned(self, gpu: str, need: int, stage: str) -> NodeGroup | None:
        """The fleet's nodes with this GPU: reserved ones first, then the cheapest that have room for all."""
        if self._inventory is None:
            return None
        groups = [group for group in self._inventory.groups if group.gpu.name == gpu]
        groups.sort(key=lambda each: (each.availability != "reserved", each.dollars_per_hour))
        room = next((each for each in groups if each.gpus - self._taken.get(each.name, 0) >= need), None)
        if room is None:
            have = sum(each.gpus for each in groups)
            self.notes.append(f"the fleet has {have} {gpu}; with stage {stage} more are simulated")
            room = groups[-1] if groups else None
        return room

    def hosts_of(self, stage: Stage, group: NodeGroup | None) -> tuple[str, ...]:
        """Return the host of each worker that a stage begins with, at least one."""
        machine = host_of(stage)
        if group is None:
            return (machine or HERE_NAME,)
        name = group.name if machine == HERE else machine
        size = max(1, gpus_of_replica(stage))
        hosts = []
        for _ in range(max(1, stage.replicas)):
            at = self._taken.get(name, 0)
            left = group.gpus_per_node - at % group.gpus_per_node
            if left < min(size, group.gpus_per_node):
                at += left
            self._taken[name] = at + size
            node = at // group.gpus_per_node
            hosts.append(f"{name}-{node}" if machine == HERE else machine)
        return tuple(hosts)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A stage for the sake of its links: ``gpus`` of one worker."""

    role: Role
    group: NodeGroup | None
    gpus: int


def links_of(
    standing: Sequence[Standing], inventory: Inventory | None, scenario: Scenario
) -> tuple[LinkScene, LinkScene]:
    """Return what a port between hosts carries, and one within a host.

    A port is that of one worker: of all pairs that hand over, the slowest's. Several workers of one host
    share it, which is less than their own ports together would carry.
    """
    fleet = inventory or Inventory([], {})
    between, within = [], []
    pairs = [
        (giver, taker)
        for giver in standing
        for taker in standing
        if giver.role is Role.PREFILL and taker.role is Role.DECODE
    ]
    for giver, taker in pairs:
        if giver.group is None or taker.group is None:
            between.append(NETWORK_LINK)
            within.append(MEMORY_LINK)
            continue
        for same_node, found in ((False, between), (True, within)):
            if same_node and giver.group.name != taker.group.name:
                continue
            link = fleet.link(
                giver.group,
                taker.group,
                same_node=same_node,
                sender_gpus=giver.gpus,
                receiver_gpus=taker.gpus,
            )
            found.append(LinkScene(bytes_per_s=link.gb_per_s * 1e9, latency_s=link.latency_ms / 1000))
    return (
        _setting(scenario.links.between_hosts) or _slowest(between, NETWORK_LINK),
        _setting(scenario.links.same_host) or _slowest(within, MEMORY_LINK),
    )


def _slowest(links: list[LinkScene], otherwise: LinkScene) -> LinkScene:
    return min(links, key=lambda each: each.bytes_per_s, default=otherwise)


def _setting(setting: LinkSetting | None) -> LinkScene | None:
    if setting is None:
        return None
    return LinkScene(bytes_per_s=setting.gb_per_s * 1e9, latency_s=setting.latency_ms / 1000)
