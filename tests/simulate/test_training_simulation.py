"""The simulated iteration against the cost model's, which plays schedules by rounds and shares networks for good."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.placement import place
from hetsched.cost.training import Iteration, play_iteration, play_placed
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.simulate.stages import StageTimes
from hetsched.simulate.training import Simulation, simulate_iteration
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]

SEEDS = st.integers(0, 2**32)
ROUNDING = 1e-9


def with_teams(plan: Plan, cluster: Cluster, seed: int) -> Plan:
    """The plan with idle devices of the same nodes in some of its stages."""
    rng = np.random.default_rng(seed)
    used = {name for pipeline in plan.pipelines for name in pipeline.devices}
    idle: dict[str, list[str]] = {}
    for device in cluster.devices:
        if device.name not in used:
            idle.setdefault(device.node, []).append(device.name)

    def widened(stage: Stage) -> Stage:
        spare = idle.get(cluster.device(stage.devices[0]).node, [])
        count = int(rng.integers(min(3, len(spare)) + 1))
        return Stage(stage.layers, (*stage.devices, *(spare.pop() for _ in range(count))))

    pipelines = tuple(replace(p, stages=tuple(widened(stage) for stage in p.stages)) for p in plan.pipelines)
    return replace(plan, pipelines=pipelines)


def instance(make_cluster: MakeCluster, make_plan: MakePlan, seed: int, overlap: bool) -> tuple[Cluster, Plan]:
    cluster = make_cluster(seed, ((2, 1, 3, 2), (4, 8, 4, 2), (1,) * 8)[seed % 3])
    plan = with_teams(make_plan(seed, cluster), cluster, seed)
    return cluster, replace(plan, options=replace(plan.options, overlap=overlap))


def kinds_apart(cluster: Cluster, plan: Plan) -> Iteration:
    """The model's iteration were activations and their gradients never to meet."""
    return play_placed(replace(place(cluster, plan), crossing_lanes=None))


def same_times(simulation: Simulation, model: Iteration) -> bool:
    """Whether every stage ends its passes, its all-reduces and its step when the model says."""

    def column(times: Callable[[StageTimes], float]) -> list[float]:
        return [times(stage) for line in simulation.stages for stage in line]

    return all(
        found == pytest.approx([time for line in expected for time in line], rel=ROUNDING)
        for found, expected in (
            (column(lambda stage: stage.backward_end_s), model.backward_s),
            (column(lambda stage: stage.reduced_s), model.reduced_s),
            (column(lambda stage: stage.finished_s), model.finished_s),
        )
    )


@settings(deadline=None, max_examples=150)
@given(seed=SEEDS, overlap=st.booleans())
def test_equal_where_exact_and_never_above_the_models_share(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, overlap: bool
) -> None:
    cluster, plan = instance(random_cluster, random_plan, seed, overlap)
    models = kinds_apart(cluster, plan), play_iteration(cluster, plan)
    apart = simulate_iteration(cluster, plan, kinds_apart=True)
    assert apart.iteration_s <= models[0].seconds * (1 + ROUNDING)
    assert models[0].seconds <= models[1].seconds * (1 + ROUNDING)
    for simulation, model in zip((apart, simulate_iteration(cluster, plan)), models, strict=True):
        if simulation.exact:
            assert same_times(simulation, model)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, overlap=st.booleans())
def test_pipelines_of_nodes_of_their_own(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, overlap: bool
) -> None:
    """With kinds apart nothing is shared there but, in some plans, by the rings of one stage."""
    cluster = random_cluster(seed, (1,) * 7)
    plan = random_plan(seed, cluster)
    plan = replace(plan, options=replace(plan.options, overlap=overlap))
    simulation, model = simulate_iteration(cluster, plan, kinds_apart=True), kinds_apart(cluster, plan)
    if plan.options.zero < 3 and max(flows_in_common(simulation), default=1) == 1:
        assert simulation.exact
    if simulation.exact:
        assert same_times(simulation, model)


