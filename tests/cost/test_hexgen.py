"""HexGen's published formulas, worked out by hand for one plan, and what follows from them."""

import numpy as np
import pytest

from hetsched.cluster import Cluster, Gpu, Link, Network, Node
from hetsched.cost.published.hexgen import HexGen, Job, request_s, stage_memory_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage
from hetsched.workload import ServingLoad

FAST = Gpu("fast", 8 * 2**30, 100e12, 10e12, 1e12, Link(100e9, 1e-5))
SLOW = Gpu("slow", 8 * 2**30, 20e12, 2e12, 0.5e12, Link(10e9, 1e-5))
MODEL = ModelSpec.from_json(
    {"name": "toy", "num_layers": 6, "hidden_size": 1024, "num_heads": 8, "vocab_size": 1000, "num_kv_heads": 2}
)


def cluster(between_bytes_per_s: float = 1e9) -> Cluster:
    bandwidth = np.array([[100e9, between_bytes_per_s], [between_bytes_per_s, 10e9]])
    latency = np.array([[1e-5, 2e-3], [2e-3, 1e-5]])
    nodes = (Node("a", "x", (FAST,) * 2, 2.0), Node("b", "y", (SLOW,) * 2, 1.0))
    return Cluster("two", nodes, Network(bandwidth, latency))


STAGES = (Stage((0, 4), ("a/0", "a/1")), Stage((4, 6), ("b/0",)))


def test_a_request_by_hand() -> None:
    """4 blocks on two fast GPUs, 2 on a slow one; 100 tokens in, 10 out, one request in half precision."""
    square = 1024**2
    first = 12 * square * 2 * 10 / (2 * 1e12) + 24 * 110 * square / (2 * 100e12)
    parallel = [2 * (2 - 1) * (1e-5 + s * 1024 * 2 / (2 * 100e9)) * 2 for s in (100, 1)]
    second = 12 * square * 2 * 10 / 0.5e12 + 24 * 110 * square / 20e12
    hop = [2e-3 + s * 1024 * 2 / 1e9 for s in (100, 1)]
    by_hand = 4 * (first + parallel[0] + 10 * parallel[1]) + 2 * second + hop[0] + 10 * hop[1]
    job = Job(1, 100, 10, 2)
    assert request_s(cluster(), MODEL, STAGES, job) == pytest.approx(by_hand, rel=1e-12)
    memory = 4 * (12 * square * 2 / 2 + 2 * 110 * 1024 * 2) + 4 * 110 * 1024 * 2
    assert stage_memory_bytes(MODEL, STAGES[0], job) == memory


def test_the_slowest_gpu_of_a_group_counts_and_a_better_link_helps() -> None:
    job = Job(4, 100, 10, 2)
    alone, mixed = (Stage((0, 6), ("a/0",)),), (Stage((0, 6), ("b/0",)),)
    assert request_s(cluster(), MODEL, alone, job) < request_s(cluster(), MODEL, mixed, job)
    assert request_s(cluster(5e9), MODEL, STAGES, job) < request_s(cluster(), MODEL, STAGES, job)
    assert request_s(cluster(), MODEL, STAGES, Job(8, 100, 10, 2)) > request_s(cluster(), MODEL, STAGES, job)


def test_a_plan_serves_what_its_slowest_stages_let_through() -> None:
    pipelines = (
        ServingPipeline("r0", (Stage((0, 6), ("a/0", "a/1")),), 8),
        ServingPipeline("r1", (Stage((0, 3), ("b/0",)), Stage((3, 6), ("b/1",))), 8),
    )
    plan = ServingPlan(MODEL, ServingLoad(100, 10), pipelines, (Route(None, "r0", 0.75), Route(None, "r1", 0.25)))
    cost = HexGen().price(cluster(), plan)
    job = Job(1, 100, 10, 2)
    whole = [request_s(cluster(), MODEL, pipeline.stages, job) for pipeline in pipelines]
    assert cost.e2e_s == pytest.approx(0.75 * whole[0] + 0.25 * whole[1])
    assert cost.ttft_s + 10 * cost.tpot_s == pytest.approx(cost.e2e_s)
    assert cost.capacity_per_s == pytest.approx(1 / whole[0] / 0.75)  # r0 is full first
    assert cost.loads["r0"] == pytest.approx(1.0)
    assert cost.usd_per_hour == 3.0
    assert cost.feasible
    assert not HexGen(memory_fraction=0.001).price(cluster(), plan).feasible
