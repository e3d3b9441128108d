"""What holds for every plan: names and places mean nothing, better hardware never costs more, JSON keeps all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.cluster import Cluster, Gpu, Network
from hetsched.cost import COST_MODELS
from hetsched.cost.base import Cost, CostModel
from hetsched.plan import Compression, Pipeline, Plan, Stage

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]
Change = Callable[[np.random.Generator, Cluster], Cluster]

COUNTS = (2, 1, 3, 1, 2)
SEEDS = st.integers(0, 2**32)
MODELS = st.sampled_from(sorted(COST_MODELS))
GRIDS = st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 2), (1, 7), (8, 1)])


def with_device_links(cluster: Cluster, seed: int) -> Cluster:
    """The same, with links measured device by device between two of its nodes."""
    rng = np.random.default_rng(seed)
    i, j = (int(x) for x in rng.integers(len(cluster.nodes), size=2))
    shape = len(cluster.nodes[i].gpus), len(cluster.nodes[j].gpus)
    block = rng.uniform(3e7, 2e9, shape), rng.uniform(1e-4, 0.2, shape)
    return replace(cluster, network=replace(cluster.network, per_device={(i, j): block}))


def instance(
    make_cluster: MakeCluster, make_plan: MakePlan, seed: int, model: str, grid: tuple[int, int]
) -> tuple[Cluster, Plan, CostModel]:
    """A cluster and a plan that the model prices: on a grid for `dtfm`, of any shape otherwise."""
    cluster = make_cluster(seed, COUNTS)
    if seed % 2:
        cluster = with_device_links(cluster, seed)
    plan = make_plan(seed, cluster, grid=grid if model == "dtfm" or seed % 3 == 0 else None)
    if model == "flashflex":
        plan = with_even_batches(plan)
    return cluster, plan, COST_MODELS[model](0.9)


def with_even_batches(plan: Plan) -> Plan:
    """The same, of the same share of the batch each, and nothing compressed: all that FlashFlex's formulas know."""
    share = -(-plan.workload.global_batch // (plan.workload.micro_batch * len(plan.pipelines)))
    pipelines = tuple(replace(pipeline, micro_batches=share) for pipeline in plan.pipelines)
    return replace(plan, pipelines=pipelines, options=replace(plan.options, compression=Compression()))


# ---- names and places


def moved(cluster: Cluster, nodes: Sequence[int], inside: Sequence[Sequence[int]]) -> tuple[Cluster, dict[str, str]]:
    """The cluster with its nodes, and the devices in each, in another order and under other names; and the new names.

    nodes: which old node comes at each place; inside: for each old node, which old device comes at each place.
    """
    names: dict[str, str] = {}
    renamed = []
    for place, old in enumerate(nodes):
        node = cluster.nodes[old]
        renamed.append(replace(node, name=f"box-{place}", region=f"in-{node.region}"))
        names.update({f"{node.name}/{index}": f"box-{place}/{new}" for new, index in enumerate(inside[old])})
    place_of = {old: place for place, old in enumerate(nodes)}
    network = cluster.network
    blocks = {
        (place_of[i], place_of[j]): tuple(block[np.ix_(inside[i], inside[j])] for block in pair)
        for (i, j), pair in network.per_device.items()
    }
    at = np.ix_(nodes, nodes)
    links = Network(network.bandwidth_bytes_per_s[at], network.latency_s[at], blocks)  # type: ignore[arg-type]
    return Cluster("moved", tuple(renamed), links), names


@settings(deadline=None, max_examples=120)
@given(seed=SEEDS, model=MODELS, grid=GRIDS)
def test_renaming_and_moving_devices_changes_no_cost(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, model: str, grid: tuple[int, int]
) -> None:
    cluster, plan, priced_by = instance(random_cluster, random_plan, seed, model, grid)
    rng = np.random.default_rng(seed)
    inside = [rng.permutation(len(node.gpus)).tolist() for node in cluster.nodes]
    other, names = moved(cluster, rng.permutation(len(cluster.nodes)).tolist(), inside)
    pipelines = tuple(
        Pipeline(
            f"replica {p}",
            tuple(Stage(s.layers, tuple(names[name] for name in s.devices)) for s in pipeline.stages),
            pipeline.micro_batches,
        )
        for p, pipeline in enumerate(plan.pipelines)
    )
    here, there = priced_by.price(cluster, plan), priced_by.price(other, replace(plan, pipelines=pipelines))
    assert there.iteration_s == pytest.approx(here.iteration_s, rel=1e-12)
    assert there.breakdown_s == pytest.approx(dict(here.breakdown_s), rel=1e-9, abs=1e-9 * here.iteration_s)
    assert there.memory_bytes == {names[name]: needed for name, needed in here.memory_bytes.items()}
    assert {v.device for v in there.violations} == {names[v.device] for v in here.violations}
    assert there.usd_per_hour == pytest.approx(here.usd_per_hour)
    assert there.mfu == pytest.approx(here.mfu)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, grid=GRIDS)