def flows_in_common(simulation: Simulation) -> list[int]:
    placement = simulation.placement
    kinds = placement.forward_lanes, placement.backward_lanes, *placement.gradient_lanes
    return [count for lanes in kinds for ends in (lanes.out, lanes.into) for count in ends.values()]


def test_the_cases_above_are_not_empty(random_cluster: MakeCluster, random_plan: MakePlan) -> None:
    """Of 150 plans, many are exact, many are shorter than the model's, and in some kinds of traffic meet."""
    exact = shorter = longer = 0
    for seed in range(150):
        cluster, plan = instance(random_cluster, random_plan, seed, seed % 2 == 0)
        simulation, model_s = simulate_iteration(cluster, plan), play_iteration(cluster, plan).seconds
        exact += simulation.exact and len(simulation.placement.teams[0]) > 1
        shorter += simulation.iteration_s < model_s * (1 - ROUNDING)
        longer += simulation.iteration_s > model_s * (1 + ROUNDING)
    assert exact >= 10
    assert shorter >= 10
    assert longer >= 1


# ---- on paper


def untied() -> ModelSpec:
    """gpt3-xl with a head of its own, so that a single pipeline has no gradients to reduce."""
    model = find_model("gpt3-xl")
    assert model is not None
    return replace(model, tied_embeddings=False)


def two_by_two(micro_batches: Sequence[int], layers: Sequence[int], overlap: bool = True) -> tuple[Cluster, Plan]:
    """Two pipelines from node n0 to node n1, at 1e8 bytes/s and without latency, cut after so many blocks."""
    gpu = replace(find_gpu("A100-SXM-80GB", "test"), efficiency=0.4)
    nodes = tuple(Node(f"n{k}", "r", (gpu,) * 2) for k in range(2))
    cluster = Cluster("two", nodes, Network(np.array([[2e11, 1e8], [1e8, 2e11]]), np.zeros((2, 2))))
    model = untied()
    pipelines = tuple(
        Pipeline(
            f"p{p}",
            tuple(Stage(part, (f"n{s}/{p}",)) for s, part in enumerate(pairwise([0, cut, model.num_layers]))),
            count,
        )
        for p, (count, cut) in enumerate(zip(micro_batches, layers, strict=True))
    )
    return cluster, Plan(model, TrainingJob(sum(micro_batches), 2048), pipelines, Options(overlap=overlap))


def test_a_message_that_meets_another_for_a_while() -> None:
    """One micro-batch each; the second pipeline's first stage works longer, so its message leaves later."""
    cluster, plan = two_by_two([1, 1], [6, 12])
    simulation = simulate_iteration(cluster, plan, record=True)
    works, message_s = simulation.placement.works, 2048 * 2048 * 2 / 1e8
    starts = [works[0][0].forward_s, works[1][0].forward_s]
    assert starts[0] < starts[1] < starts[0] + message_s
    alone = starts[1] - starts[0]
    ends = {event.pipeline: event.end_s for event in simulation.events if event.what == "send" and event.to == 1}
    assert ends[0] == pytest.approx(starts[1] + 2 * (message_s - alone))
    assert ends[1] == pytest.approx(ends[0] + message_s - (ends[0] - starts[1]) / 2)
    assert not simulation.exact


def test_lockstep_is_as_the_model_has_it() -> None:
    """Equal pipelines send at the same times: the share that the model gives them is what there is."""
    cluster, plan = two_by_two([6, 6], [12, 12], overlap=False)
    simulation = simulate_iteration(cluster, plan)
    assert not simulation.exact
    assert simulation.iteration_s == pytest.approx(play_iteration(cluster, plan).seconds, rel=ROUNDING)


