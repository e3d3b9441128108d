"""The one driver of serving problems: drafts by the steady state, then the simulator's choice among the best."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.serving.judge import Judge, Verdict, polished
from hetsched.serving.nearest import nothing_fits, slo_missed
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving import SERVING_SOLVERS
from hetsched.solvers.serving.base import ServingSolver
from hetsched.solvers.serving.workshop import Draft, Group, Replica, Workshop

FINALISTS, RIVALS = 4, 3  # drafts that are simulated: of the solver, and of the baseline
BASELINE = "uniform"
FIRST = 0.4  # of the steps, before the steady state is measured against the simulator

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
    starts: Sequence[Sequence[Group]] = (),
    share: float = 1.0,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> ServingResult:
    """Search, then simulate the finalists and the baseline's; the best is never worse than the baseline.

    starts: groups to begin from, besides the solver's own; share: of the solver's usual steps. Raises InfeasibleError
    where nothing fits, or nothing keeps the SLO: with what comes nearest.
    """
    began = clock()
    workshop = Workshop(problem, memory_fraction, reference, starts)
    rng = np.random.default_rng(seed)
    total = max(1, round((max_steps or solver.steps(workshop)) * share))
    judge = Judge(problem, reference, seed=seed)
    drafts: list[Draft] = []
    steps = 0
    for part in FIRST, 1.0:  # what the steady state promises is measured in between
        for draft in solver.search(workshop, rng):
            steps += 1
            if draft is not None:
                drafts.append(draft)
            if watch:
                watch(steps, total)
            if steps >= total * part or (max_seconds is not None and clock() - began >= max_seconds * share * part):
                break
        else:
            break  # it has no more
        if part < 1.0:
            replicas = [replica for draft in _best(drafts, FINALISTS) for replica in draft.replicas]
            workshop.trust({depth: float(np.median(s)) for depth, s in promises(judge, replicas).items()})
    drafts = [_measured(judge, workshop, draft) for draft in _best(drafts, 2 * FINALISTS)]
    baseline = best_uniform(judge, workshop)
    best = _judged(judge, _best(drafts, FINALISTS), baseline)
    if best is None:
        raise nothing_fits(workshop)
    best = polished(judge, best)
    if not best.keeps and problem.objective != "attainment":
        raise slo_missed(problem, best, reference)
    return ServingResult(best, baseline, solver.name, seed, steps, clock() - began)


def best_uniform(judge: Judge, workshop: Workshop, least_score: float = -np.inf) -> Verdict | None:
    """What the baseline's best drafts are worth; None where none fits, or has that score by the steady state."""
    drafts = SERVING_SOLVERS[BASELINE].search(workshop, np.random.default_rng(judge.seed))
    return _judged(judge, _best([draft for draft in drafts if draft and draft.score >= least_score], RIVALS), None)


def promises(judge: Judge, replicas: Iterable[Replica]) -> dict[int, list[float]]:
    """What shares of the steady state's rate replicas keep in simulation, by their number of stages."""
    seen: dict[int, list[float]] = {}
    for replica in replicas:
        if replica.rate_per_s > 0.0:
            seen.setdefault(len(replica.stages), []).append(judge.rate_alone(replica) / replica.rate_per_s)
    return seen


def _measured(judge: Judge, workshop: Workshop, draft: Draft) -> Draft:
    """The draft with requests shared by the rates that its replicas keep in simulation."""
    replicas = [replace(replica, rate_per_s=judge.rate_alone(replica)) for replica in draft.replicas]
    useful = sorted((r for r in replicas if r.rate_per_s > 0.0), key=lambda replica: -replica.rate_per_s)
    return workshop.assembled(useful) if useful else draft


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
