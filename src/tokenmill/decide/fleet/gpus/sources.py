"""Where figures are from, by the names that the GPUs' modules use, and the rule that each figure has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DRIVER: Final = "memory as nvidia-smi reports it, rounded to whole GiB"
PCIE4: Final = "PCI Express 4.0 x16: 32 GB/s in one direction"
PCIE5: Final = "PCI Express 5.0 x16: 64 GB/s in one direction"
NIC_100G: Final = "usual cloud server: 100 Gbit/s shared by 4 GPUs"
NIC_200G: Final = "DGX A100: one 200 Gbit/s port a GPU"
NIC_400G: Final = "DGX H100, DGX H200 and NVIDIA OVX servers: one 400 Gbit/s port a GPU"
NIC_800G: Final = "ConnectX-8: one 800 Gbit/s port a GPU"
HALF: Final = "; dense figures are half of those that it gives with sparsity"

COREWEAVE: Final = "CoreWeave's list price on demand, February 2026"
COREWEAVE_CLASSIC: Final = "CoreWeave's list price on demand for PCIe cards, 2024"
AWS: Final = "AWS's list price on demand in us-east-1, 2025: the smallest instance with one such GPU"
AWS_BLOCKS: Final = "AWS's price of a capacity block in us-east-2, end of 2024"
VULTR: Final = "Vultr's list price on demand, 2025"

FIGURES: Final = (
    "memory_gib",
    "memory_gb_per_s",
    "tflops",
    "peer_gb_per_s",
    "pcie_gb_per_s",
    "nic_gb_per_s",
    "power_w",
    "dollars_per_hour",
    "gpus_per_node",
)
"""What must have a source."""


def sources(sheet: str, **other: str) -> Mapping[str, str]:
    """Return a source for each figure: the data sheet, but for those that ``other`` names.

    Raises ValueError for a figure that does not exist."""
    strange = other.keys() - set(FIGURES)
    if strange:
        raise ValueError(f"no such figures: {strange}")
    return {**dict.fromkeys(FIGURES, sheet), **other}
