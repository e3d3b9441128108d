"""Searching for a command: the solver, a budget, the baselines, and the progress line."""

from dataclasses import dataclass, replace

from hetsched.budget import within_budget
from hetsched.cli.output import ProgressLine
from hetsched.cost.base import CostModel
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.finish import Baseline, best_played, run_baseline, stop_rule
from hetsched.problem import Problem
from hetsched.search import Result, solve
from hetsched.solvers import SOLVERS

BASELINES = ("megatron", "random")


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What the search options say."""

    solver: str
    model: CostModel
    seed: int
    max_seconds: float | None
    max_steps: int | None
    quiet: bool


def search(problem: Problem, settings: SearchSettings, usd_per_hour: float | None) -> tuple[Problem, Result]:
    """The plan that is best when played, and the problem it solves: that of the nodes the budget pays for, if any.

    Raises InfeasibleError where no plan fits, HetschedError where the solver does not take the problem.
    """
    clusters = [problem.cluster] if usd_per_hour is None else within_budget(problem.cluster, usd_per_hour)
    failed: InfeasibleError | None = None
    for cluster in clusters:
        try:
            part = problem if cluster is problem.cluster else replace(problem, cluster=cluster)
        except HetschedError as error:  # too few nodes for the grid that was asked for
            failed = failed or InfeasibleError(error.message, error.hint)
            continue
        with ProgressLine(settings.solver, settings.quiet) as watch:
            try:
                result = solve(
                    part,
                    SOLVERS[settings.solver],
                    settings.model,
                    seed=settings.seed,
                    stop=stop_rule(settings.max_seconds, settings.max_steps),
                    watch=watch,
                )
            except InfeasibleError as error:
                failed = failed or error
            else:
                return part, best_played(part, settings.model, result)
    if failed is None:
        raise AssertionError("a budget leaves at least one cluster to try")
    if usd_per_hour is not None:
        whole = problem.cluster.usd_per_hour([node.name for node in problem.cluster.nodes])
        failed.hint += f", or a budget of more than ${usd_per_hour:g} an hour (all nodes: ${whole:g})"
    raise failed


def compare(problem: Problem, settings: SearchSettings) -> dict[str, Baseline]:
    """What the baselines find for the same problem under the same cost model; without those that do not take it."""
    found: dict[str, Baseline] = {}
    for name in BASELINES:
        if SOLVERS[name].supports(problem, settings.model) is None:
            with ProgressLine(f"baseline {name}", settings.quiet) as watch:
                found[name] = run_baseline(
                    problem,
                    SOLVERS[name],
                    settings.model,
                    seed=settings.seed,
                    max_seconds=settings.max_seconds,
                    watch=watch,
                )
    return found
