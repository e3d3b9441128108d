"""Accounts of a plan: they add up to the iteration and to the bytes, and the levers are what playing anew gives."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.account import memory_bytes
from hetsched.cost.explain import explain
from hetsched.cost.training import Roofline
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32), overlap=st.booleans())
def test_seconds_and_bytes_add_up(random_cluster: MakeCluster, random_plan: MakePlan, seed: int, overlap: bool) -> None:
    cluster = random_cluster(seed, (2, 1, 3, 2))
    plan = random_plan(seed, cluster)
    plan = replace(plan, options=replace(plan.options, overlap=overlap))
    found, cost = explain(cluster, plan, 0.9), Roofline(0.9).price(cluster, plan)
    assert found.iteration_s == cost.iteration_s
    memory = memory_bytes(cluster, plan)
    for stage in found.stages:
        parts = (
            stage.working_s,
            stage.held_s,
            stage.waiting_s,
            stage.peers_s,
            stage.reducing_s,
            stage.optimizer_s,
            stage.idle_s,
        )
        assert sum(parts) == pytest.approx(found.iteration_s, rel=1e-9)
        assert min(parts) >= -1e-9 * found.iteration_s
        assert stage.needed_bytes == memory[stage.devices[0]]
        assert sum(stage.memory_bytes.values()) == pytest.approx(stage.needed_bytes, abs=2)
        over = stage.needed_bytes > stage.usable_bytes
        assert over == any(violation.device in stage.devices for violation in cost.violations)
    assert all(0 <= lever.iteration_s < found.iteration_s for lever in found.levers)
    sizes = [lever.iteration_s for lever in found.levers]
    assert sizes == sorted(sizes)
    assert found.limit[0] == max(cost.breakdown_s, key=lambda cause: cost.breakdown_s[cause])


def untied() -> ModelSpec:
    """gpt3-xl with a head of its own, so that a single pipeline has no gradients to reduce."""
    model = find_model("gpt3-xl")
    assert model is not None
    return replace(model, tied_embeddings=False)


def chain(bandwidth: float, micro_batches: int, replicas: int = 1, recompute: bool = False) -> tuple[Cluster, Plan]:
    """gpt3-xl in two stages on two nodes, a GPU of each for each replica."""
    gpu = replace(find_gpu("A100-SXM-80GB", "test"), efficiency=0.4)
    nodes = tuple(Node(f"n{k}", "r", (gpu,) * replicas) for k in range(2))
    cluster = Cluster("two", nodes, Network(np.array([[2e11, bandwidth], [bandwidth, 2e11]]), np.zeros((2, 2))))
    model = untied()
    pipelines = tuple(
        Pipeline(f"p{p}", (Stage((0, 12), (f"n0/{p}",)), Stage((12, 24), (f"n1/{p}",))), micro_batches)
        for p in range(replicas)
    )
    return cluster, Plan(model, TrainingJob(micro_batches * replicas, 2048), pipelines, Options(recompute=recompute))


def test_a_slow_link_is_what_limits() -> None:
    """Free links are as good as a network that is fast beyond measure."""
    cluster, plan = chain(1e7, 8)
    found = explain(cluster, plan, 0.9)
    assert found.limit[0] == "pipeline_parallel"
    assert "between n0/0 and n1/0" in found.limit[1]
    levers = {lever.name: lever.iteration_s for lever in found.levers}
    fast = Roofline().price(chain(1e14, 8)[0], plan)
    assert levers["free_links"] == pytest.approx(fast.iteration_s, rel=1e-6)
    bubble_free = fast.iteration_s - fast.breakdown_s["bubble"]
    assert levers["no_waiting"] == pytest.approx(bubble_free, rel=1e-6)
    few = replace(plan, options=replace(plan.options, compression=Compression(8, 8, 8)))
    assert levers["compression"] == pytest.approx(Roofline().price(cluster, few).iteration_s, rel=1e-12)
    assert "compression" not in {lever.name for lever in explain(cluster, few, 0.9).levers}
    message = 2048 * 2048 * 2
    assert [link.message_bytes for link in found.links] == [message, message]
    assert found.links[0].occupied_s == pytest.approx(message / 1e7)
    assert not found.rings


def test_few_micro_batches_are_a_bubble_and_many_are_computing() -> None:
    assert explain(*chain(1e14, 1), 0.9).limit[0] in ("bubble", "compute")
    found = explain(*chain(1e14, 500), 0.9)
    assert found.limit[0] == "compute"
    assert "stage 1 of p0 (n1/0)" in found.limit[1]  # the head is its
    levers = {lever.name: lever for lever in found.levers}
    assert "stage 1 of p0" in levers["fast_stage"].what
    first = found.stages[0].forward_s + found.stages[0].backward_s
    assert levers["fast_stage"].iteration_s == pytest.approx(500 * first, rel=0.01)


def test_recomputing_is_a_lever() -> None:
    cluster, plan = chain(1e14, 8, recompute=True)
    levers = {lever.name: lever.iteration_s for lever in explain(cluster, plan, 0.9).levers}
    without = Roofline().price(cluster, replace(plan, options=replace(plan.options, recompute=False)))
    assert levers["no_recompute"] == pytest.approx(without.iteration_s, rel=1e-12)


def test_the_slowest_link_of_a_ring() -> None:
    """Three replicas of one stage: from n1 to n2 it is slow."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    bandwidth = np.full((3, 3), 1e9)
    bandwidth[1, 2] = 1e7
    cluster = Cluster(
        "three", tuple(Node(f"n{k}", "r", (gpu,)) for k in range(3)), Network(bandwidth, np.zeros((3, 3)))
    )
    model = untied()
    pipelines = tuple(Pipeline(f"p{p}", (Stage((0, 24), (f"n{p}/0",)),), 2) for p in range(3))
    found = explain(cluster, Plan(model, TrainingJob(6, 2048), pipelines), 0.9)
    (ring,) = found.rings
    assert ring.slowest_link == ("n1/0", "n2/0")
    assert ring.size_bytes == 2 * model.parameters
    assert ring.seconds == pytest.approx(4 * ring.size_bytes / 3 / 1e7)
    assert found.stages[0].sent_bytes == pytest.approx(4 / 3 * ring.size_bytes)
    assert found.limit[0] == "data_parallel"
    assert "over the link from n1/0 to n2/0" in found.limit[1]
    levers = {lever.name: lever.iteration_s for lever in found.levers}
    assert levers["free_all_reduce"] == pytest.approx(found.iteration_s - ring.seconds)
    assert found.to_json()["limit"]["cause"] == "data_parallel"


def test_tensor_parallel_talk_is_a_lever() -> None:
    gpu = find_gpu("A100-SXM-80GB", "test")
    cluster = Cluster("one", (Node("n0", "r", (gpu,) * 2),), Network(np.full((1, 1), 1e9), np.zeros((1, 1))))
    model = untied()
    plan = Plan(model, TrainingJob(4, 2048), (Pipeline("p0", (Stage((0, 24), ("n0/0", "n0/1")),), 4),))
    found = explain(cluster, plan, 0.9)
    assert found.limit[0] == "tensor_parallel"
    levers = {lever.name: lever.iteration_s for lever in found.levers}
    talk = found.stages[0].tensor_parallel_s
    assert levers["free_tensor_parallel"] == pytest.approx(found.iteration_s - 4 * talk)
