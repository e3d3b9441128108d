"""The iteration put together by hand from plain loops: an independent second program for pipelines of any shape."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.cluster import Cluster
from hetsched.cost.compute import optimizer_s, stage_work
from hetsched.cost.training import Roofline
from hetsched.plan import Plan

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]

SEEDS = st.integers(0, 2**32)


@settings(deadline=None, max_examples=120)
@given(seed=SEEDS)
def test_the_breakdown_adds_up(random_cluster: MakeCluster, random_plan: MakePlan, seed: int) -> None:
    cluster = random_cluster(seed, (2, 1, 3, 2))
    cost = Roofline().price(cluster, random_plan(seed, cluster))
    assert sum(cost.breakdown_s.values()) == pytest.approx(cost.iteration_s, rel=1e-9)
    assert min(cost.breakdown_s.values()) >= -1e-9 * cost.iteration_s


Ring = tuple[list[tuple[int, int]], int]  # (pipeline, stage) of its members, and parameters


def plain_rings(plan: Plan) -> list[Ring]:
    """Who reduces how many parameters with whom: block by block, the last first, and a tied embedding last."""
    model = plan.model
    by_members: dict[tuple[int, ...], list[int]] = {}
    for block in range(model.num_layers):
        holders = tuple(
            next(s for s, stage in enumerate(pipeline.stages) if stage.layers[0] <= block < stage.layers[1])
            for pipeline in plan.pipelines
        )
        by_members.setdefault(holders, []).append(block)
    shared = model.vocab_size * model.hidden_size if model.tied_embeddings else 0
    rings: list[Ring] = []
    for holders, blocks in reversed(by_members.items()):
        parameters = model.stage_parameters((blocks[0], blocks[-1] + 1))
        parameters -= shared if 0 in blocks or model.num_layers - 1 in blocks else 0
        rings.append((list(enumerate(holders)), parameters))
    if shared:
        both = [(p, s) for p, pipeline in enumerate(plan.pipelines) for s in sorted({0, len(pipeline.stages) - 1})]
        rings.append((both, shared))
    return rings


def plain_ring_s(cluster: Cluster, plan: Plan, ring: list[tuple[int, int]], size: float) -> float:
    """An all-reduce: 2 (n - 1) steps, each as slow as the slowest link."""
    names = [plan.pipelines[p].stages[s].devices[0] for p, s in ring]
    step = 0.0
    for here, there in zip(names, names[1:] + names[:1], strict=True):
        link = cluster.link(cluster.index_of[here], cluster.index_of[there])
        step = max(step, link.latency_s + size / len(ring) / link.bandwidth_bytes_per_s)
    return 2 * (len(ring) - 1) * step


def plain_iteration(cluster: Cluster, plan: Plan) -> float:
    """The iteration of pipelines that do one micro-batch each: no stage ever waits for another micro-batch."""
    job, model, bits = plan.workload, plan.model, plan.options.compression
    message = job.micro_batch * job.seq_len * model.hidden_size * 2
    rings = plain_rings(plan)
    gather: dict[tuple[int, int], float] = {}
    if plan.options.zero == 3:  # weights come before each pass: half an all-reduce
        for ring, parameters in rings:
            for place in ring:
                gather[place] = gather.get(place, 0.0) + plain_ring_s(cluster, plan, ring, parameters * 2) / 2
    free: dict[tuple[int, int], float] = {}
    for p, pipeline in enumerate(plan.pipelines):
        devices = [cluster.device(stage.devices[0]) for stage in pipeline.stages]
        places = [cluster.index_of[device.name] for device in devices]
        works = [
            stage_work(device.gpu, model, job, stage.layers, plan.options.recompute)
            for device, stage in zip(devices, pipeline.stages, strict=True)
        ]
        time = sum(work.forward_s + gather.get((p, s), 0.0) for s, work in enumerate(works))
        for a, b in pairwise(places):
            link = cluster.link(a, b)
            time += link.latency_s + message * bits.activation_bits / 16 / link.bandwidth_bytes_per_s
        for s in reversed(range(len(works))):
            time += works[s].backward_s + gather.get((p, s), 0.0)
            free[p, s] = time
            if s:
                link = cluster.link(places[s], places[s - 1])
                time += link.latency_s + message * bits.activation_grad_bits / 16 / link.bandwidth_bytes_per_s
    for ring, parameters in rings:
        seconds = plain_ring_s(cluster, plan, ring, parameters * 2 * bits.grad_bits / 16)
        end = max(free[place] for place in ring) + seconds
        free.update(dict.fromkeys(ring, end))
    shards = len(plan.pipelines) if plan.options.zero else 1
    return max(
        time
        + optimizer_s(
            cluster.device(plan.pipelines[p].stages[s].devices[0]).gpu,
            model.stage_parameters(plan.pipelines[p].stages[s].layers) / shards,
        )
        for (p, s), time in free.items()
    )


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_an_iteration_by_hand(random_cluster: MakeCluster, random_plan: MakePlan, seed: int) -> None:
    """Pipelines of unequal depth and split, one micro-batch each."""
    cluster = random_cluster(seed, (2, 1, 3, 2))
    plan = random_plan(seed, cluster)
    size = plan.workload.micro_batch
    single = replace(
        plan,
        workload=replace(plan.workload, global_batch=size * len(plan.pipelines)),
        pipelines=tuple(replace(pipeline, micro_batches=1) for pipeline in plan.pipelines),
    )
    found = Roofline().price(cluster, single).iteration_s
    assert found == pytest.approx(plain_iteration(cluster, single), rel=1e-9)
