"""GPUs by name, and figures copied from the data sheets a second time."""

import pytest

from hetsched.catalog import find_gpu, gpu_kinds, known_gpu
from hetsched.catalog.data import load
from hetsched.errors import HetschedError

# kind: memory GiB, dense bf16/fp16 TFLOPS, fp32 TFLOPS, GB/s
DATA_SHEETS = {
    "T4-16GB": (16, 65, 8.1, 320),
    "V100-SXM2-16GB": (16, 125, 15.7, 900),
    "V100-PCIe-16GB": (16, 112, 14, 900),
    "RTX-2080Ti-11GB": (11, 53.8, 13.4, 616),
    "Titan-RTX-24GB": (24, 130.5, 16.3, 672),
    "RTX-3090-24GB": (24, 71, 35.6, 936),
    "RTX-4090-24GB": (24, 165.2, 82.6, 1008),
    "RTX-5090-32GB": (32, 209.5, 104.8, 1792),
    "A10-24GB": (24, 125, 31.2, 600),
    "L4-24GB": (24, 121, 30.3, 300),
    "L40S-48GB": (48, 362, 91.6, 864),
    "A100-SXM-40GB": (40, 312, 19.5, 1555),
    "A100-SXM-80GB": (80, 312, 19.5, 2039),
    "A100-PCIe-80GB": (80, 312, 19.5, 1935),
    "H100-PCIe-80GB": (80, 756, 51, 2000),
    "H100-SXM-80GB": (80, 989, 67, 3350),
    "H200-SXM-141GB": (141, 989, 67, 4800),
    "GH200-96GB": (96, 990, 67, 4000),
    "MI250X-128GB": (128, 383, 47.9, 3277),
    "MI300X-192GB": (192, 1307, 163.4, 5300),
}

SPELLINGS = {
    "NVIDIA GeForce RTX 4090": "RTX-4090-24GB",
    "NVIDIA A100-SXM4-80GB": "A100-SXM-80GB",
    "NVIDIA-A100-SXM4-40GB": "A100-SXM-40GB",
    "Tesla V100-SXM2-16GB": "V100-SXM2-16GB",
    "Tesla V100-PCIE-16GB": "V100-PCIe-16GB",
    "NVIDIA H100 80GB HBM3": "H100-SXM-80GB",
    "NVIDIA H100 PCIe": "H100-PCIe-80GB",
    "NVIDIA A100 80GB PCIe": "A100-PCIe-80GB",
    "NVIDIA A100-PCIE-40GB": "A100-PCIe-40GB",
    "h100_sxm": "H100-SXM-80GB",
    "rtx4090": "RTX-4090-24GB",
    "RTX 3080 Ti": "RTX-3080Ti-12GB",
    "NVIDIA GeForce RTX 2080 Ti": "RTX-2080Ti-11GB",
    "NVIDIA RTX 6000 Ada Generation": "RTX-6000-Ada-48GB",
    "RTX 6000Ada": "RTX-6000-Ada-48GB",
    "NVIDIA RTX A6000": "RTX-A6000-48GB",
    "NVIDIA TITAN RTX": "Titan-RTX-24GB",
    "NVIDIA A10G": "A10G-24GB",
    "NVIDIA GH200 480GB": "GH200-96GB",
    "H100 NVL": "H100-NVL-94GB",
    "B200-SXM-192GB": "B200-SXM-180GB",
    "AMD Instinct MI300X": "MI300X-192GB",
    "Tesla T4": "T4-16GB",
    "a100_sxm4_80 GB": "A100-SXM-80GB",
    "V100-16GB": "V100-SXM2-16GB",
    "A100-40GB": "A100-SXM-40GB",
    "Titan-RTX": "Titan-RTX-24GB",
    "RTX-2080": "RTX-2080Ti-11GB",
    "RTX-3090": "RTX-3090-24GB",
}


@pytest.mark.parametrize("kind", DATA_SHEETS)
def test_figures_are_the_data_sheets(kind: str) -> None:
    gpu, (memory, half, single, bandwidth) = find_gpu(kind, "test"), DATA_SHEETS[kind]
    assert gpu.kind == kind
    assert gpu.memory_bytes == memory * 2**30
    assert gpu.flops_per_s("bf16") == pytest.approx(half * 1e12)
    assert gpu.flops_per_s("fp32") == pytest.approx(single * 1e12)
    assert gpu.memory_bytes_per_s == pytest.approx(bandwidth * 1e9)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    assert find_gpu(name, "test").kind == SPELLINGS[name]


def test_every_entry_is_whole_and_names_its_sources() -> None:
    data = load("gpus.yaml")
    assert len(gpu_kinds()) == len(data["gpus"]) == len(set(gpu_kinds())) >= 25
    for entry in data["gpus"]:
        assert entry["source"] in data["sources"], entry
        gpu = find_gpu(entry["kind"], "test")
        assert gpu.kind == entry["kind"]
        assert gpu.link is not None
        assert gpu.kind.endswith(f"-{entry['memory_gib']}GB")
        assert gpu.single_flops_per_s <= gpu.half_flops_per_s
    assert all(row["source"] for row in data["links"].values())
    assert {entry["source"] for entry in data["gpus"]} == set(data["sources"])
    assert {entry["link"] for entry in data["gpus"]} == set(data["links"])


@pytest.mark.parametrize("name", ["A100", "V100", "A100 SXM4"])
def test_a_name_that_fits_several_kinds_lists_them(name: str) -> None:
    assert known_gpu(name) is None
    with pytest.raises(HetschedError, match=r"nodes\[3\]: gpu: no GPU") as caught:
        find_gpu(name, "nodes[3]: gpu")
    assert f"{name[:4]}-" in caught.value.hint


@pytest.mark.parametrize("name", ["", "H10", "Voodoo 2", "Quadro RTX 6000", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"])
def test_an_unknown_name_says_how_to_spell_a_gpu_out(name: str) -> None:
    with pytest.raises(HetschedError) as caught:
        find_gpu(name, "here")
    assert "memory_gbytes_per_s" in caught.value.hint
