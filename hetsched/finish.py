"""From a search's result to the plan that is written: its price, the baselines, and where it comes from."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hetsched import __version__
from hetsched.bound import lower_bound_s
from hetsched.cluster import Cluster
from hetsched.cost.base import Cost, CostModel
from hetsched.cost.training import Roofline
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.plan import ClusterReference, Plan
from hetsched.problem import Choices, Problem
from hetsched.search import AnyOf, MaxSeconds, MaxSteps, Progress, Result, StopRule, solve
from hetsched.simulate.training import passes_of, simulate_iteration
from hetsched.solvers.base import Candidate, Solver
from hetsched.solvers.played import MOST_AT_ONCE, as_played, is_played

MOST_PLAYED = 400_000  # passes: some seconds
NO_SLOWER = 1e-3  # of the time: what less ZeRO may take more
BASELINE_STEPS: dict[str, int | None] = {"megatron": None, "random": 16}  # None: the solver's own number


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a plan is compared with; None where the baseline fits no memory (or the price is not known).

    played_s: its iteration as simulated, where that is quick.
    """

    iteration_s: float | None
    usd_per_million_tokens: float | None = None
    played_s: float | None = None


def stop_rule(max_seconds: float | None, max_steps: int | None) -> StopRule | None:
    """The rule of the limits given; None where there are none."""
    rules: list[StopRule] = []
    if max_steps is not None:
        rules.append(MaxSteps(max_steps))
    if max_seconds is not None:
        rules.append(MaxSeconds(max_seconds))
    return AnyOf(tuple(rules)) if rules else None


