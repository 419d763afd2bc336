"""What a GPU can do, from its maker's data sheet: the types, and finding one by the names people use.

Exists so that plans, rooflines and fleets speak of the same devices with the same figures. The figures
stand in ``gpus``, each with its source. It must not know models or engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.spec.problems import did_you_mean, one_of

Dtype = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"]
"""Number formats whose matrix products a device may have units for."""

GIB: Final = 1024**3


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU. All bandwidths in 1e9 bytes a second and in one direction.

    ``memory_gib``: as its driver reports it. ``tflops``: dense matrix products by number format, 1e12
    operations a second; a format that is not named has no units of its own. ``peer_gb_per_s``: to the other
    GPUs of its node together (NVLink, Infinity Fabric), 0 where they talk over PCIe. ``nic_gb_per_s``: the
    network of one GPU in the usual server. ``power_w``: the most it draws. ``dollars_per_hour``: a usual
    price on demand, for one GPU with its share of the server; the user's own price goes first.
    ``gpus_per_node``: of the usual server. ``sources``: for each figure, where it is from.
    """

    name: str
    maker: str
    memory_gib: float
    memory_gb_per_s: float
    tflops: Mapping[str, float]
    peer_gb_per_s: float = 0.0
    pcie_gb_per_s: float
    nic_gb_per_s: float
    power_w: float
    dollars_per_hour: float
    gpus_per_node: int = 8
    aliases: tuple[str, ...] = ()
    sources: Mapping[str, str] = {}

    @property
    def memory_bytes(self) -> float:
        """Bytes of device memory."""
        return self.memory_gib * GIB

    @property
    def node_gb_per_s(self) -> float:
        """To another GPU of the same node, the fastest way."""
        return self.peer_gb_per_s or self.pcie_gb_per_s

    def tflops_of(self, dtype: str) -> float:
        """Return the rate of products in ``dtype``; without units for it, numbers are widened to bf16 first,
        which costs no rate (weights are read narrow and multiplied wide)."""
        return self.tflops.get(dtype) or self.tflops["bf16"]


class Catalogue:
    """GPUs by name. ``gpus`` later in order replace those of the same name before them."""

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._gpus = {gpu.name: gpu for gpu in gpus}
        self._names: dict[str, str] = {}
        for gpu in self._gpus.values():
            for name in (gpu.name, *gpu.aliases):
                self._names[_plain(name)] = gpu.name

    @property
    def gpus(self) -> list[Gpu]:
        """All of them."""
        return list(self._gpus.values())

    @property
    def names(self) -> list[str]:
        """The names that ``gpu`` takes, aliases included."""
        return [name for gpu in self._gpus.values() for name in (gpu.name, *gpu.aliases)]

    def find(self, name: str) -> Gpu | None:
        """Return the GPU of a name like "H100", "h100_sxm" or "NVIDIA A100-SXM4-80GB", or None."""
        known = self._names.get(_plain(name))
        return self._gpus[known] if known is not None else None

    def gpu(self, name: str) -> Gpu:
        """Return the GPU of a name as ``find`` takes it. Raises ConfigError with what it may have meant."""
        found = self.find(name)
        if found is None:
            hint = did_you_mean(name, self.names) or f" Known are {one_of(self._gpus)}."
            raise ConfigError(f'gpu: "{name}" is not in the catalogue.{hint}', param="gpu")
        return found

    def replaced(self, gpus: Iterable[Gpu]) -> Catalogue:
        """Return a catalogue with ``gpus`` added, or put in the place of those of the same name."""
        return Catalogue([*self._gpus.values(), *gpus])


def _plain(name: str) -> str:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in {"nvidia", "amd", "instinct", "tesla"})
