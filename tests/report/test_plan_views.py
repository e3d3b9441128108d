"""What simulate, explain and compare print: it fits 80 columns, is short, and says what a person must know."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.cluster import Cluster
from hetsched.cost.explain import explain
from hetsched.cost.training import Roofline, play_iteration
from hetsched.plan import Plan
from hetsched.report.comparison import Compared, comparison_json, comparison_table, differences
from hetsched.report.explanation import explanation_text
from hetsched.report.simulation_table import simulation_table
from hetsched.simulate.training import simulate_iteration

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]
SEEDS = st.integers(0, 2**32)


def named(cluster: Cluster, plan: Plan, name: str) -> tuple[Cluster, Plan]:
    """With nodes of longer names."""
    nodes = tuple(replace(node, name=f"{name}-{node.name}") for node in cluster.nodes)
    pipelines = tuple(
        replace(
            pipeline,
            stages=tuple(replace(s, devices=tuple(f"{name}-{d}" for d in s.devices)) for s in pipeline.stages),
        )
        for pipeline in plan.pipelines
    )
    return replace(cluster, nodes=nodes), replace(plan, pipelines=pipelines)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, name=st.sampled_from(["a", "machine-in-sao-paulo-south-america-east"]), overlap=st.booleans())
def test_all_views_fit_80_columns(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, name: str, overlap: bool
) -> None:
    cluster = random_cluster(seed, (4, 8, 4, 2, 6) if seed % 2 else (2, 1, 3))
    cluster, plan = named(cluster, random_plan(seed, cluster), name)
    plan = replace(plan, options=replace(plan.options, overlap=overlap))
    model, simulation = play_iteration(cluster, plan), simulate_iteration(cluster, plan)
    cost = Roofline().price(cluster, plan)
    several = [Compared(f"{name}-{k}", "a.json", plan, cluster, "roofline", cost) for k in range(1 + seed % 5)]
    for text in (
        simulation_table(simulation, model.seconds, model.seconds if seed % 2 else None),
        explanation_text(explain(cluster, plan, 0.9), plan, cluster.name),
        comparison_table(several),
    ):
        lines = text.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) < 150


def test_alike_pipelines_stand_once(random_cluster: MakeCluster, random_plan: MakePlan) -> None:
    cluster = random_cluster(5, (4, 4))
    cluster = replace(
        cluster,
        nodes=tuple(replace(node, gpus=(cluster.nodes[0].gpus[0],) * 4) for node in cluster.nodes),
        network=replace(cluster.network, bandwidth_bytes_per_s=np.full((2, 2), 1e9), latency_s=np.zeros((2, 2))),
    )
    plan = random_plan(5, cluster, grid=(4, 2))
    stages = [
        tuple(
            replace(stage, layers=part, devices=(f"n{s}/{p}",))
            for s, (stage, part) in enumerate(zip(q.stages, [(0, 6), (6, 12)], strict=True))
        )
        for p, q in enumerate(plan.pipelines)
    ]
    size = plan.workload.micro_batch
    plan = replace(
        plan,
        workload=replace(plan.workload, global_batch=12 * size),
        pipelines=tuple(replace(q, stages=s, micro_batches=3) for q, s in zip(plan.pipelines, stages, strict=True)),
    )
    text = explanation_text(explain(cluster, plan, 0.9), plan, cluster.name)
    assert text.count("p0-p3: 3 micro-batches each") == 2  # once for time, once for memory
    assert "p1:" not in text
    table = simulation_table(simulate_iteration(cluster, plan), 1.0, None)
    assert len([line for line in table.splitlines() if "n1/" in line or "n0/" in line]) == 2


def test_a_simulation_says_how_it_differs(random_cluster: MakeCluster, random_plan: MakePlan) -> None:
    cluster = random_cluster(1, (1, 1))
    simulation = simulate_iteration(cluster, random_plan(1, cluster))
    took = simulation.iteration_s
    assert "the same" in simulation_table(simulation, took, None)
    assert "the simulation is 20.0% shorter" in simulation_table(simulation, took / 0.8, None)
    shared = replace(simulation, exact=False)
    text = " ".join(simulation_table(shared, took / 1.1, took / 1.2).split())
    assert "the simulation is 10.0% longer" in text
    assert "meet in one network: kept apart" in text


def test_plans_that_answer_different_questions(random_cluster: MakeCluster, random_plan: MakePlan) -> None:
    cluster = random_cluster(2)
    first = random_plan(2, cluster)
    second = replace(random_plan(3, cluster, name="opt-350m"))
    several = [
        Compared(name, name, plan, cluster, "roofline", Roofline().price(cluster, plan))
        for name, plan in (("one", first), ("other", second))
    ]
    notes = differences(several)
    assert "the plans are for different models: gpt2, opt-350m" in notes
    assert any("compare tokens/s" in note for note in notes)
    assert differences(several[:1]) == []
    document = comparison_json(several)
    ratio = several[1].cost.iteration_s / several[0].cost.iteration_s
    assert [plan["iteration_relative_to_first"] for plan in document["plans"]] == pytest.approx([1.0, ratio])
    table = comparison_table(several)
    speed = several[1].cost.tokens_per_s / several[0].cost.tokens_per_s
    assert f"{speed:.2f}× as fast" in table
