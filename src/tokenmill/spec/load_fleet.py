"""Reading fleet files, as factory files are read: all that is wrong at once, with line, field and fix.

What GPUs there are is the catalogue's business (``decide.fleet``), so that whoever loads brings the names
along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tokenmill.spec.documents import read_document, read_text
from tokenmill.spec.fleet import Fleet, GpuFigures
from tokenmill.spec.nodes import Reader
from tokenmill.spec.problems import did_you_mean, one_of, repeated

NUMBER_FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4")
"""What ``tflops`` may name."""

_NEEDED = ("memory_gib", "memory_gb_per_s", "tflops", "pcie_gb_per_s", "nic_gb_per_s", "power_w")
"""What a GPU that the catalogue lacks must say."""


def load_fleet(path: Path, *, is_known: Callable[[str], bool], known: Iterable[str]) -> Fleet:
    """Read a fleet file. ``is_known``: whether the catalogue has a GPU of a name; ``known``: names to
    suggest. Raises ConfigError: FactoryError has all that is wrong in it."""
    return parse_fleet(read_text(path, "fleet file"), str(path), is_known=is_known, known=known)


def parse_fleet(text: str, source: str, *, is_known: Callable[[str], bool], known: Iterable[str]) -> Fleet:
    """Read a fleet from YAML or JSON; ``source`` names it in messages. Raises FactoryError."""

    def check(fleet: Fleet, reader: Reader) -> None:
        if not reader.problems:
            _check(fleet, reader, is_known, list(known))

    return read_document(text, source, Fleet, check, empty="metadata and nodes")


def _check(fleet: Fleet, reader: Reader, is_known: Callable[[str], bool], known: list[str]) -> None:
    if not fleet.nodes:
        reader.blame_field("nodes", "is empty; give at least one, for example {name: a, gpu: h100-sxm}")
    for index, name, first in repeated(group.name for group in fleet.nodes):
        message = f'"{name}" is also the name of nodes[{first}]; choose another'
        reader.blame_field(f"nodes[{index}].name", message)
    own = [each.name for each in fleet.gpus]
    for index, figures in enumerate(fleet.gpus):
        _check_figures(figures, reader, f"gpus[{index}]", new=not is_known(figures.name))
    for index, group in enumerate(fleet.nodes):
        _check_gpu(group.gpu, reader, f"nodes[{index}].gpu", is_known, [*own, *known])
        if group.interruptions_per_day and group.availability != "spot":
            message = f"only spot nodes are taken away; these are {group.availability}"
            reader.blame_field(f"nodes[{index}].interruptions_per_day", message)
    for name in fleet.prices:
        _check_gpu(name, reader, f"prices.{name}", is_known, [*own, *known])
    zones = {group.zone for group in fleet.nodes}
    for index, link in enumerate(fleet.links):
        _check_link(link.zones, zones, reader, f"links[{index}].zones")


def _check_gpu(
    name: str, reader: Reader, path: str, is_known: Callable[[str], bool], known: list[str]
) -> None:
    if name in known or is_known(name):
        return
    hint = did_you_mean(name, known) or f" Known are {one_of(known)}."
    message = f'"{name}" is not in the catalogue.{hint} Or describe it under "gpus".'
    reader.blame_field(path, message)


def _check_figures(figures: GpuFigures, reader: Reader, path: str, *, new: bool) -> None:
    for dtype in figures.tflops:
        if dtype not in NUMBER_FORMATS:
            hint = did_you_mean(dtype, NUMBER_FORMATS)
            reader.blame_field(f"{path}.tflops.{dtype}", f"is not {one_of(NUMBER_FORMATS)}.{hint}")
    if not new:
        return
    lacking = [name for name in _NEEDED if not getattr(figures, name)]
    if lacking:
        message = f'"{figures.name}" is not in the catalogue, so that it needs {", ".join(lacking)} too'
        reader.blame_field(path, message)
    elif "bf16" not in figures.tflops:
        reader.blame_field(f"{path}.tflops", "needs bf16, which activations are in")


def _check_link(zones: list[str], known: set[str], reader: Reader, path: str) -> None:
    if len(zones) != 2 or zones[0] == zones[1]:
        reader.blame_field(path, "must be two different zones, for example [east, west]")
        return
    for index, zone in enumerate(zones):
        if zone not in known:
            hint = did_you_mean(zone, known) or f" Zones here: {', '.join(sorted(filter(None, known)))}."
            reader.blame_field(f"{path}[{index}]", f'no nodes are in zone "{zone}".{hint}')
