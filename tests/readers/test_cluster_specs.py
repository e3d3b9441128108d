"""The bundled clusters. Figures: arXiv 2206.01288, the network it measured and its five scenarios."""

from pathlib import Path

import pytest

from hetsched.cluster import Cluster
from hetsched.readers import read_cluster

SPECS = Path(__file__).parents[2] / "cluster_specs"
DEVICES = {
    "dtfm-datacenter": 64,
    "dtfm-spot": 64,
    "dtfm-universities": 64,
    "dtfm-regional": 64,
    "dtfm-worldwide": 64,
    "ten-cities": 80,
    "home-office": 7,
    "flashflex-a-fast": 40,
    "flashflex-a-slow": 40,
    "flashflex-b-fast": 32,
    "flashflex-b-slow": 32,
    "hexgen-58": 58,
    "hexgen-16xa100": 16,
    "a100-l4-t4-24": 24,
    "offers-gcp": 280,
    "hexgen2-mixed": 20,
    "hexgen2-8xh100": 8,
    "hexgen2-70-percent": 12,
}
CITIES = ("Oregon", "Virginia", "Ohio", "Tokyo", "Seoul", "Singapore", "Sydney", "London", "Frankfurt", "Ireland")
# the upper triangle of the measured matrices, row by row in the order of CITIES
LATENCY_MS = (
    (67, 49, 96, 124, 163, 139, 136, 143, 124),
    (11, 143, 172, 230, 197, 76, 90, 67),
    (130, 159, 197, 185, 86, 99, 77),
    (34, 73, 100, 210, 223, 199),
    (74, 148, 238, 235, 228),
    (92, 169, 155, 179),
    (262, 265, 254),
    (14, 12),
    (24,),
)
BANDWIDTH_GBPS = (
    (0.79, 1.1, 0.523, 0.46, 0.341, 0.36, 0.42, 0.404, 0.482),
    (1.12, 0.524, 0.5, 0.364, 0.383, 1.16, 1.02, 1.05),
    (0.694, 0.529, 0.452, 0.484, 1.05, 0.799, 1.14),
    (1.1, 1.01, 0.761, 0.366, 0.36, 0.465),
    (1.14, 0.58, 0.342, 0.358, 0.335),
    (0.816, 0.5, 0.535, 0.492),
    (0.326, 0.328, 0.344),
    (1.14, 1.09),
    (1.08,),
)
REGIONAL = {  # of the scenario within the United States: ms, Gbit/s
    ("virginia", "oregon"): (67, 1.15),
    ("virginia", "california"): (59, 1.05),
    ("virginia", "ohio"): (11, 1.12),
    ("oregon", "california"): (12, 1.25),
    ("oregon", "ohio"): (49, 1.1),
    ("california", "ohio"): (52, 1.02),
}


def spec(name: str) -> Cluster:
    return read_cluster(SPECS / f"{name}.yaml")


def ms_gbps(cluster: Cluster, source: str, target: str) -> tuple[float, float]:
    link = cluster.link(cluster.index_of[source], cluster.index_of[target])
    return round(link.latency_s * 1e3, 9), round(link.bandwidth_bytes_per_s * 8 / 1e9, 9)


@pytest.mark.parametrize("name", DEVICES)
def test_devices_and_source(name: str) -> None:
    cluster = spec(name)
    assert cluster.name == name
    assert cluster.source
    assert len(cluster.devices) == DEVICES[name]
    if name.startswith(("dtfm", "ten")):
        assert {device.gpu.kind for device in cluster.devices} == {"V100-SXM2-16GB"}
        assert cluster.notes == ()


