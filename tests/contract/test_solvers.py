"""What every solver keeps, whatever it is; and how near each comes to the optimum where that is known."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, islice, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hetsched.algorithms.assignment import bottleneck_assignment
from hetsched.catalog import find_model
from hetsched.cluster import Cluster
from hetsched.cost import COST_MODELS
from hetsched.cost.published.dtfm import DtFm, messages_gigabytes
from hetsched.cost.training import Roofline
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.model import ModelSpec
from hetsched.plan import Pipeline, Plan, Stage
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.search import AnyOf, MaxSteps, Progress, Result, solve
from hetsched.solvers import SOLVERS
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]
Floats = NDArray[np.float64]

SPECS = Path(__file__).parents[2] / "cluster_specs"
BASELINES = ("megatron", "random")
SEARCHES = [name for name in SOLVERS if name not in BASELINES]
# These search asymmetric plans, so they need a cost model that has prices for them: dtfm has for grids alone.
ASYMMETRIC = ("hierarchical", "local-search", "pipeline-dp")
ON_GRIDS = [name for name in SOLVERS if name not in ASYMMETRIC]
PAIRS = [(name, model) for name in SOLVERS for model in COST_MODELS if model != "dtfm" or name in ON_GRIDS]
FEW = 8  # candidates: those that every solver gives in a fraction of a second on 7 devices


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    assert model is not None
    return model


# Node sizes (None: the bundled home-office, of three kinds of GPU), global batch and choices.
PROBLEMS: dict[str, tuple[tuple[int, ...] | None, int, Choices]] = {
    "unequal GPUs, all open": (None, 24, Choices()),
    "unequal GPUs, some idle": (None, 24, Choices(replicas=2, stages=2)),
    "one device": ((1,), 8, Choices()),
    "two devices": ((2,), 8, Choices()),
    "7 devices, 3 stages": ((2, 1, 3, 1), 24, Choices(stages=3)),
    "replicas fixed": ((2, 1, 3, 1), 24, Choices(replicas=2)),
    "batch not divisible": ((2, 1, 3, 1), 13, Choices(replicas=3)),
    "a sequence a replica": ((3, 4), 7, Choices(replicas=7, micro_batch=4)),
    "fewer sequences than GPUs": ((2, 1, 3, 1), 3, Choices()),
    "one pipeline": ((1, 1, 1, 1, 1), 6, Choices(replicas=1, stages=5, schedule="gpipe")),
    "no pipeline": ((1, 2, 2), 12, Choices(replicas=5, stages=1, zero=1)),
    "micro-batch and memory fixed": ((2, 4), 16, Choices(stages=2, micro_batch=2, recompute=True, zero=2)),
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest, random_cluster: MakeCluster) -> Problem:
    counts, batch, choices = PROBLEMS[request.param]
    cluster = read_cluster(SPECS / "home-office.yaml") if counts is None else random_cluster(1, counts)
    return Problem(cluster, model_of("gpt2"), TrainingJob(batch, 256), choices)


def trajectory(problem: Problem, solver: str, model: str, seed: int, steps: int = FEW) -> list[tuple[float, Plan]]:
    search = SOLVERS[solver].search(problem, COST_MODELS[model](0.92), np.random.default_rng(seed))
    return [(candidate.cost.iteration_s, candidate.plan) for candidate in islice(search, steps)]


@pytest.mark.parametrize(("solver", "model"), PAIRS)
def test_candidates_are_plans_as_asked_for_at_their_price(problem: Problem, solver: str, model: str) -> None:
    priced_by = COST_MODELS[model](0.92)
    assert SOLVERS[solver].supports(problem, priced_by) is None
    choices, seen = problem.choices, 0
    for candidate in islice(SOLVERS[solver].search(problem, priced_by, np.random.default_rng(5)), FEW):
        plan, seen = candidate.plan, seen + 1
        assert priced_by.price(problem.cluster, plan) == candidate.cost
        back = Plan.from_json(json.loads(json.dumps(plan.to_json())))  # which checks layers, devices and batch anew
        assert back == plan
        assert priced_by.price(problem.cluster, back).iteration_s == candidate.cost.iteration_s
        assert {name for pipeline in plan.pipelines for name in pipeline.devices} <= set(problem.cluster.index_of)
        assert plan.model == problem.model
        assert replace(plan.workload, micro_batch=1) == problem.job
        assert choices.replicas in (None, len(plan.pipelines))
        assert all(choices.stages in (None, len(pipeline.stages)) for pipeline in plan.pipelines)
        assert choices.micro_batch in (None, plan.workload.micro_batch)
        assert choices.schedule in (None, plan.options.schedule)
        assert choices.recompute in (None, plan.options.recompute)
        assert choices.zero in (None, plan.options.zero)
    assert seen == FEW or 0 < seen <= SOLVERS[solver].steps(problem)


@pytest.mark.parametrize(("solver", "model"), PAIRS)
def test_equal_seeds_give_equal_trajectories(problem: Problem, solver: str, model: str) -> None:
    assert trajectory(problem, solver, model, 3) == trajectory(problem, solver, model, 3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_links_measured_between_single_gpus(random_cluster: MakeCluster, solver: str) -> None:
    """A plan's stages may be of several GPUs of a node, no two of them alike."""
    nodes, model, rng = random_cluster(1, (2, 1, 4)), Roofline(), np.random.default_rng(1)
    links = {
        (i, j): (np.exp(rng.uniform(np.log(3e7), np.log(2e9), size)), rng.uniform(1e-4, 0.2, size))
        for (i, one), (j, other) in product(enumerate(nodes.nodes), repeat=2)
        for size in [(len(one.gpus), len(other.gpus))]
    }
    cluster = replace(nodes, network=replace(nodes.network, per_device=links))
    result = solve(Problem(cluster, model_of("gpt2"), TrainingJob(24, 256)), SOLVERS[solver], model, stop=MaxSteps(40))
    assert model.price(cluster, result.best) == result.cost


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "megatron"])
def test_other_seeds_give_other_trajectories(random_cluster: MakeCluster, solver: str) -> None:
    """On 8 GPUs `pipeline-dp` comes to the same plans whatever the chance."""
    problem = Problem(random_cluster(1, (1,) * 10), model_of("gpt2"), TrainingJob(24, 256), Choices(2, 5))
    steps = SOLVERS[solver].steps(problem)
    model = "dtfm" if solver in ON_GRIDS else "roofline"
    assert trajectory(problem, solver, model, 3, steps) != trajectory(problem, solver, model, 4, steps)


