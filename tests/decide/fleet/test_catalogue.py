"""The catalogue: each figure with its source, and found by the names that people use."""

import pytest

from tokenmill.decide.fleet.catalogue import Catalogue, Gpu
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.gpus.sources import FIGURES, sources
from tokenmill.errors import ConfigError

WANTED = (
    "A100 40 PCIe", "A100 40 SXM", "A100 80 PCIe", "A100 80 SXM", "H100 PCIe", "H100 SXM", "H200", "B200",
    "GB200",    "L40S", "L4", "A10G", "RTX Pro 6000", "MI300X",
)  # fmt: skip


@pytest.mark.parametrize("name", WANTED)
def test_the_usual_gpus_are_there(name: str) -> None:
    assert CATALOGUE.find(name) is not None


@pytest.mark.parametrize("gpu", CATALOGUE.gpus, ids=lambda gpu: gpu.name)
def test_each_figure_is_there_and_has_a_source(gpu: Gpu) -> None:
    assert set(gpu.sources) == set(FIGURES)
    assert all(gpu.sources.values())
    for name in FIGURES:
        if name not in {"tflops", "peer_gb_per_s"}:
            assert getattr(gpu, name) > 0, name
    assert gpu.tflops["bf16"] > 0
    assert all(rate > 0 for rate in gpu.tflops.values())


@pytest.mark.parametrize("gpu", CATALOGUE.gpus, ids=lambda gpu: gpu.name)
def test_figures_are_of_the_units_they_claim(gpu: Gpu) -> None:
    assert 10 < gpu.memory_gib < 400
    assert 200 < gpu.memory_gb_per_s < 10_000
    assert 50 < gpu.tflops["bf16"] < 3000
    assert gpu.tflops.get("fp8", 2 * gpu.tflops["bf16"]) == pytest.approx(2 * gpu.tflops["bf16"], rel=0.03)
    assert gpu.nic_gb_per_s <= gpu.node_gb_per_s or not gpu.peer_gb_per_s
    assert 50 < gpu.power_w < 1500


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H100", "h100-sxm"),
        ("h100_sxm", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80-sxm"),
        ("a100", "a100-80-sxm"),
        ("AMD Instinct MI300X", "mi300x"),
        ("rtx_pro_6000_server", "rtx-pro-6000"),
        ("B200", "b200-sxm"),
    ],
)
def test_many_names_lead_to_one_gpu(name: str, found: str) -> None:
    assert CATALOGUE.gpu(name).name == found


@pytest.mark.parametrize("gpu", CATALOGUE.gpus, ids=lambda gpu: gpu.name)
def test_each_name_leads_to_its_own_gpu(gpu: Gpu) -> None:
    assert {CATALOGUE.gpu(name).name for name in (gpu.name, *gpu.aliases)} == {gpu.name}


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match='Did you mean "h200"'):
        CATALOGUE.gpu("h20o")
    with pytest.raises(ConfigError, match="Known are"):
        CATALOGUE.gpu("abacus")
    assert CATALOGUE.find("abacus") is None


def test_one_of_the_same_name_replaces_another() -> None:
    mine = Gpu(name="l4", maker="", memory_gib=1, memory_gb_per_s=1, tflops={"bf16": 1}, pcie_gb_per_s=1,
               nic_gb_per_s=1, power_w=1, dollars_per_hour=0)  # fmt: skip
    assert CATALOGUE.replaced([mine]).gpu("l4").memory_gib == 1
    assert CATALOGUE.gpu("l4").memory_gib > 1
    assert len(Catalogue([mine, mine]).gpus) == 1


def test_formats_without_units_go_at_the_wide_rate() -> None:
    assert CATALOGUE.gpu("a100").tflops_of("fp8") == CATALOGUE.gpu("a100").tflops_of("bf16")
    assert CATALOGUE.gpu("h100").tflops_of("fp8") == 1979


def test_a_source_of_a_figure_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_mib"):
        sources("sheet", memory_mib="driver")
