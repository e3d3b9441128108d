"""Cluster files: each way to say a link, which of them wins, and what is assumed."""

import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from hetsched.cluster import Cluster
from hetsched.errors import HetschedError, HetschedWarning
from hetsched.readers import READERS, read_cluster

GBPS = 1e9 / 8

EXAMPLE = """
    name: tokyo-and-home
    source: measured 2026-11-02 with iperf3
    nodes:
      - {name: tokyo-0, region: Tokyo, gpu: V100-SXM2-16GB, count: 8, usd_per_hour: 24.48, egress_usd_per_gb: 0.01}
      - name: home
        region: seoul
        count: 2
        gpu: {kind: RTX-3090-24GB, memory_gib: 24, tflops: 71, memory_gbytes_per_s: 936}
        link: {bandwidth_gbps: 16, latency_ms: 0.01}
    network:
      inside_node: {bandwidth_gbps: 1200, latency_ms: 0.005}
      inside_region: {bandwidth_gbps: 2, latency_ms: 5}
      between_regions:
        - {a: tokyo, b: Seoul, bandwidth_gbps: 1.1, latency_ms: 34}
"""

TWO_EACH = """\
nodes:
  - {name: a, region: r, gpu: T4, count: 2}
  - {name: b, region: s, gpu: T4, count: 2}
network:
  between_regions: [{a: r, b: s, bandwidth_gbps: 1, latency_ms: 1}]
"""


def read(folder: Path, text: str, **files: str) -> Cluster:
    for name, content in files.items():
        (folder / f"{name}.csv").write_text(textwrap.dedent(content).lstrip())
    path = folder / "cluster.yaml"
    path.write_text(textwrap.dedent(text))
    return read_cluster(path)


def gbps_ms(cluster: Cluster, source: str, target: str) -> tuple[float, float]:
    link = cluster.link(cluster.index_of[source], cluster.index_of[target])
    return round(link.bandwidth_bytes_per_s / GBPS, 9), round(link.latency_s * 1000, 9)


def test_the_documented_example(tmp_path: Path) -> None:
    cluster = read(tmp_path, EXAMPLE)
    assert cluster.name == "tokyo-and-home"
    assert cluster.source == "measured 2026-11-02 with iperf3"
    assert len(cluster.devices) == 10
    assert cluster.regions == ("tokyo", "seoul")
    assert cluster.device("home/1").gpu.half_flops_per_s == 71e12
    assert cluster.device("home/1").gpu.single_flops_per_s == 35.6e12  # from the catalogue
    assert cluster.usd_per_hour(["tokyo-0"]) == 24.48
    assert cluster.node("tokyo-0").egress_usd_per_gb == 0.01
    assert cluster.usd_per_hour(["tokyo-0", "home"]) is None
    assert gbps_ms(cluster, "tokyo-0/0", "tokyo-0/7") == (1200, 0.005)
    assert gbps_ms(cluster, "home/0", "home/1") == (16, 0.01)
    assert gbps_ms(cluster, "tokyo-0/3", "home/1") == gbps_ms(cluster, "home/1", "tokyo-0/3") == (1.1, 34)
    assert cluster.notes == ()
    assert set(READERS) == {"cluster-yaml", "model-config", "plan", "request-trace"}


def test_what_is_left_out(tmp_path: Path) -> None:
    cluster = read(tmp_path, "nodes: [{name: Desk, gpu: RTX 4090}]")
    assert cluster.name == "cluster"
    assert cluster.nodes[0].region == "desk"
    assert len(cluster.devices) == 1
    pair = read(tmp_path, "nodes: [{name: desk, gpu: NVIDIA GeForce RTX 3090, count: 2}]")
    assert gbps_ms(pair, "desk/0", "desk/1") == (100, 0.02)
    assert pair.notes == ("link inside a node taken from the catalogue for RTX-3090-24GB (100 Gbit/s, 0.02 ms): desk",)


def test_a_node_of_mixed_gpus_has_the_slower_ones_link(tmp_path: Path) -> None:
    cluster = read(tmp_path, "nodes: [{name: desk, gpus: [A100-SXM-80GB, {kind: RTX 3090, tflops: 60}]}]")
    assert [device.gpu.kind for device in cluster.devices] == ["A100-SXM-80GB", "RTX-3090-24GB"]
    assert cluster.devices[1].gpu.half_flops_per_s == 60e12
    assert gbps_ms(cluster, "desk/0", "desk/1") == (100, 0.02)