def test_data_centre_and_spot() -> None:
    centre = spec("dtfm-datacenter")
    assert [len(node.gpus) for node in centre.nodes] == [8] * 8
    assert ms_gbps(centre, "machine-0/0", "machine-0/7") == (0, 100)
    assert ms_gbps(centre, "machine-0/0", "machine-7/0") == (0, 3.125)
    spot = spec("dtfm-spot")
    assert [len(node.gpus) for node in spot.nodes] == [4] * 8 + [1] * 32
    assert ms_gbps(spot, "quad-3/0", "quad-3/3") == (0, 100)
    assert ms_gbps(spot, "quad-0/0", "single-31/0") == ms_gbps(spot, "single-0/0", "single-1/0") == (0, 1.25)


def test_universities() -> None:
    cluster = spec("dtfm-universities")
    assert [node.region for node in cluster.nodes] == ["ohio"] * 32 + ["virginia"] * 32
    assert ms_gbps(cluster, "ohio-0/0", "ohio-31/0") == (1, 5)
    assert ms_gbps(cluster, "ohio-0/0", "virginia-0/0") == (11, 1.12)


def test_regional() -> None:
    cluster = spec("dtfm-regional")
    assert len(cluster.regions) == 4
    assert ms_gbps(cluster, "ohio-0/0", "ohio-15/0") == (5, 2)
    for (a, b), expected in REGIONAL.items():
        assert ms_gbps(cluster, f"{a}-0/0", f"{b}-15/0") == ms_gbps(cluster, f"{b}-15/0", f"{a}-0/0") == expected


@pytest.mark.parametrize(
    ("name", "without"), [("dtfm-worldwide", ("Singapore", "Sydney")), ("ten-cities", ())], ids=["worldwide", "ten"]
)
def test_cities(name: str, without: tuple[str, ...]) -> None:
    cluster = spec(name)
    assert sorted(cluster.regions) == sorted(city.lower() for city in CITIES if city not in without)
    assert ms_gbps(cluster, "tokyo-0/0", "tokyo-7/0") == (5, 2)
    for i, a in enumerate(CITIES):
        for j, b in enumerate(CITIES[i + 1 :]):
            if a not in without and b not in without:
                ends = f"{a.lower()}-0/0", f"{b.lower()}-7/0"
                expected = (LATENCY_MS[i][j], BANDWIDTH_GBPS[i][j])
                assert ms_gbps(cluster, *ends) == ms_gbps(cluster, *reversed(ends)) == expected


def test_home_office() -> None:
    cluster = spec("home-office")
    assert [device.gpu.kind for device in cluster.devices].count("A100-SXM-80GB") == 4
    assert cluster.usd_per_hour([node.name for node in cluster.nodes]) == pytest.approx(7.53)
    assert ms_gbps(cluster, "desktop/0", "rented/0") == (12, 0.5)
    assert ms_gbps(cluster, "rented/0", "desktop/0") == (12, 0.9)


@pytest.mark.parametrize("name", [name for name in DEVICES if name.startswith("flashflex")])
def test_flashflex(name: str) -> None:
    """Device figures and links of `flashflex.json`, which are the paper's configuration: TFLOPS, GB, GB/s inside."""
    figures = {"3080ti": (56.9, 12, 20), "3090": (80, 24, 2), "4090": (165.2, 24, 2), "a100": (312, 80, 200)}
    cluster, between = spec(name), 5 if name.endswith("fast") else 0.5
    machines = [node.name.partition("-")[0] for node in cluster.nodes]
    assert machines == (["3080ti", "3090", *["4090"] * 3] if "-a-" in name else ["3080ti", "3090", "4090", "a100"])
    for node, machine in zip(cluster.nodes, machines, strict=True):
        gpu, (tflops, gigabytes, inside) = node.gpus[0], figures[machine]
        assert len(node.gpus) == 8
        assert (gpu.half_flops_per_s / 1e12, gpu.memory_bytes / 2**30) == pytest.approx((tflops, gigabytes))
        assert ms_gbps(cluster, f"{node.name}/0", f"{node.name}/7") == (0, inside * 8)
        for other in cluster.nodes:
            if other is not node:
                assert ms_gbps(cluster, f"{node.name}/0", f"{other.name}/7") == (0, between * 8)
