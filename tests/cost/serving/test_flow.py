"""The flow through a serving plan: capacities by hand, links by which stage holds which blocks, shared networks."""

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.serving.flow import Wire, kv_use, serving_flow
from hetsched.cost.serving.kv_transfer import kv_bytes_per_token, kv_parts
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage, equal_routes
from hetsched.precision import Precision
from hetsched.readers import resolve_model
from hetsched.requests import sampled
from hetsched.simulate.serving.run import simulate_serving
from hetsched.workload import ServingLoad

MODEL = resolve_model("llama-3.1-8b", "test")
L4, A100 = find_gpu("L4-24GB", "test"), find_gpu("A100-SXM-40GB", "test")
GBPS = 1e9 / 8


def cluster(gbps: float) -> Cluster:
    nodes = (Node("a", "x", (A100,)), Node("b", "x", (A100,)), Node("c", "x", (A100, A100)), Node("d", "x", (L4,)))
    bandwidth = np.full((4, 4), gbps * GBPS)
    np.fill_diagonal(bandwidth, 200e9)
    return Cluster("four", nodes, Network(bandwidth, np.full((4, 4), 1e-4)))


def pipeline(name: str, role: str, *stages: tuple[int, int, str], batch: int = 64) -> ServingPipeline:
    return ServingPipeline(name, tuple(Stage((a, b), tuple(d.split())) for a, b, d in stages), batch, role)


def plan(*pipelines: ServingPipeline) -> ServingPlan:
    return ServingPlan(MODEL, ServingLoad(800, 60), pipelines, equal_routes(pipelines))


def test_parts_go_where_the_blocks_are() -> None:
    """Blocks 0-15 on a and 16-31 on b go to 0-23 on c/0 and 24-31 on d: a sends half, b a quarter each to c and d."""
    source = (Stage((0, 16), ("a/0",)), Stage((16, 32), ("b/0",)))
    target = (Stage((0, 24), ("c/0",)), Stage((24, 32), ("d/0",)))
    here, precision = cluster(10.0), Precision()
    use = kv_use(here, kv_parts(here, MODEL, precision, source, target), 1000.0)
    whole_s = 1000.0 * kv_bytes_per_token(MODEL, precision, 32) / (10.0 * GBPS)
    expected = {
        Wire(0, 2): 0.5,
        Wire(1, 2): 0.25,
        Wire(1, 3): 0.25,
        Wire(0, None): 0.5,
        Wire(1, None): 0.5,
        Wire(None, 2): 0.75,
        Wire(None, 3): 0.25,
    }
    assert {wire: seconds / whole_s for wire, seconds in use.wires} == pytest.approx(expected)
    assert use.busy_s == pytest.approx(0.75 * whole_s, rel=0.35)  # c receives from both at once
    assert use.whole_s > use.busy_s


@pytest.mark.parametrize("gbps", [100.0, 0.5])
def test_the_value_is_the_narrowest_of_prefill_links_and_decode(gbps: float) -> None:
    here = cluster(gbps)
    found = serving_flow(
        here,
        plan(
            pipeline("p0", "prefill", (0, 32, "a/0")),
            pipeline("p1", "prefill", (0, 32, "b/0")),
            pipeline("d0", "decode", (0, 32, "c/0 c/1")),
        ),
    )
    nodes = {node.name: node for node in found.nodes}
    kv_s = 800 * kv_bytes_per_token(MODEL, Precision(), 32) / (gbps * GBPS)
    sides = nodes["p0"].capacity_per_s + nodes["p1"].capacity_per_s, nodes["d0"].capacity_per_s, 1.0 / kv_s
    assert found.value_per_s == pytest.approx(min(sides), rel=1e-6)
    assert sum(edge.flow_per_s for edge in found.edges) == pytest.approx(found.value_per_s)
    if gbps < 1.0:
        assert "the network into c" in found.full
    else:
        assert found.full


def test_a_colocated_plan_flows_as_its_replicas_do() -> None:
    found = serving_flow(
        cluster(10.0), plan(pipeline("r0", "both", (0, 32, "a/0")), pipeline("r1", "both", (0, 32, "b/0")))
    )
    assert found.value_per_s == pytest.approx(sum(node.capacity_per_s for node in found.nodes))
    assert found.edges == ()


def test_long_simulations_come_near_the_flow() -> None:
    """3,000 requests at once: between 30 and 80 % of them, as many a second as can flow, within 6 %."""
    here = cluster(25.0)
    several = plan(
        pipeline("p0", "prefill", (0, 32, "a/0"), batch=32),
        pipeline("d0", "decode", (0, 32, "b/0"), batch=64),
        pipeline("d1", "decode", (0, 32, "c/0 c/1"), batch=64),
    )
    run = simulate_serving(here, several, sampled(several.workload, 3000, np.random.default_rng(0)))
    done = np.sort(run.finish_s)
    rate = (2400 - 900) / (done[2399] - done[899])
    assert rate == pytest.approx(serving_flow(here, several).value_per_s, rel=0.06)


@pytest.mark.parametrize("gbps", [100.0, 0.5])
def test_what_a_replica_for_both_takes_in_displaces_what_it_does_itself(gbps: float) -> None:
    """Of one unit of its time a request takes 1 / whole, one that comes prefilled 1 / decode."""
    here, prefill = cluster(gbps), pipeline("p0", "prefill", (0, 32, "a/0"))
    apart = serving_flow(here, plan(prefill, pipeline("d0", "decode", (0, 32, "c/0"))))
    alone = serving_flow(here, plan(pipeline("r0", "both", (0, 32, "c/0"))))
    whole, (_, decode) = alone.value_per_s, (node.capacity_per_s for node in apart.nodes)
    (edge,) = apart.edges
    most = min(apart.nodes[0].capacity_per_s, edge.capacity_per_s, decode)
    pipelines = (prefill, pipeline("r0", "both", (0, 32, "c/0")))
    routes = (Route(None, "p0", 0.5), Route(None, "r0", 0.5), Route("p0", "r0", 1.0))
    mixed = serving_flow(here, ServingPlan(MODEL, ServingLoad(800, 60), pipelines, routes))
    assert mixed.value_per_s == pytest.approx(most + whole * (1.0 - most / decode), rel=1e-6)
    assert mixed.edges[0].flow_per_s == pytest.approx(most, rel=1e-6)
    assert mixed.nodes[1].flow_per_s == pytest.approx(whole * (1.0 - most / decode), rel=1e-6)
