"""AMD's GPUs."""

from __future__ import annotations

from typing import Final

from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.fleet.gpus.sources import PCIE5, VULTR, sources

_FABRIC: Final = "AMD Infinity Platform: seven links of 64 GB/s in one direction, one to each other GPU"
_NIC: Final = "usual server: one 400 Gbit/s port a GPU"

AMD: Final = (
    Gpu(
        name="mi300x",
        maker="AMD",
        aliases=("instinct-mi300x",),
        memory_gib=192,
        memory_gb_per_s=5300,
        tflops={"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "int8": 2614.9},
        peer_gb_per_s=448,
        pcie_gb_per_s=64,
        nic_gb_per_s=50,
        power_w=750,
        dollars_per_hour=1.85,
        sources=sources(
            "AMD Instinct MI300X accelerator data sheet, 2023",
            peer_gb_per_s=_FABRIC,
            pcie_gb_per_s=PCIE5,
            nic_gb_per_s=_NIC,
            dollars_per_hour=VULTR,
        ),
    ),
    Gpu(
        name="mi325x",
        maker="AMD",
        aliases=("instinct-mi325x",),
        memory_gib=256,
        memory_gb_per_s=6000,
        tflops={"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "int8": 2614.9},
        peer_gb_per_s=448,
        pcie_gb_per_s=64,
        nic_gb_per_s=50,
        power_w=1000,
        dollars_per_hour=2.47,
        sources=sources(
            "AMD Instinct MI325X accelerator data sheet, 2024",
            peer_gb_per_s=_FABRIC,
            pcie_gb_per_s=PCIE5,
            nic_gb_per_s=_NIC,
            dollars_per_hour="no list price known; that of the MI300X by memory size: give your own",
        ),
    ),
)