def test_a_gpu_the_catalogue_does_not_know(tmp_path: Path) -> None:
    gpu = "{kind: Own-1, memory_gib: 10.5, tflops: 80, memory_gbytes_per_s: 500, efficiency: 0.5}"
    cluster = read(tmp_path, f"nodes: [{{name: a, gpu: {gpu}}}]")
    mine = cluster.devices[0].gpu
    assert (mine.kind, mine.memory_bytes, mine.efficiency) == ("Own-1", round(10.5 * 2**30), 0.5)
    assert mine.single_flops_per_s == 10e12
    assert cluster.notes == ("Own-1: tflops_fp32 taken as an eighth of tflops, for it is not stated",)


def test_one_way_links_and_links_inside_one_region(tmp_path: Path) -> None:
    cluster = read(
        tmp_path,
        """
        nodes:
          - {name: a, region: r, gpu: T4}
          - {name: b, region: s, gpu: T4}
          - {name: c, region: s, gpu: T4}
          - {name: d, region: r, gpu: T4}
        network:
          inside_region: {bandwidth_gbps: 2, latency_ms: 5}
          between_regions:
            - {a: r, b: s, bandwidth_gbps: 1, latency_ms: 10, one_way: true}
            - {a: s, b: r, bandwidth_gbps: 0.5, latency_ms: 20, one_way: true}
            - {a: s, b: s, bandwidth_gbps: 7, latency_ms: 1}
          between_nodes:
            - {a: a, b: b, latency_ms: 9}
        """,
    )
    assert gbps_ms(cluster, "a/0", "c/0") == (1, 10)
    assert gbps_ms(cluster, "c/0", "a/0") == (0.5, 20)
    assert gbps_ms(cluster, "b/0", "c/0") == (7, 1)
    assert gbps_ms(cluster, "a/0", "d/0") == (2, 5)
    assert gbps_ms(cluster, "a/0", "b/0") == (1, 9)  # its bandwidth is the regions'
    assert gbps_ms(cluster, "b/0", "a/0") == (0.5, 9)


def test_a_node_matrix_wins_where_it_has_a_value(tmp_path: Path) -> None:
    cluster = read(tmp_path, TWO_EACH + "  bandwidth_matrix: m.csv\n", m="gbps,b,a\nb,50,3\na,-,\n")
    assert gbps_ms(cluster, "b/0", "a/1") == (3, 1)
    assert gbps_ms(cluster, "a/0", "b/1") == (1, 1)
    assert gbps_ms(cluster, "b/0", "b/1") == (50, 0.02)  # the diagonal is the link inside; latency is the catalogue's
    assert gbps_ms(cluster, "a/0", "a/1") == (40, 0.02)


def test_a_region_matrix(tmp_path: Path) -> None:
    text = """
        nodes:
          - {name: a, region: r, gpu: T4, count: 2}
          - {name: b, region: r, gpu: T4}
          - {name: c, region: s, gpu: T4}
        network:
          bandwidth_matrix: {names: [R, s], rows: [[4, 2], [3, null]], unit: Gbit/s}
          latency_matrix: {file: m.csv, unit: us}
        """
    cluster = read(tmp_path, text, m=",s,r\ns,,300\nr,200,100\n")
    assert gbps_ms(cluster, "a/0", "b/0") == (4, 0.1)
    assert gbps_ms(cluster, "a/0", "c/0") == (2, 0.2)
    assert gbps_ms(cluster, "c/0", "a/0") == (3, 0.3)
    assert gbps_ms(cluster, "a/0", "a/1") == (40, 0.02)


def test_a_device_matrix(tmp_path: Path) -> None:
    matrix = """\
        gbps,a/0,a/1,b/0,b/1
        a/0,x,90,3,3
        a/1,80,x,3,3
        b/0,5,6,x,70
        b/1,7,,70,x
        """
    cluster = read(tmp_path, TWO_EACH + "  bandwidth_matrix: m.csv\n", m=matrix)
    assert gbps_ms(cluster, "a/0", "a/1") == (90, 0.02)
    assert gbps_ms(cluster, "a/1", "a/0") == (80, 0.02)
    assert gbps_ms(cluster, "a/1", "b/0") == (3, 1)
    assert gbps_ms(cluster, "b/0", "a/1") == (6, 1)
    assert gbps_ms(cluster, "b/1", "a/1") == (1, 1)  # not measured: the regions'
    assert gbps_ms(cluster, "b/0", "b/1") == (70, 0.02)
    assert set(cluster.network.per_device) == {(0, 0), (1, 0)}  # the others' GPUs do not differ
    assert cluster.network.bandwidth_bytes_per_s[1, 0] == pytest.approx(1 * GBPS)  # the worst of the four