# ---- what is recorded


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, overlap=st.booleans())
def test_events_add_up_and_a_stage_does_one_thing_at_a_time(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int, overlap: bool
) -> None:
    cluster, plan = instance(random_cluster, random_plan, seed, overlap)
    simulation = simulate_iteration(cluster, plan, record=True)
    assert simulation.iteration_s == simulate_iteration(cluster, plan).iteration_s
    on_links = ("send",) if overlap else ()
    for p, line in enumerate(simulation.stages):
        for s, times in enumerate(line):
            own = [e for e in simulation.events if (e.pipeline, e.stage) == (p, s) and e.what not in on_links]
            own.sort(key=lambda e: (e.start_s, e.end_s))
            assert all(a.end_s <= b.start_s + 1e-12 for a, b in pairwise(own))
            assert len([e for e in own if e.what == "forward"]) == plan.pipelines[p].micro_batches
            busy = times.busy_s + times.communicating_s
            assert sum(e.end_s - e.start_s for e in own) == pytest.approx(busy, rel=1e-6)
            assert busy <= simulation.iteration_s * (1 + ROUNDING)
            assert min(times.compute_s, times.reduce_s, times.gather_s, times.transfer_s) >= 0
            assert overlap == (times.transfer_s == 0) or len(line) == 1


# ---- activations and their gradients that meet


def in_line(seed: int) -> tuple[Cluster, Plan]:
    """A pipeline of 3 to 8 nodes of one V100, all links alike, and messages that keep a link for 30 to 80 % of the
    time that a stage works on a micro-batch."""
    rng = np.random.default_rng(seed)
    depth, model = int(rng.integers(3, 9)), untied()
    cuts = np.linspace(0, model.num_layers, depth + 1).astype(int).tolist()
    stages = tuple(Stage((a, b), (f"n{s}/0",)) for s, (a, b) in enumerate(pairwise(cuts)))
    job = TrainingJob(int(rng.integers(4, 20)) * depth, 2048, 1, "fp16")
    plan = Plan(model, job, (Pipeline("p0", stages, job.global_batch),), Options())
    gpu = find_gpu("V100-SXM2-16GB", "test")
    nodes = tuple(Node(f"n{s}", "r", (gpu,)) for s in range(depth))
    free = Cluster("line", nodes, Network(np.full((depth, depth), 1e12), np.zeros((depth, depth))))
    work_s = max(work.forward_s + work.backward_s for work in place(free, plan).works[0])
    bandwidth = 2048 * model.hidden_size * 2 / (work_s * rng.uniform(0.3, 0.8))
    return replace(free, network=Network(np.full((depth, depth), bandwidth), np.zeros((depth, depth)))), plan


def with_micro_batches(plan: Plan, count: int) -> Plan:
    job = replace(plan.workload, global_batch=count)
    return replace(plan, workload=job, pipelines=(replace(plan.pipelines[0], micro_batches=count),))


def test_messages_that_cross_meet_on_average() -> None:
    """40 pipelines over slow links: the model is 5 % off on average (14 % at most), 18 % were it to keep both apart."""
    met, apart = [], []
    for seed in range(40):
        cluster, plan = in_line(seed)
        simulated_s = simulate_iteration(cluster, plan).iteration_s
        met.append(abs(play_iteration(cluster, plan).seconds / simulated_s - 1))
        apart.append(abs(kinds_apart(cluster, plan).seconds / simulated_s - 1))
    assert np.mean(met) <= 0.055
    assert np.max(met) <= 0.14
    assert np.mean(apart) >= 3 * np.mean(met)


# So many for each stage, and more; mean and greatest. Measured: 1 and 2.7, 1.7 and 2.8, 1.2 and 4.4, 2.9 and 5.9, 2.9
# and 9.2 %.
OFF = [(0.5, 0, 0.012, 0.03), (1, -1, 0.02, 0.03), (1, 0, 0.015, 0.05), (1, 1, 0.03, 0.065), (2, 0, 0.032, 0.1)]


@pytest.mark.parametrize(("each", "more", "mean", "greatest"), OFF)
def test_about_as_many_micro_batches_as_stages(each: float, more: int, mean: float, greatest: float) -> None:
    """The same pipelines while they fill and drain for most of the time, when few messages meet."""
    off = []
    for seed in range(0, 40, 2):
        cluster, plan = in_line(seed)
        plan = with_micro_batches(plan, round(each * len(plan.pipelines[0].stages)) + more)
        off.append(abs(play_iteration(cluster, plan).seconds / simulate_iteration(cluster, plan).iteration_s - 1))
    assert np.mean(off) <= mean
    assert np.max(off) <= greatest