@pytest.mark.parametrize(("solver", "model"), PAIRS)
def test_the_driver_keeps_the_best(random_cluster: MakeCluster, solver: str, model: str) -> None:
    problem = Problem(random_cluster(2, (2, 1, 3)), model_of("gpt2"), TrainingJob(24, 256))
    seen: list[float] = []

    def watch(progress: Progress) -> None:
        assert progress.best is not None
        seen.append(progress.best.cost.iteration_s)

    def run() -> Result:
        return solve(problem, SOLVERS[solver], COST_MODELS[model](0.92), seed=9, stop=MaxSteps(12), watch=watch)

    result = run()
    costs = [cost for cost, _ in trajectory(problem, solver, model, 9, 12)]
    assert result.cost.iteration_s == min(costs) == seen[-1]
    assert result.candidates == len(costs) == len(seen)
    assert seen == [min(costs[: k + 1]) for k in range(len(costs))]
    assert [point.iteration_s for point in result.trace] == sorted(set(seen), reverse=True)
    assert [seen.index(point.iteration_s) + 1 for point in result.trace] == [point.step for point in result.trace]
    assert COST_MODELS[model](0.92).price(problem.cluster, result.best) == result.cost
    again = run()
    assert (again.best, again.cost) == (result.best, result.cost)
    assert [(point.step, point.iteration_s) for point in again.trace] == [(p.step, p.iteration_s) for p in result.trace]


# ---- the optimum of the dtfm formula