def run_baseline(
    problem: Problem,
    solver: Solver,
    model: CostModel,
    *,
    seed: int = 0,
    max_seconds: float | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Baseline:
    """The best that a baseline finds under the same cost model; one that does not fit is no error."""
    stop = stop_rule(max_seconds, BASELINE_STEPS.get(solver.name) or solver.steps(problem))
    try:
        result = solve(problem, solver, model, seed=seed, stop=stop, watch=watch)
    except InfeasibleError:
        return Baseline(None)
    quick = is_played(model) and passes_of(result.best) <= MOST_AT_ONCE
    played_s = simulate_iteration(problem.cluster, result.best).iteration_s if quick else None
    return Baseline(result.cost.iteration_s, result.cost.usd_per_million_tokens, played_s)


def best_played(problem: Problem, model: CostModel, result: Result) -> Result:
    """The result with that of its finalists which is best as simulated; its price stays the cost model's.

    What the model has meet on average may meet more or less often in one plan than in another. So whoever compares
    results compares them as played, where that was possible. A published formula stands for itself: its best is kept;
    and so is the best of plans of so many passes that playing takes long, of the first finalists that do not.

    Of ZeRO it has as little as it needs, where that is open: a search may begin with more, for the room it leaves.
    """
    if not is_played(model):
        return result
    played: list[Candidate] = []
    passes = 0
    for finalist in result.finalists:
        passes += passes_of(finalist.plan)
        if passes > MOST_PLAYED:
            break
        played.append(as_played(problem.cluster, finalist))
    if not played:
        return result
    best = min(played, key=lambda candidate: candidate.worth(problem.objective))
    for zero in range(best.plan.options.zero if problem.choices.zero is None else 0):
        plan = replace(best.plan, options=replace(best.plan.options, zero=zero))
        less = Candidate(plan, model.price(problem.cluster, plan))
        if less.cost.feasible and less.cost.iteration_s <= best.cost.iteration_s * (1 + NO_SLOWER):
            less = as_played(problem.cluster, less)
            if less.worth(problem.objective) <= best.worth(problem.objective) * (1 + NO_SLOWER):
                best = less
                break
    return replace(result, best=best.plan, cost=best.cost, played_s=best.played.iteration_s if best.played else None)


def bounded(problem: Problem, model: CostModel, result: Result) -> Result:
    """The result with the bound on its problem: under a budget, on plans for the part of the cluster that is rented."""
    return replace(result, lower_bound=lower_bound_s(problem, model))


def bound_for(cluster: Cluster, plan: Plan, cost: Cost, model: CostModel) -> dict[str, Any]:
    """For `predicted`: the bound of the problem that a plan of unknown origin solves, all of the cluster to be had and
    all else open but for its compression: on plans of the micro-batch sizes that searches try, and of the plan's own.

    Plans that do not fit, or whose teams mix kinds or nodes, get the reason why there is none: the bound is not on such
    (`hetsched.bound`). It is on plans whose stages wait for their messages, as no faster than if they did not.
    """
    size = plan.workload.micro_batch
    job, choices = replace(plan.workload, micro_batch=1), Choices(compression=plan.options.compression)
    teams = [[cluster.device(name) for name in stage.devices] for _, _, stage in plan.stages]
    alike = all(len({(device.node, device.gpu) for device in team}) == 1 for team in teams)
    if model.name != Roofline().name:
        return {}
    if not alike:
        return {"lower_bound_because": "no bound is known where a stage's GPUs are of several nodes or kinds"}
    if not cost.feasible:
        return {"lower_bound_because": "no bound is stated for a plan that does not fit"}
    with suppress(HetschedError):  # a workload that would not be planned
        problems = [Problem(cluster, plan.model, job, choices)]
        if size not in problems[0].micro_batches:
            problems.append(replace(problems[0], choices=replace(choices, micro_batch=size)))
        bound = min((lower_bound_s(problem, model) for problem in problems), key=lambda bound: bound.iteration_s)
        return {"lower_bound_iteration_s": bound.iteration_s, "lower_bound_because": bound.because}
    return {}


def simulated_s(cluster: Cluster, plan: Plan, cost_model: str) -> dict[str, Any]:
    """For `predicted`: the iteration as simulated, beside the price of the cost model that it can be held against.

    Nothing for formulas that leave out computing, say, and for plans of so many passes that it takes long.
    """
    if cost_model != Roofline().name or passes_of(plan) > MOST_PLAYED:
        return {}
    return {"simulated_iteration_s": simulate_iteration(cluster, plan).iteration_s}


def prediction(cluster: Cluster, plan: Plan, cost: Cost, others: Mapping[str, CostModel]) -> dict[str, Any]:
    """The plan file's `predicted` object, with what the other cost models say where they have a price for the plan."""
    elsewhere = {}
    for name, model in others.items():
        with suppress(HetschedError):  # it has no place for plans of this shape on this cluster
            elsewhere[name] = model.price(cluster, plan).iteration_s
    return {
        **cost.predicted(),
        "lower_bound_iteration_s": 0.0,
        "other_cost_models_iteration_s": elsewhere,
        "notes": [*cost.notes, *cluster.notes],
    }


def finished_plan(
    problem: Problem,
    result: Result,
    reference: ClusterReference,
    *,
    cost_model: str,
    others: Mapping[str, CostModel],
    baselines: Mapping[str, Baseline],
    provenance: Mapping[str, Any],
) -> Plan:
    """The best plan of a search with everything that stands in a plan file.

    cost_model: the one it was searched with; others: those it is priced with besides; provenance: what is to be kept
    beside the solver, the seed and the counts (objective, memory fraction).
    """
    plan, cluster = result.best, problem.cluster
    compared: dict[str, Any] = {"simulated_iteration_s": result.played_s}
    if result.played_s is None:
        compared = simulated_s(cluster, plan, cost_model)
    compared["baselines"] = {name: baseline.iteration_s for name, baseline in baselines.items()}
    played = {name: baseline.played_s for name, baseline in baselines.items() if baseline.played_s is not None}
    if played and "simulated_iteration_s" in compared:
        compared["baselines_simulated_iteration_s"] = played
    if result.lower_bound is not None:
        compared["lower_bound_iteration_s"] = result.lower_bound.iteration_s
        compared["lower_bound_because"] = result.lower_bound.because
    if result.cost.usd_per_hour is not None:
        compared["baselines_usd_per_million_tokens"] = {
            name: baseline.usd_per_million_tokens for name, baseline in baselines.items()
        }
    return replace(
        plan,
        cluster=reference,
        devices=cluster.device_facts(name for pipeline in plan.pipelines for name in pipeline.devices),
        predicted={**prediction(cluster, plan, result.cost, others), **compared},
        provenance={
            "solver": result.solver,
            "seed": result.seed,
            "cost_model": cost_model,
            "wall_s": result.seconds,
            "candidates": result.candidates,
            "status": result.status,
            "version": __version__,
            **provenance,
        },
    )
