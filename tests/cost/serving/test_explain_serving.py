"""Accounts of a serving plan: seconds add up to the steady state's, levers and growth are what pricing anew gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.serving.explain import explain_serving
from hetsched.cost.serving.plan_cost import price_serving, steady_replica, traffic_of
from hetsched.cost.serving.replica import replica_times
from hetsched.plan import ServingPlan
from hetsched.readers import read_cluster, read_serving_plan
from hetsched.report.serving_explanation import serving_explanation_text
from hetsched.requests import sampled
from hetsched.serving.growth import one_more, with_one_more
from hetsched.workload import Slo

ROOT = Path(__file__).parents[3]
HOME = read_cluster(ROOT / "cluster_specs" / "home-office.yaml")
BOTH = read_serving_plan(ROOT / "plans" / "serve-by-hand.json")
APART = read_serving_plan(ROOT / "plans" / "serve-apart.json")


def with_network(cluster: Cluster, faster: float) -> Cluster:
    """Its links between nodes so many times as fast."""
    times = np.where(np.eye(len(cluster.nodes), dtype=bool), 1.0, faster)
    network = Network(cluster.network.bandwidth_bytes_per_s * times, cluster.network.latency_s / times)
    return replace(cluster, network=network)


@pytest.mark.parametrize("plan", [BOTH, APART], ids=["both", "apart"])
def test_seconds_and_bytes_add_up(plan: ServingPlan) -> None:
    traffic = traffic_of(plan)
    found, cost = explain_serving(HOME, plan, 0.9, traffic), price_serving(HOME, plan, 0.9, traffic)
    assert found.capacity_per_s == cost.capacity_per_s
    assert {r.name: r.requests_per_s / r.capacity_per_s for r in found.replicas} == pytest.approx(cost.loads)
    for pipeline, replica in zip(plan.pipelines, found.replicas, strict=True):
        times = replica_times(HOME, plan.model, pipeline.stages, plan.precision, 0.9)
        steady = steady_replica(plan, pipeline, times, traffic)
        stages = [stage for stage in found.stages if stage.replica == pipeline.name]
        if pipeline.role != "decode":
            prompt_s = sum(sum(stage.prefill_s.values()) for stage in stages) + times.overhead_s
            assert prompt_s == pytest.approx(steady.prompt_s)
        if pipeline.role != "prefill":
            round_s = sum(sum(stage.decode_s.values()) for stage in stages) + times.overhead_s
            groups = max(1.0, min(replica.batch, float(len(stages))))
            works = [sum(seconds for cause, seconds in stage.decode_s.items() if cause != "hop") for stage in stages]
            token_s = float(steady.token_s[round(replica.batch) - 1])
            assert max(round_s, groups * max(works)) == pytest.approx(token_s)
        for stage, of_stage in zip(stages, pipeline.stages, strict=True):
            usable = HOME.device(of_stage.devices[0]).gpu.memory_bytes * 0.9
            parts = (stage.weights_bytes, stage.workspace_bytes, stage.reserve_bytes, stage.kv_room_bytes)
            assert sum(parts) == pytest.approx(usable)


def test_free_links_are_worth_what_links_without_end_are() -> None:
    """Stages on home-office's slow network: the lever equals pricing on a cluster whose links take no time."""
    slow = with_network(HOME, 0.002)
    pipeline = BOTH.pipelines[2]
    across = replace(
        pipeline,
        stages=tuple(
            replace(stage, devices=(name,))
            for stage, name in zip(pipeline.stages, ("desktop/0", "rented/0"), strict=True)
        ),
    )
    plan = replace(BOTH, pipelines=(across,), routes=(replace(BOTH.routes[2], share=1.0),))
    traffic = traffic_of(plan)
    levers = {lever.name: lever.capacity_per_s for lever in explain_serving(slow, plan, 0.9, traffic).levers}
    free = price_serving(with_network(slow, 1e6), plan, 0.9, traffic).capacity_per_s
    assert levers["free_links"] == pytest.approx(free, rel=1e-3)
    assert explain_serving(slow, plan, 0.9, traffic).replicas[0].limit[0] == "links"


def test_a_tight_cache_is_what_limits() -> None:
    """One GPU whose memory is nearly full of weights: the KV cache, and with it freed all it could do."""
    plan = replace(BOTH, pipelines=(BOTH.pipelines[1],), routes=(replace(BOTH.routes[1], share=1.0),))
    found = explain_serving(HOME, plan, 0.24, traffic_of(plan))
    assert found.replicas[0].limit[0] == "kv_memory"
    assert found.replicas[0].kv_limits
    roomy = price_serving(HOME, plan, 0.95, traffic_of(plan)).capacity_per_s
    assert {one.name: one.capacity_per_s for one in found.levers}["boundless_kv"] == pytest.approx(roomy)


def test_one_more_gpu_of_a_kind_that_holds_the_model_at_least_doubles_one() -> None:
    """A single A100 serves all; a second one takes as many by itself, and what can't hold the model brings less."""
    one = replace(BOTH, pipelines=(BOTH.pipelines[1],), routes=(replace(BOTH.routes[1], share=1.0),))
    requests = sampled(one.workload, 200, np.random.default_rng(0))
    found = {growth.kind: growth for growth in one_more(HOME, one, requests, 0.9, None)}
    assert set(found) == {gpu.kind for node in HOME.nodes for gpu in node.gpus}
    best = found["A100-SXM-80GB"]
    assert best.after_per_s >= 2 * best.before_per_s * (1 - 1e-9)
    assert all(growth.after_per_s >= growth.before_per_s * (1 - 1e-9) for growth in found.values())
    assert found["RTX-2080Ti-11GB"].after_per_s < best.after_per_s


def test_decode_that_waits_for_prefill_gains_nothing_by_more_gpus() -> None:
    """Of replicas apart the slower side counts: more for the other is no more for the plan."""
    plan = replace(APART, workload=replace(APART.workload, slo=Slo()))
    requests = sampled(plan.workload, 200, np.random.default_rng(0))
    growth = {one.kind: one for one in one_more(HOME, plan, requests, 0.9, None)}["A100-SXM-80GB"]
    cost = price_serving(HOME, plan, 0.9)
    slower = max(cost.loads, key=lambda name: cost.loads[name])
    assert growth.replica is not None
    assert growth.replica[0] == slower[0]


def test_the_larger_cluster_is_the_same_but_for_its_new_gpu() -> None:
    larger, name = with_one_more(HOME, 0, HOME.nodes[0].gpus[0].kind)
    position = larger.position(name)
    everywhere = [k for k in range(len(larger.devices)) if k != position]
    before = np.arange(len(HOME.devices))
    for mine, theirs in zip(larger.links(everywhere, everywhere), HOME.links(before, before), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    alone = Cluster("a", (Node("n", "r", HOME.nodes[0].gpus[:1]),), Network(np.array([[np.inf]]), np.array([[0.0]])))
    two, _ = with_one_more(alone, 0, alone.nodes[0].gpus[0].kind)
    assert np.isfinite(two.network.bandwidth_bytes_per_s).all()


@pytest.mark.parametrize("plan", [BOTH, APART], ids=["both", "apart"])
def test_it_fits_a_terminal(plan: ServingPlan) -> None:
    found = explain_serving(HOME, plan, 0.9, traffic_of(plan))
    requests = sampled(plan.workload, 200, np.random.default_rng(0))
    text = serving_explanation_text(replace(found, growth=one_more(HOME, plan, requests, 0.9, None)), plan, "home")
    assert max(map(len, text.splitlines())) <= 80
    assert all(pipeline.name in text for pipeline in plan.pipelines)
