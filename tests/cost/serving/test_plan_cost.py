"""A serving plan in a steady state: shares, capacities, memory and violations."""

from dataclasses import replace

import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster
from hetsched.cost.serving.placed import even_stages, one_machine
from hetsched.cost.serving.plan_cost import price_serving
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage
from hetsched.plan.serving import equal_routes
from hetsched.readers import resolve_model
from hetsched.workload import ServingLoad

MODEL = resolve_model("llama-3.1-8b", "test")
GPU = find_gpu("A100-SXM-80GB", "test")


@pytest.fixture(scope="module")
def machine() -> Cluster:
    return one_machine(GPU, 4, None)


def plan(machine: Cluster, roles: tuple[str, ...] = ("both", "both"), rate: float | None = None) -> ServingPlan:
    stages = even_stages(machine, GPU, MODEL, 1, 1)
    pipelines = tuple(
        ServingPipeline(f"r{k}", (Stage(stages[0].layers, (f"node/{k}",)),), 64, role) for k, role in enumerate(roles)
    )
    return ServingPlan(MODEL, ServingLoad(1000, 250, rate), pipelines, equal_routes(pipelines))


def test_equal_replicas_add_up_and_unequal_shares_waste(machine: Cluster) -> None:
    one, two = plan(machine, ("both",)), plan(machine)
    alone = price_serving(machine, one).capacity_per_s
    assert price_serving(machine, two).capacity_per_s == pytest.approx(2 * alone)
    lopsided = replace(two, routes=(Route(None, "r0", 0.8), Route(None, "r1", 0.2)))
    assert price_serving(machine, lopsided).capacity_per_s == pytest.approx(alone / 0.8)


def test_beyond_the_capacity_times_are_infinite_and_below_it_they_grow(machine: Cluster) -> None:
    capacity = price_serving(machine, plan(machine)).capacity_per_s
    times = [price_serving(machine, plan(machine, rate=capacity * x)) for x in (0.2, 0.6, 0.95, 1.2)]
    assert [cost.ttft_s for cost in times] == sorted(cost.ttft_s for cost in times)
    assert times[-1].e2e_s == float("inf")
    assert times[-1].requests_per_s == pytest.approx(capacity)
    assert times[0].requests_per_s == pytest.approx(0.2 * capacity)


def test_prefill_alone_and_decode_alone_do_more_than_both(machine: Cluster) -> None:
    """A pair of phases is as fast as its slower half; each half does no work of the other."""
    both = price_serving(machine, plan(machine, ("both",)))
    pair = price_serving(machine, plan(machine, ("prefill", "decode")))
    assert both.capacity_per_s < pair.capacity_per_s < 2 * both.capacity_per_s
    assert max(pair.loads.values()) == pytest.approx(1.0)


def test_what_does_not_fit_is_a_violation_with_its_device() -> None:
    small = find_gpu("T4-16GB", "test")
    machine = one_machine(small, 2, None)
    pipelines = (ServingPipeline("r0", (Stage((0, 32), ("node/0",)),), 8),)
    cost = price_serving(machine, ServingPlan(MODEL, ServingLoad(), pipelines, equal_routes(pipelines)))
    assert [violation.device for violation in cost.violations] == ["node/0"]
    assert cost.capacity_per_s == 0.0
    predicted = cost.predicted()
    assert predicted["violations"][0]["needed_bytes"] > predicted["violations"][0]["available_bytes"]
