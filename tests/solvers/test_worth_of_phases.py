"""What prefill and decode replicas are held to, and what a plan's replicas and shares are made of."""

from dataclasses import replace

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.serving.flow import serving_flow
from hetsched.cost.serving.steady import Traffic
from hetsched.readers import resolve_model
from hetsched.requests import sampled
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.maxflow import MaxFlow
from hetsched.solvers.serving.phases import Phases
from hetsched.solvers.serving.workshop import Workshop
from hetsched.workload import Limit, ServingLoad, Slo

MODEL = resolve_model("llama-3.1-8b", "test")
GROUP = frozenset({0})


def workshop(slo: Slo, mode: str = "disaggregated") -> Workshop:
    gpus = (find_gpu("A100-SXM-40GB", "test"), find_gpu("A100-SXM-40GB", "test"))
    nodes = (Node("a", "x", gpus), Node("b", "x", (find_gpu("L4-24GB", "test"),) * 2), Node("c", "x", gpus[:1]))
    bandwidth = np.full((3, 3), 3e9)
    np.fill_diagonal(bandwidth, 25e9)
    load = ServingLoad(500, 60, slo=slo)
    requests = sampled(load, 300, np.random.default_rng(0))
    cluster = Cluster("three", nodes, Network(bandwidth, np.full((3, 3), 1e-4)))
    return Workshop(ServingProblem(cluster, MODEL, load, requests, mode=mode), 0.92, None)


def rate(slo: Slo, role: str, share: float = 0.3) -> float:
    made = workshop(slo)
    made.share_prompts(share)
    replica = Phases(made).replica(GROUP, role)
    return 0.0 if replica is None else replica.rate_per_s


def test_each_phase_is_held_to_its_own_limits() -> None:
    free = {role: rate(Slo(), role) for role in ("prefill", "decode")}
    first, token = Slo(ttft=Limit(0.2)), Slo(tpot=Limit(0.025))
    assert 0.0 < rate(first, "prefill") < free["prefill"]
    assert rate(first, "decode") == free["decode"]
    assert rate(token, "prefill") == free["prefill"]
    assert 0.0 < rate(token, "decode") < free["decode"]


def test_a_limit_on_whole_requests_is_divided() -> None:
    whole = Slo(e2e=Limit(1.5))
    assert rate(whole, "prefill", 0.1) < rate(whole, "prefill", 0.4)
    assert rate(whole, "decode", 0.1) > rate(whole, "decode", 0.4)


def test_drafts_are_the_flow_of_their_plan() -> None:
    """What the search promises of its best draft is what the flow through its plan is, and its shares carry it."""
    made = workshop(Slo())
    drafts = [draft for _, draft in zip(range(60), MaxFlow().search(made, np.random.default_rng(0)), strict=False)]
    best = max((draft for draft in drafts if draft is not None), key=lambda draft: draft.score)
    plan = best.plan
    assert {pipeline.role for pipeline in plan.pipelines} == {"prefill", "decode"}
    flow = serving_flow(made.problem.cluster, plan, traffic=Traffic.of_requests(made.problem.requests))
    assert flow.value_per_s == pytest.approx(best.score / 0.97, rel=0.02)  # replicas are filled up to that
    arriving = plan.shares(None)
    for node in flow.nodes:
        if node.role == "prefill":
            assert arriving[node.name] * best.score <= node.capacity_per_s * 1.001
        else:
            into = sum(arriving[source] * plan.shares(source).get(node.name, 0.0) for source in arriving)
            assert into * best.score <= node.capacity_per_s * 1.001


def test_alike_groups_get_alike_replicas() -> None:
    phases = Phases(workshop(Slo()))
    one, other = (phases.replica(frozenset({k}), "decode") for k in (0, 1))
    assert one is not None
    assert other is not None
    assert other.stages == tuple(replace(stage, devices=("a/1",)) for stage in one.stages)
    assert other.rate_per_s == one.rate_per_s


def test_what_replicas_do_is_learnt_for_those_that_are_alike_and_as_deep() -> None:
    """A search that asks for a group's replica again gets the rate that simulation gave a like one."""
    made = workshop(Slo())
    phases = Phases(made)
    before = {role: phases.replica(frozenset({0}), role) for role in ("prefill", "decode", "both")}
    decode = before["decode"]
    assert decode is not None
    made.learn([(decode, 0.8 * decode.rate_per_s)])
    for role, replica in before.items():
        assert replica is not None
        for group in (frozenset({0}), frozenset({1})):
            after = phases.replica(group, role)
            assert after is not None
            assert after.rate_per_s == pytest.approx(replica.rate_per_s * (0.8 if role == "decode" else 1.0))
    other = replace(decode, rate_per_s=100.0, stages=(replace(decode.stages[0], layers=(0, 1)),))
    assert made.corrected(other).rate_per_s == pytest.approx(80.0)
