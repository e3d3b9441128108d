"""The one driver: it seeds a solver, asks the stop rule between candidates, and keeps the best."""

import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hetsched.bound import Bound
from hetsched.cost.base import Cost, CostModel
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.infeasible import infeasible
from hetsched.plan import Plan
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate, Solver


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search has come; steps are candidates seen."""

    steps: int
    seconds: float
    steps_since_gain: int
    best: Candidate | None


StopRule = Callable[[Progress], bool]

MOST_FINALISTS, MOST_ALIKE = 8, 4  # in all, and of one number of pipelines and one schedule
NEAR_BEST = 0.15  # of the best plan's iteration time or price: how much more a finalist's may be
SAME_RANK = 1e-9


@dataclass(frozen=True, slots=True)
class MaxSteps:
    """Stop after so many candidates; equal seeds then give equal results."""

    steps: int

    def __call__(self, progress: Progress) -> bool:
        return progress.steps >= self.steps


@dataclass(frozen=True, slots=True)
class MaxSeconds:
    """Stop after so many seconds."""

    seconds: float

    def __call__(self, progress: Progress) -> bool:
        return progress.seconds >= self.seconds


@dataclass(frozen=True, slots=True)
class NoImprovement:
    """Stop when so many candidates in a row brought nothing."""

    steps: int

    def __call__(self, progress: Progress) -> bool:
        return progress.steps_since_gain >= self.steps


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Stop when one of the rules says so."""

    rules: tuple[StopRule, ...]

    def __call__(self, progress: Progress) -> bool:
        return any(rule(progress) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class TracePoint:
    """An improvement: at which step, after how long, to what."""

    step: int
    seconds: float
    iteration_s: float


@dataclass(frozen=True)
class Result:
    """What a search found. status: "stopped" by the rule, or "complete" where the solver had no more candidates.

    finalists: the best few candidates that fit (`Shortlist`), the best first. played_s: the iteration of `best`
    as simulated, where that made it the best of them (`hetsched.finish.best_played`). lower_bound: on the iteration
    time of any plan of the problem, where it was worked out (`hetsched.finish.bounded`).
    """

    best: Plan
    cost: Cost
    status: str
    trace: tuple[TracePoint, ...]
    seed: int
    solver: str
    candidates: int
    seconds: float
    finalists: tuple[Candidate, ...] = ()
    played_s: float | None = None
    lower_bound: Bound | None = None

    @property
    def gap(self) -> float | None:
        """How much longer the iteration is than the bound, as a share of it; None where no bound is known."""
        bound_s = self.lower_bound.iteration_s if self.lower_bound else 0.0
        return self.cost.iteration_s / bound_s - 1 if bound_s else None


class Shortlist:
    """The best few of the candidates that fit, no two of one rank, nor many of like shape."""

    def __init__(self, objective: str) -> None:
        self.objective = objective
        self._ranked: list[tuple[float, int, Candidate]] = []

    def add(self, candidate: Candidate, step: int) -> None:
        """One more candidate; step: which it was."""
        if not candidate.cost.feasible:
            return
        worth = candidate.worth(self.objective)
        if len(self._ranked) == MOST_FINALISTS and worth >= self._ranked[-1][0]:
            return
        if any(abs(worth - other) <= SAME_RANK * other for other, _, _ in self._ranked):
            return
        insort(self._ranked, (worth, step, candidate), key=lambda ranked: ranked[:2])
        alike = [ranked for ranked in self._ranked if _shape(ranked[2]) == _shape(candidate)]
        for ranked in alike[MOST_ALIKE:] or self._ranked[MOST_FINALISTS:]:
            self._ranked.remove(ranked)

    @property
    def finalists(self) -> tuple[Candidate, ...]:
        """Those near the best, the best first."""
        most = self._ranked[0][0] * (1 + NEAR_BEST) if self._ranked else 0.0
        return tuple(candidate for worth, _, candidate in self._ranked if worth <= most)


def _shape(candidate: Candidate) -> tuple[int, str]:
    return len(candidate.plan.pipelines), candidate.plan.options.schedule


def solve(
    problem: Problem,
    solver: Solver,
    model: CostModel,
    *,
    seed: int = 0,
    stop: StopRule | None = None,
    watch: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Search until `stop` (by default the solver's own number of steps); `watch` is told of each candidate.

    The best is the candidate of least `Cost.rank`, the earliest among equals. Raises HetschedError where
    the solver does not support the problem, and InfeasibleError where every candidate breaks a limit.
    """
    if reason := solver.supports(problem, model):
        raise HetschedError(f"solver {solver.name} can't plan this: {reason}", hint="try --solver auto")
    stop = stop or MaxSteps(solver.steps(problem))
    began, best, trace = clock(), None, []
    steps = gained_at = 0
    status, shortlist = "complete", Shortlist(problem.objective)
    for candidate in solver.search(problem, model, np.random.default_rng(seed)):
        steps += 1
        seconds = clock() - began
        shortlist.add(candidate, steps)
        if best is None or candidate.cost.rank(problem.objective) < best.cost.rank(problem.objective):
            best, gained_at = candidate, steps
            trace.append(TracePoint(steps, seconds, candidate.cost.iteration_s))
        progress = Progress(steps, seconds, steps - gained_at, best)
        if watch:
            watch(progress)
        if stop(progress):
            status = "stopped"
            break
    if best is None:
        raise InfeasibleError(
            f"{solver.name} found no plan for {problem.model.name} on {problem.cluster.name}",
            hint="allow other numbers of replicas and stages",
        )
    if not best.cost.feasible:
        raise infeasible(problem, model, best.plan, best.cost)
    return Result(
        best.plan, best.cost, status, tuple(trace), seed, solver.name, steps, clock() - began, shortlist.finalists
    )
