"""The one driver of serving problems: drafts by the steady state, then the simulator's choice among the best."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.serving.judge import Judge, Verdict, polished
from hetsched.serving.nearest import nothing_fits, slo_missed
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving import SERVING_SOLVERS
from hetsched.solvers.serving.base import ServingSolver
from hetsched.solvers.serving.workshop import Draft, Workshop

FINALISTS, RIVALS = 4, 3  # drafts that are simulated: of the solver, and of the baseline
BASELINE = "uniform"

Watch = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True, eq=False)
class ServingResult:
    """The best plan by simulation, the baseline's best (None where none fits), and how they were found."""

    best: Verdict
    baseline: Verdict | None
    solver: str
    seed: int
    steps: int
    seconds: float


def plan_serving(
    problem: ServingProblem,
    solver: ServingSolver,
    memory_fraction: float,
    reference: ReplicaTimes | None,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> ServingResult:
    """Search, then simulate the finalists and the baseline's; the best is never worse than the baseline.

    Raises InfeasibleError where nothing fits, or nothing keeps the SLO: with what comes nearest.
    """
    began = clock()
    workshop = Workshop(problem, memory_fraction, reference)
    rng = np.random.default_rng(seed)
    total = max_steps or solver.steps(workshop)
    drafts: list[Draft] = []
    steps = 0
    for draft in solver.search(workshop, rng):
        steps += 1
        if draft is not None:
            drafts.append(draft)
        if watch:
            watch(steps, total)
        if steps >= total or (max_seconds is not None and clock() - began >= max_seconds):
            break
    judge = Judge(problem, reference, seed=seed)
    rivals = _best([draft for draft in SERVING_SOLVERS[BASELINE].search(workshop, rng) if draft], RIVALS)
    baseline = _judged(judge, rivals, None)
    best = _judged(judge, _best(drafts, FINALISTS), baseline)
    if best is None:
        raise nothing_fits(workshop)
    best = polished(judge, best)
    if not best.keeps and problem.objective != "attainment":
        raise slo_missed(problem, best, reference)
    return ServingResult(best, baseline, solver.name, seed, steps, clock() - began)


def _best(drafts: list[Draft], count: int) -> list[Draft]:
    """So many of the highest score, no two of the same replicas and shares."""
    found: list[Draft] = []
    for draft in sorted(drafts, key=lambda draft: -draft.score):
        if all((draft.plan.pipelines, draft.plan.routes) != (d.plan.pipelines, d.plan.routes) for d in found):
            found.append(draft)
        if len(found) == count:
            break
    return found


def _judged(judge: Judge, drafts: list[Draft], best: Verdict | None) -> Verdict | None:
    """The best by simulation, of these and of the one before."""
    for draft in drafts:
        verdict = judge.verdict(draft, best)
        if verdict is not None and (best is None or verdict.value > best.value):
            best = verdict
    return best
