"""Chrome's trace format: what Perfetto needs of it, and that it holds what the simulation recorded."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from hetsched.cluster import Cluster
from hetsched.plan import Plan
from hetsched.simulate.timeline import chrome_trace
from hetsched.simulate.training import Simulation, simulate_iteration

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]


def traced(cluster: Cluster, plan: Plan) -> tuple[Simulation, list[dict[str, Any]]]:
    simulation = simulate_iteration(cluster, plan, record=True)
    return simulation, json.loads(chrome_trace(simulation))["traceEvents"]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("zero", [0, 3])
def test_all_is_there_and_threads_do_one_thing_at_a_time(
    random_cluster: MakeCluster, random_plan: MakePlan, overlap: bool, zero: int
) -> None:
    cluster = random_cluster(3, (2, 2, 2))
    plan = random_plan(3, cluster, grid=(2, 3))
    plan = replace(plan, options=replace(plan.options, overlap=overlap, zero=zero))
    simulation, events = traced(cluster, plan)
    done = [event for event in events if event["ph"] == "X"]
    assert {event["ph"] for event in events} == {"M", "X"}
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in done} <= named
    assert {e["pid"] for e in events if e["name"] == "process_name"} == {0, 1}
    counts = Counter(event["name"] for event in done)
    batches = sum(pipeline.micro_batches for pipeline in plan.pipelines)
    assert counts["forward"] == counts["backward"] == 3 * batches
    assert counts["send"] == 4 * batches * (1 if overlap else 2)
    assert counts["receive"] == (0 if overlap else 4 * batches)
    assert counts["optimizer"] == 6
    assert (counts["gather"] > 0) == (zero == 3)
    assert counts["all_reduce"] == sum(len(group.members) for group in simulation.placement.groups)
    assert max(e["ts"] + e["dur"] for e in done) == pytest.approx(simulation.iteration_s * 1e6, abs=0.002)
    numbers = {e["args"]["micro_batch"] for e in done if e["name"] == "forward" and e["pid"] == 0}
    assert numbers == set(range(plan.pipelines[0].micro_batches))
    for thread in named:
        own = sorted((e["ts"], e["dur"]) for e in done if (e["pid"], e["tid"]) == thread)
        assert all(a + took <= b + 0.002 for (a, took), (b, _) in pairwise(own))


def test_names_that_json_must_escape(random_cluster: MakeCluster, random_plan: MakePlan) -> None:
    cluster = random_cluster(1, (1,))
    plan = random_plan(1, cluster)
    plan = replace(plan, pipelines=tuple(replace(p, name='the "first" \\ é') for p in plan.pipelines))
    _, events = traced(cluster, plan)
    assert events[0]["args"]["name"] == 'pipeline the "first" \\ é'
