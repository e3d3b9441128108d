"""What a plan costs: whole nodes, and each byte that leaves a region, counted by hand."""

from pathlib import Path

import pytest

from hetsched.cost.money import egress_usd
from hetsched.cost.training import Roofline
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.readers import read_cluster
from hetsched.workload import TrainingJob

CLUSTER = """
nodes:
  - {name: a, region: east, gpu: A100-SXM-80GB, count: 2, usd_per_hour: 2.0, egress_usd_per_gb: 0.08}
  - {name: b, region: west, gpu: A100-SXM-80GB, count: 2, usd_per_hour: 3.0, egress_usd_per_gb: 0.02}
network:
  between_regions: [{a: east, b: west, bandwidth_gbps: 1, latency_ms: 10}]
"""
MODEL = ModelSpec(
    name="tiny", num_layers=4, hidden_size=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_size=128,
    vocab_size=256, max_positions=128,
)  # fmt: skip
JOB = TrainingJob(global_batch=8, seq_len=128, micro_batch=2)
MESSAGE_GB = 2 * 128 * 64 * 2 / 1e9


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    path = tmp_path / "two-regions.yaml"
    path.write_text(CLUSTER, encoding="utf-8")
    return path


def test_a_pipeline_pays_for_each_message_that_leaves_a_region(cluster_file: Path) -> None:
    stages = (Stage((0, 1), ("a/0",)), Stage((1, 2), ("a/1",)), Stage((2, 4), ("b/0",)))
    plan = Plan(MODEL, JOB, (Pipeline("p0", stages, 4),))
    cluster = read_cluster(cluster_file)
    usd = 4 * MESSAGE_GB * 0.08 + 4 * MESSAGE_GB * 0.02
    assert egress_usd(cluster, plan) == pytest.approx(usd, rel=1e-12)
    cost = Roofline().price(cluster, plan)
    assert cost.usd_per_hour == pytest.approx(5.0 + usd * 3600 / cost.iteration_s, rel=1e-12)


def test_data_parallel_pays_for_the_ring(cluster_file: Path) -> None:
    pipelines = tuple(Pipeline(f"p{k}", (Stage((0, 4), (device,)),), 2) for k, device in enumerate(("a/0", "b/0")))
    gradients_gb = MODEL.parameters * 2 / 1e9  # with two members each sends 2 (2 - 1) / 2 of them
    usd = gradients_gb * (0.08 + 0.02)
    assert egress_usd(read_cluster(cluster_file), Plan(MODEL, JOB, pipelines)) == pytest.approx(usd, rel=1e-12)


def test_tensor_parallelism_across_regions_pays_for_each_all_reduce(cluster_file: Path) -> None:
    """Two a block and pass, the embedding's and the head's: 18, in each of which both GPUs send the whole once."""
    stages = Stage((0, 2), ("a/0", "b/0")), Stage((2, 4), ("a/1", "b/1"))
    plan = Plan(MODEL, JOB, (Pipeline("p0", stages, 4),))
    gathers = 2 * MESSAGE_GB / 2  # of activations in one stage, of their gradients in the other, by halves
    usd = 4 * (18 * MESSAGE_GB + gathers) * (0.08 + 0.02)
    assert egress_usd(read_cluster(cluster_file), plan) == pytest.approx(usd, rel=1e-12)
    assert any("on several nodes" in note for note in Roofline().price(read_cluster(cluster_file), plan).notes)


def test_zero_3_pays_for_its_gathers(cluster_file: Path) -> None:
    """Half of the weights come to each of two pipelines, in two passes of each of two micro-batches."""
    pipelines = tuple(Pipeline(f"p{k}", (Stage((0, 4), (device,)),), 2) for k, device in enumerate(("a/0", "b/0")))
    weights_gb = MODEL.parameters * 2 / 1e9
    usd = weights_gb * (0.08 + 0.02) + 4 * weights_gb / 2 * (0.08 + 0.02)
    plan = Plan(MODEL, JOB, pipelines, Options(zero=3))
    assert egress_usd(read_cluster(cluster_file), plan) == pytest.approx(usd, rel=1e-12)


def test_inside_one_region_nothing_leaves(cluster_file: Path) -> None:
    plan = Plan(MODEL, JOB, (Pipeline("p0", (Stage((0, 1), ("a/0",)), Stage((1, 4), ("a/1",))), 4),))
    cluster = read_cluster(cluster_file)
    assert egress_usd(cluster, plan) == 0.0
    assert Roofline().price(cluster, plan).usd_per_hour == 2.0