@dataclass(frozen=True)
class Instance:
    """Devices in nodes of their own, no two links alike, and a grid."""

    replicas: int
    stages: int
    devices: int
    seed: int

    def problem(self, random_cluster: MakeCluster) -> Problem:
        cluster = random_cluster(self.seed, (1,) * self.devices, kinds=("A100-SXM-80GB",))
        return Problem(cluster, model_of("gpt2"), TrainingJob(96, 1024, 1), Choices(self.replicas, self.stages))


def optimum(problem: Problem) -> float:
    """The least DATAP + 2 · PIPELINE of every partition in every order.

    By subsets: for the devices placed so far and the last group, every (DATAP, PIPELINE) that no other one beats.
    """
    replicas, stages = problem.choices.replicas, problem.choices.stages
    assert replicas
    assert stages
    everywhere = range(len(problem.cluster.devices))
    latency, bandwidth = problem.cluster.links(list(everywhere), list(everywhere))
    c_dp, c_pp = messages_gigabytes(problem.model, problem.job, replicas, stages)
    within = 2 * (latency + c_dp * 1e9 / (replicas * bandwidth))
    between = latency + c_pp * 1e9 / bandwidth
    members = {sum(1 << d for d in group): list(group) for group in combinations(everywhere, replicas)}
    datap = {group: max(sum(within[a, b] for b in m if a != b) for a in m) for group, m in members.items()}
    hops = {
        (a, b): bottleneck_assignment(between[np.ix_(members[a], members[b])])[1]
        for a in members
        for b in members
        if not a & b
    }
    fronts = {(group, group): [(cost, 0.0)] for group, cost in datap.items()}
    for _ in range(stages - 1):
        found: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for (placed, last), front in fronts.items():
            for group, cost in datap.items():
                if not group & placed:
                    hop = hops[last, group]
                    found.setdefault((placed | group, group), []).extend((max(d, cost), p + hop) for d, p in front)
        fronts = {state: undominated(pairs) for state, pairs in found.items()}
    return float(min(d + 2 * p for front in fronts.values() for d, p in front))


def undominated(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for pair in sorted(pairs):
        if not kept or pair[1] < kept[-1][1]:
            kept.append(pair)
    return kept


SHAPES = [(2, 4, 8), (4, 2, 8), (3, 3, 9), (2, 3, 6), (1, 7, 7), (8, 1, 8), (2, 4, 9), (2, 3, 7), (3, 2, 8), (1, 5, 7)]
INSTANCES = [Instance(*shape, seed) for seed in range(5) for shape in SHAPES]


def best_of(problem: Problem, solver: str, target: float, steps: int) -> float:
    """The best cost after so many steps, or as soon as it is at the target."""

    def reached(progress: Progress) -> bool:
        return progress.best is not None and progress.best.cost.iteration_s <= target * (1 + 1e-9)

    return solve(problem, SOLVERS[solver], DtFm(), stop=AnyOf((MaxSteps(steps), reached))).cost.iteration_s


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda i: f"{i.replicas}x{i.stages} of {i.devices}, seed {i.seed}")
def test_evolutionary_finds_the_optimum(random_cluster: MakeCluster, instance: Instance) -> None:
    problem = instance.problem(random_cluster)
    best = optimum(problem)
    found = best_of(problem, "evolutionary", best, 2000)
    assert found == pytest.approx(best, rel=1e-9)


MEAN_GAPS = {"annealing": 0.03, "evolutionary": 0.002, "auto": 1e-9}  # a short annealing is for many devices


@pytest.mark.parametrize("solver", [name for name in SEARCHES if name in ON_GRIDS])
def test_default_searches_come_near_the_optimum(random_cluster: MakeCluster, solver: str) -> None:
    """On average over the instances, with the solver's own number of steps."""
    gaps = []
    for instance in INSTANCES[::2]:
        problem = instance.problem(random_cluster)
        best = optimum(problem)
        gaps.append(best_of(problem, solver, best, SOLVERS[solver].steps(problem)) / best - 1)
    assert min(gaps) >= -1e-9
    assert np.mean(gaps) <= MEAN_GAPS[solver]