def test_the_order_of_the_pipelines_is_nothing_to_the_dtfm_formula(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, grid: tuple[int, int]
) -> None:
    cluster, plan, priced_by = instance(random_cluster, random_plan, seed, "dtfm", grid)
    order = np.random.default_rng(seed).permutation(len(plan.pipelines))
    shuffled = replace(plan, pipelines=tuple(plan.pipelines[p] for p in order))
    found = priced_by.price(cluster, shuffled).iteration_s
    assert found == pytest.approx(priced_by.price(cluster, plan).iteration_s, rel=1e-12)


# ---- better hardware


def better_links(rng: np.random.Generator, cluster: Cluster) -> Cluster:
    """Some links, one way, up to ten times as fast and with down to no latency."""

    def faster(bandwidth: np.ndarray) -> np.ndarray:
        return bandwidth * np.where(rng.random(bandwidth.shape) < 0.5, rng.uniform(1, 10, bandwidth.shape), 1.0)

    def sooner(latency: np.ndarray) -> np.ndarray:
        return latency * np.where(rng.random(latency.shape) < 0.5, rng.uniform(0, 1, latency.shape), 1.0)

    network = cluster.network
    blocks = {pair: (faster(bandwidth), sooner(latency)) for pair, (bandwidth, latency) in network.per_device.items()}
    return replace(cluster, network=Network(faster(network.bandwidth_bytes_per_s), sooner(network.latency_s), blocks))


def change_gpus(cluster: Cluster, change: Callable[[Gpu], Gpu], rng: np.random.Generator) -> Cluster:
    nodes = tuple(
        replace(node, gpus=tuple(change(gpu) for gpu in node.gpus)) if rng.random() < 0.6 else node
        for node in cluster.nodes
    )
    return replace(cluster, nodes=nodes)


def faster_gpus(rng: np.random.Generator, cluster: Cluster) -> Cluster:
    return change_gpus(cluster, lambda gpu: replace(gpu, half_flops_per_s=gpu.half_flops_per_s * 1.7), rng)


def more_efficient_gpus(rng: np.random.Generator, cluster: Cluster) -> Cluster:
    return change_gpus(cluster, lambda gpu: replace(gpu, efficiency=0.9), rng)


def faster_memory(rng: np.random.Generator, cluster: Cluster) -> Cluster:
    return change_gpus(cluster, lambda gpu: replace(gpu, memory_bytes_per_s=gpu.memory_bytes_per_s * 1.7), rng)


def more_memory(rng: np.random.Generator, cluster: Cluster) -> Cluster:
    return change_gpus(cluster, lambda gpu: replace(gpu, memory_bytes=gpu.memory_bytes * 2), rng)


def broken(cost: Cost) -> float:
    return cost.rank()[0]


@pytest.mark.parametrize(
    "better", [better_links, faster_gpus, more_efficient_gpus, faster_memory, more_memory], ids=lambda f: f.__name__
)
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, model=MODELS, grid=GRIDS)
def test_better_hardware_never_costs_more(
    random_cluster: MakeCluster, random_plan: MakePlan, better: Change, seed: int, model: str, grid: tuple[int, int]
) -> None:
    cluster, plan, priced_by = instance(random_cluster, random_plan, seed, model, grid)
    before = priced_by.price(cluster, plan)
    after = priced_by.price(better(np.random.default_rng(seed), cluster), plan)
    assert after.iteration_s <= before.iteration_s * (1 + 1e-9)
    assert broken(after) <= broken(before)
    assert after.memory_bytes.keys() == before.memory_bytes.keys()
    if better is not more_memory:  # of which a share is kept in reserve
        assert after.memory_bytes == before.memory_bytes
    assert after.model_flops == before.model_flops


@pytest.mark.parametrize(
    ("better", "model"), [(better_links, "dtfm"), (better_links, "roofline"), (faster_gpus, "roofline")]
)
def test_better_hardware_is_seen(
    random_cluster: MakeCluster, random_plan: MakePlan, better: Change, model: str
) -> None:
    """Of twenty plans on several devices, most gain: nothing above holds because nothing is read."""
    gained = 0
    for seed in range(20):
        cluster, plan, priced_by = instance(random_cluster, random_plan, seed, model, (4, 2))
        after = priced_by.price(better(np.random.default_rng(seed), cluster), plan)
        gained += after.iteration_s < priced_by.price(cluster, plan).iteration_s * (1 - 1e-9)
    assert gained > 10


# ---- JSON


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS, model=MODELS, grid=GRIDS)
def test_json_keeps_the_plan_and_its_price(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, model: str, grid: tuple[int, int]
) -> None:
    cluster, plan, priced_by = instance(random_cluster, random_plan, seed, model, grid)
    if seed % 5 == 0:
        plan = replace(plan, options=replace(plan.options, dtfm_message_gigabytes=(0.65, 0.1)))
    cost = priced_by.price(cluster, plan)
    plan = replace(plan, predicted=cost.predicted())
    back = Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    assert back == plan
    assert priced_by.price(cluster, back) == cost
