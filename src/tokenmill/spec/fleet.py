"""The fleet file's types: the hardware a person has or can rent, its prices and its links.

What a GPU can do stands in the catalogue (``decide.fleet``); the file names GPUs and overrides figures. Knows
nothing of YAML.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import field

from tokenmill.spec.parts import Above0, AtLeast0, AtLeast0Float, AtLeast1, Name, Part

FLEET_KIND: Final = "Fleet"

Availability = Literal["on-demand", "reserved", "spot"]
"""on-demand: there when asked for; reserved: paid for in any case; spot: cheaper, and may be taken away."""


class FleetMetadata(Part, frozen=True, kw_only=True):
    """Which fleet this is."""

    name: Name
    """Names the fleet in reports: lower-case letters, digits, '-'."""


class Nodes(Part, frozen=True, kw_only=True):
    """Equal nodes in one zone at one price."""

    name: Name
    """Names these nodes in plans."""

    gpu: str
    """The kind of GPU in them, by a name of the catalogue or of this file's ``gpus``."""

    count: AtLeast1 = 1
    """How many such nodes there are, or can be had."""

    gpus: AtLeast0 = 0
    """GPUs in one node; 0: as in the usual server with this GPU."""

    zone: str = ""
    """Where they stand; nodes of one zone share a network. Empty: all in one place."""

    availability: Availability = "on-demand"
    """on-demand, reserved (paid for in any case) or spot (cheaper, and may be taken away)."""

    dollars_per_gpu_hour: AtLeast0Float | None = None
    """Price of one GPU with its share of the node; not given: the one in ``prices``, else the catalogue's."""

    interruptions_per_day: AtLeast0Float = 0.0
    """How often a node is taken away, for spot."""

    node_gb_per_s: AtLeast0Float = 0.0
    """Between two GPUs of one node, GB/s in one direction; 0: the catalogue's."""

    nic_gb_per_s: AtLeast0Float = 0.0
    """Network of one GPU, GB/s in one direction; 0: the catalogue's."""


class ZoneLink(Part, frozen=True, kw_only=True):
    """What one transfer gets between two zones."""

    zones: list[str]
    """The two zones."""

    gb_per_s: Above0
    """GB/s in one direction."""

    latency_ms: AtLeast0Float = 1.0
    """Before the first byte, in milliseconds."""


class GpuFigures(Part, frozen=True, kw_only=True):
    """A GPU that the catalogue lacks, or other figures for one that it has; what is left out stays."""

    name: str
    """Its name; one of the catalogue's changes that one."""

    memory_gib: AtLeast0Float = 0.0
    """Device memory in GiB."""

    memory_gb_per_s: AtLeast0Float = 0.0
    """Memory bandwidth, GB/s."""

    tflops: dict[str, Above0] = field(default_factory=dict)
    """Dense matrix products by number format (bf16, fp8, fp4, ...), TFLOP/s."""

    peer_gb_per_s: AtLeast0Float = 0.0
    """To the other GPUs of its node over NVLink or the like, GB/s in one direction."""

    pcie_gb_per_s: AtLeast0Float = 0.0
    """PCIe, GB/s in one direction."""

    nic_gb_per_s: AtLeast0Float = 0.0
    """Network of one GPU, GB/s in one direction."""

    power_w: AtLeast0Float = 0.0
    """The most it draws, in watts."""

    gpus_per_node: AtLeast0 = 0
    """GPUs of one server."""


class Fleet(Part, frozen=True, kw_only=True):
    """The hardware that a plan may use."""

    api_version: Literal["tokenmill/v1"] = msgspec.field(default="tokenmill/v1", name="apiVersion")
    """The file format's version."""

    kind: Literal["Fleet"] = FLEET_KIND
    """What the file declares."""

    metadata: FleetMetadata
    """Which fleet this is."""

    nodes: list[Nodes]
    """The nodes, in groups of equal ones."""

    links: list[ZoneLink] = field(default_factory=list)
    """What connects the zones; two that are not named get 2.5 GB/s and 1 ms."""

    prices: dict[str, AtLeast0Float] = field(default_factory=dict)
    """Dollars for one GPU and hour, by GPU name, in place of the catalogue's."""

    gpus: list[GpuFigures] = field(default_factory=list)
    """GPUs that the catalogue lacks, or other figures for those it has."""