@pytest.mark.parametrize("solver", ON_GRIDS)
def test_nothing_is_below_the_optimum(random_cluster: MakeCluster, solver: str) -> None:
    problem = INSTANCES[6].problem(random_cluster)
    best = optimum(problem)
    assert min(cost for cost, _ in trajectory(problem, solver, "dtfm", 0, 60)) >= best * (1 - 1e-9)


# ---- auto and the baselines


@pytest.mark.parametrize("objective", ["time", "cost"])
@pytest.mark.parametrize("model", COST_MODELS)
@pytest.mark.parametrize("counts", [None, (2, 2, 2, 2), (1, 3, 1, 2, 1)], ids=["home-office", "4 nodes", "5 nodes"])
def test_auto_is_never_worse_than_the_baselines(
    random_cluster: MakeCluster, counts: tuple[int, ...] | None, model: str, objective: str
) -> None:
    cluster = read_cluster(SPECS / "home-office.yaml") if counts is None else random_cluster(4, counts)
    problem = Problem(cluster, model_of("gpt2"), TrainingJob(64, 512), objective=objective)
    auto, *others = (
        solve(problem, SOLVERS[solver], COST_MODELS[model](0.92)).cost.rank(objective)
        for solver in ("auto", *BASELINES)
    )
    assert auto <= min(others)


# ---- what cannot be


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_model_that_fits_nowhere(solver: str) -> None:
    """1.2 TB of states on 380 GB of GPUs: the error names the device that lacks most, and how much."""
    cluster = read_cluster(SPECS / "home-office.yaml")
    problem = Problem(cluster, model_of("llama-2-70b"), TrainingJob(8, 1024))
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, SOLVERS[solver], COST_MODELS["roofline"](0.92), stop=MaxSteps(FEW))
    message = caught.value.message
    named = next(device for device in cluster.devices if f" {device.name} needs " in message)
    assert f"{named.gpu.memory_bytes * 0.92 / 2**30:.1f} GiB are usable" in message
    assert "GiB too much)" in message
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("solver", ["auto", "annealing", "evolutionary"])
@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.5, 0.4])
def test_the_share_of_memory_allowed_bounds_the_split(
    random_cluster: MakeCluster, solver: str, fraction: float
) -> None:
    """A plan of two stages is found where one fits, and is about as fast as the best split (by stage time) is."""
    cluster = random_cluster(1, (1, 1), kinds=("V100-SXM2-16GB", "A100-SXM-80GB"))
    choices = Choices(1, 2, micro_batch=1, schedule="1f1b", recompute=False, zero=0)
    problem, priced_by = Problem(cluster, model_of("gpt3-xl"), TrainingJob(16, 2048), choices), Roofline(fraction)
    found = solve(problem, SOLVERS[solver], priced_by)
    every = [
        replace(found.best, pipelines=(Pipeline("p0", (Stage((0, cut), (a,)), Stage((cut, 24), (b,))), 16),))
        for cut in range(1, 24)
        for a, b in (("n0/0", "n1/0"), ("n1/0", "n0/0"))
    ]
    costs = [priced_by.price(cluster, plan) for plan in every]
    assert found.cost.iteration_s <= min(cost.iteration_s for cost in costs if cost.feasible) * 1.1


@pytest.mark.parametrize("solver", ASYMMETRIC)
def test_asymmetric_plans_need_prices_for_them(random_cluster: MakeCluster, solver: str) -> None:
    problem = Problem(random_cluster(0), model_of("gpt2"), TrainingJob(8, 64))
    with pytest.raises(HetschedError, match=f"{solver} can't plan this: the cost model prices grids alone"):
        solve(problem, SOLVERS[solver], DtFm())


def test_a_solver_that_does_not_support_a_problem(random_cluster: MakeCluster) -> None:
    class Choosy:
        name = "choosy"

        def supports(self, problem: Problem, model: object) -> str:
            return "it is Tuesday"

    problem = Problem(random_cluster(0), model_of("gpt2"), TrainingJob(8, 64))
    with pytest.raises(HetschedError, match="choosy can't plan this: it is Tuesday"):
        solve(problem, Choosy(), DtFm())  # type: ignore[arg-type]
