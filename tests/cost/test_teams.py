"""Tensor-parallel teams, and networks that several transfers use at once: figures worked out on paper."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.compute import stage_work
from hetsched.cost.network import Team
from hetsched.cost.placement import place, worker_of
from hetsched.cost.training import Roofline
from hetsched.model import ModelSpec
from hetsched.plan import Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    assert model is not None
    return model


GPT2 = model_of("gpt2")


def plan_of(splits: Sequence[Sequence[int]], devices: Sequence[Sequence[str]]) -> Plan:
    """Pipelines of gpt2 with these cuts, one micro-batch of one sequence each."""
    pipelines = tuple(
        Pipeline(
            f"p{p}",
            tuple(Stage(layers, (name,)) for layers, name in zip(pairwise([0, *cuts, 12]), names, strict=True)),
            1,
        )
        for p, (cuts, names) in enumerate(zip(splits, devices, strict=True))
    )
    return Plan(GPT2, TrainingJob(len(pipelines), 1024), pipelines)


# ---- tensor parallelism


def test_a_team_does_a_share_of_the_arithmetic_and_talks() -> None:
    """Two all-reduces a block and pass (Shoeybi et al. 2019, arXiv 1909.08053), by a ring of 2 (t - 1) steps."""
    gpu = replace(find_gpu("A100-SXM-80GB", "test"), efficiency=0.4)
    nodes = (Node("n0", "r", (gpu,) * 4),)
    cluster = Cluster("one", nodes, Network(np.full((1, 1), 2e11), np.full((1, 1), 5e-6)))
    job = TrainingJob(4, 1024, micro_batch=4)
    worker = worker_of(cluster, Team((0, 1, 2, 3), 0), GPT2, job)
    all_reduce = 6 * (5e-6 + 4 * 1024 * 768 * 2 / 4 / 2e11)
    assert worker.all_reduce_s == pytest.approx(all_reduce)
    block = 4 * (24 * 1024 * 768**2 + 4 * 1024**2 * 768) / 4 / (312e12 * 0.4) + 1e-4
    work = stage_work(worker, GPT2, job, (3, 5), recompute=False)
    assert [work.forward_s, work.backward_s, work.tensor_parallel_s] == pytest.approx(
        [2 * block + 4 * all_reduce, 4 * block + 4 * all_reduce, 8 * all_reduce]
    )
    again = stage_work(worker, GPT2, job, (3, 5), recompute=True)
    assert again.backward_s == pytest.approx(6 * block + 8 * all_reduce)


def test_unequal_teams_reduce_each_block_once(random_cluster: MakeCluster) -> None:
    """A team of two and one device alone, in two nodes: all bytes cross the network once each way."""
    cluster = random_cluster(4, (2, 1))
    pipelines = (
        Pipeline("p0", (Stage((0, 12), ("n0/0", "n0/1")),), 1),
        Pipeline("p1", (Stage((0, 12), ("n1/0",)),), 1),
    )
    cost = Roofline().price(cluster, Plan(GPT2, TrainingJob(2, 1024), pipelines))
    latency, bandwidth = cluster.network.latency_s, cluster.network.bandwidth_bytes_per_s

    def ring(parameters: int) -> float:
        return 2 * max(float(latency[i, j] + parameters / bandwidth[i, j]) for i, j in ((0, 1), (1, 0)))

    expected = ring(GPT2.parameters - 50257 * 768) + ring(50257 * 768)  # the tied embedding goes last
    assert cost.breakdown_s["data_parallel"] == pytest.approx(expected)


# ---- networks in common


def test_two_pipelines_share_the_network_of_a_node(random_cluster: MakeCluster) -> None:
    """Both go from the same node to the same node: each gets half."""
    cluster = random_cluster(6, (2, 2))
    alone = plan_of([[6]], [["n0/0", "n1/0"]])
    both = plan_of([[6], [6]], [["n0/0", "n1/0"], ["n0/1", "n1/1"]])
    single, double = place(cluster, alone).hops(0)[0], place(cluster, both).hops(0)[0]
    assert double.forward_occupied_s == pytest.approx(2 * single.forward_occupied_s)
    assert double.backward_occupied_s == pytest.approx(2 * single.backward_occupied_s)
    assert double.forward_latency_s == single.forward_latency_s


def test_an_uplink_is_as_wide_as_the_widest_link(random_cluster: MakeCluster) -> None:
    """One node sends to two others at once: half of its uplink each, or what the link bears where that is less."""
    cluster = random_cluster(6, (2, 1, 1))
    bandwidth = cluster.network.bandwidth_bytes_per_s
    plan = plan_of([[6], [6]], [["n0/0", "n1/0"], ["n0/1", "n2/0"]])
    uplink, message = max(bandwidth[0, 1], bandwidth[0, 2]), 1024 * 768 * 2
    for p, target in ((0, 1), (1, 2)):
        expected = message / min(bandwidth[0, target], uplink / 2)
        assert place(cluster, plan).hops(p)[0].forward_occupied_s == pytest.approx(expected)


def test_rings_inside_nodes_and_across_them() -> None:
    """Eight replicas in two nodes: by rings across the nodes, of halves of what the nodes' four add up inside."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    nodes = tuple(Node(f"n{k}", "r", (gpu,) * 4) for k in range(2))
    bandwidth, latency = np.array([[2e11, 1e9], [1e9, 2e11]]), np.array([[0.0, 0.05], [0.05, 0.0]])
    cluster = Cluster("two", nodes, Network(bandwidth, latency))
    plan = plan_of([[]] * 8, [[f"n{k}/{index}"] for k in range(2) for index in range(4)])
    expected = 0.0
    for size in ((GPT2.parameters - 50257 * 768) * 2, 50257 * 768 * 2):
        inside, across = 2 * 3 * size / 4 / 2e11, 2 * 1 * (0.05 + size / 2 / 1e9)
        assert inside + across < 2 * 7 * (0.05 + size / 8 / 1e9)
        expected += inside + across
    assert Roofline().price(cluster, plan).breakdown_s["data_parallel"] == pytest.approx(expected)
