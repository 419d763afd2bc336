"""What of the catalogue an operator has: groups of equal nodes, their prices, and the links between them.

Exists so that placement and simulator ask one object for room, price and bandwidth. It must not know models,
nor how the fleet file is read (``spec.fleet``).
"""

from __future__ import annotations

import msgspec

from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.fleet.links import Link
from tokenmill.spec.fleet import Availability


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Equal nodes in one zone at one price. ``nodes`` of ``gpus_per_node`` GPUs each.

    ``dollars_per_hour``: for one GPU. ``power_w``: of one GPU. ``within``: between two GPUs of one node;
    ``network``: from one GPU of a node out to the network. ``interruptions_per_day``: how often a node of
    this group is taken away, for spot.
    """

    name: str
    gpu: Gpu
    nodes: int
    gpus_per_node: int
    dollars_per_hour: float
    within: Link
    network: Link
    zone: str = ""
    availability: Availability = "on-demand"
    interruptions_per_day: float = 0.0

    @property
    def gpus(self) -> int:
        """GPUs of all its nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def power_w(self) -> float:
        """Of one GPU at its limit."""
        return self.gpu.power_w

    def replicas_that_fit(self, gpus_per_replica: int) -> int:
        """How many replicas of so many GPUs fit: within nodes, or over whole nodes where larger."""
        if gpus_per_replica <= self.gpus_per_node:
            return self.nodes * (self.gpus_per_node // gpus_per_replica)
        nodes_per_replica = -(-gpus_per_replica // self.gpus_per_node)
        return self.nodes // nodes_per_replica


class Inventory:
    """All groups of a fleet. ``zone_links``: between two zones (as a sorted pair), for one transfer."""

    def __init__(self, groups: list[NodeGroup], zone_links: dict[tuple[str, str], Link]) -> None:
        self.groups = groups
        self._by_name = {group.name: group for group in groups}
        self._zone_links = zone_links

    @property
    def gpus(self) -> int:
        """GPUs of the whole fleet."""
        return sum(group.gpus for group in self.groups)

    def group(self, name: str) -> NodeGroup:
        """Return a group by name. Raises KeyError."""
        return self._by_name[name]

    def with_groups(self, groups: list[NodeGroup]) -> Inventory:
        """Return a fleet of other groups over the same links between zones."""
        return Inventory(groups, self._zone_links)

    def link(
        self,
        sender: NodeGroup,
        receiver: NodeGroup,
        *,
        same_node: bool = False,
        sender_gpus: int = 1,
        receiver_gpus: int = 1,
    ) -> Link:
        """Return the way of a KV cache from a replica in one group to one in another.

        Replicas of several GPUs send on all their links at once: the side with fewer bounds it.
        ``same_node``: both stand in one node (of one group), so that no network is in between.
        """
        pairs = max(1, min(sender_gpus, receiver_gpus))
        if same_node and sender.name == receiver.name:
            within = sender.within
            return Link(gb_per_s=within.gb_per_s * pairs, latency_ms=within.latency_ms)
        speed = min(sender.network.gb_per_s * sender_gpus, receiver.network.gb_per_s * receiver_gpus)
        latency_ms = max(sender.network.latency_ms, receiver.network.latency_ms)
        if sender.zone == receiver.zone:
            return Link(gb_per_s=speed, latency_ms=latency_ms, shared=f"network {sender.name}")
        between = self._zone_links.get(zone_pair(sender.zone, receiver.zone), BETWEEN_ZONES)
        return Link(
            gb_per_s=min(speed, between.gb_per_s),
            latency_ms=latency_ms + between.latency_ms,
            shared="zones {} {}".format(*zone_pair(sender.zone, receiver.zone)),
        )


BETWEEN_ZONES = Link(gb_per_s=2.5, latency_ms=1.0)
"""Between zones that the fleet file links by no line: 20 Gbit/s for one transfer, a round trip in a city."""


def zone_pair(first: str, second: str) -> tuple[str, str]:
    """The key of ``zone_links``: order does not matter."""
    return (first, second) if first <= second else (second, first)