def test_a_device_matrix_of_some_devices_only(tmp_path: Path) -> None:
    cluster = read(tmp_path, TWO_EACH + "  latency_matrix: m.csv\n", m="ms,b/1,a/0\nb/1,,8\na/0,9,\n")
    assert gbps_ms(cluster, "a/0", "b/1") == (1, 9)
    assert gbps_ms(cluster, "b/1", "a/0") == (1, 8)
    assert gbps_ms(cluster, "a/1", "b/1") == (1, 1)


@pytest.mark.parametrize("size", [2, 4])
def test_an_array_is_in_inventory_order(tmp_path: Path, size: int) -> None:
    array = np.arange(1.0, 1 + size * size).reshape(size, size)
    np.save(tmp_path / "m.npy", array)
    cluster = read(tmp_path, TWO_EACH + "  bandwidth_matrix: m.npy\n")
    assert gbps_ms(cluster, "a/0", "b/1")[0] == array[0, -1]
    assert gbps_ms(cluster, "b/1", "a/0")[0] == array[-1, 0]


def test_a_missing_answer_names_the_pair(tmp_path: Path) -> None:
    nodes = "nodes: [{name: a, region: r, gpu: T4}, {name: b, region: s, gpu: T4}]\n"
    with pytest.raises(HetschedError, match="no bandwidth from a/0 to b/0") as caught:
        read(tmp_path, nodes)
    assert "{a: r, b: s," in caught.value.hint
    with pytest.raises(HetschedError, match="no latency from a/0 to b/0"):
        read(tmp_path, nodes + "network: {between_regions: [{a: r, b: s, bandwidth_gbps: 1}]}")
    gpu = "{kind: Own, memory_gib: 10, tflops: 80, tflops_fp32: 9, memory_gbytes_per_s: 500}"
    with pytest.raises(HetschedError, match="no bandwidth from a/0 to a/1") as caught:
        read(tmp_path, f"nodes: [{{name: a, gpu: {gpu}, count: 3}}]")
    assert "inside_node" in caught.value.hint
    two = f"nodes: [{{name: a, gpu: {gpu}, count: 3}}]\n"
    matrix = "  bandwidth_matrix: {names: [a/0, a/1, a/2], rows: [[0, 1, 1], [1, 0, null], [1, 1, 0]]}\n"
    with pytest.raises(HetschedError, match="no bandwidth from a/1 to a/2"):
        read(tmp_path, two + "network:\n" + matrix)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("nodes: [{name: a, gpu: T4, cuont: 2}]", "unknown key `cuont` is ignored; `count` may be meant"),
        ("nodes: [{name: a, gpu: T4}]\nnetwrk: {}", "unknown key `netwrk`"),
        ("nodes: [{name: a, gpu: T4}]\nnetwork: {inside_nod: {bandwidth_gbps: 1}}", "unknown key `inside_nod`"),
        (
            "nodes: [{name: a, region: rome, gpu: T4}]\nnetwork: {between_regions: [{a: roma, b: x, latency_ms: 1}]}",
            "no node is in region 'roma', the entry is ignored; `rome` may be meant",
        ),
    ],
)
def test_warnings(tmp_path: Path, text: str, fragment: str) -> None:
    with pytest.warns(HetschedWarning) as caught:
        read(tmp_path, text)
    assert fragment in str(caught[0].message)


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    text = """
        source: 2026-11-02
        nodes:
          - &first {name: a, gpu: T4, count: 2, link: {bandwidth_gbps: 1e2, latency_ms: 1.0e-2}}
          - {<<: *first, name: b, region: a}
        network: {inside_region: {bandwidth_gbps: 10, latency_ms: 0.1}}
        """
    cluster = read(tmp_path, text)
    assert cluster.source == "2026-11-02"
    assert gbps_ms(cluster, "b/0", "b/1") == (100, 0.01)


def test_ten_thousand_gpus_are_read_quickly(tmp_path: Path) -> None:
    nodes = "\n".join(f"  - {{name: n{i}, region: r{i % 40}, gpu: A100-SXM-80GB, count: 8}}" for i in range(1250))
    pairs = "\n".join(
        f"    - {{a: r{i}, b: r{j}, bandwidth_gbps: 1, latency_ms: 9}}" for i in range(40) for j in range(i + 1)
    )
    path = tmp_path / "big.yaml"
    path.write_text(f"nodes:\n{nodes}\nnetwork:\n  between_regions:\n{pairs}\n")
    start = time.process_time()
    assert len(read_cluster(path).devices) == 10_000
    assert time.process_time() - start < 3  # takes 0.5 s; the limit is for a busy machine
