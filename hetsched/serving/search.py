"""The one driver of serving problems: drafts by the steady state, then the simulator's choice among the best."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.serving.choice import KINDS, mode_of
from hetsched.serving.finalists import best_of, flowing, flows, judged, measured, most_promising, promises
from hetsched.serving.judge import Judge, Verdict, polished
from hetsched.serving.nearest import nothing_fits, slo_missed
from hetsched.serving.rehearsal import Rehearsal
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving import SERVING_SOLVERS
from hetsched.solvers.serving.base import ServingSolver
from hetsched.solvers.serving.neighbours import grown
from hetsched.solvers.serving.workshop import Draft, Group, Workshop
from hetsched.workload import Slo

FINALISTS = 4  # drafts that are simulated of a solver
FIRST = 0.4  # of the steps, before the steady state is measured against the simulator
LESSONS = (0.15, 0.35, 0.55, 0.75, 1.0)  # of the steps of a search for both phases apart, when the best are measured
PLAYS, LIMITED_PLAYS = 60, 12  # of replicas by themselves; with an SLO each is played at several rates
TIGHTER = 0.9  # the limits of a search for attainment, over what equal replicas keep
USUAL = {"colocated": ("genetic",), "disaggregated": ("maxflow",), "auto": ("genetic", "maxflow")}
BASELINES = {"colocated": ("uniform",), "disaggregated": ("uniform", "distserve"), "auto": ("uniform", "distserve")}


Watch = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True, eq=False)
class ServingResult:
    """The best plan by simulation and how it was found.

    baselines: the best of each, None where none fits. modes: the best plan of each kind (`mode_of`) that was simulated.
    """

    best: Verdict
    baselines: Mapping[str, Verdict | None]
    modes: Mapping[str, Verdict]
    solver: str
    seed: int
    steps: int
    seconds: float

    @property
    def baseline(self) -> Verdict | None:
        """Equal replicas on each node."""
        return self.baselines.get("uniform")


def plan_serving(
    problem: ServingProblem,
    solver: ServingSolver | None,
    memory_fraction: float,
    reference: ReplicaTimes | None,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    starts: Sequence[Sequence[Group]] = (),
    share: float = 1.0,
    rivals: bool = True,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> ServingResult:
    """Search, then simulate the finalists and the baselines'; the best is never worse than these.

    solver: None for those of the problem's mode, whose best plans are all simulated alike. starts: groups to begin
    from, besides the solvers' own; share: of their usual steps; rivals: whether the baselines are weighed too. Raises
    InfeasibleError where nothing fits, or nothing keeps the SLO: with what comes nearest.
    """
    began = clock()
    workshop, judge = Workshop(problem, memory_fraction, reference, starts), Judge(problem, reference, seed=seed)
    rng = np.random.default_rng(seed)
    solvers = [SERVING_SOLVERS[name] for name in USUAL[problem.mode]] if solver is None else [solver]
    whole = [max_steps // len(solvers) if max_steps else each.steps(workshop) for each in solvers]
    totals = [max(1, round(steps * share)) for steps in whole]
    baselines: dict[str, Verdict | None] = {}
    modes: dict[str, Verdict] = {}
    for name in BASELINES[problem.mode] if rivals else ():
        baselines[name] = verdict = best_of(name, judge, workshop)
        if verdict is not None and allowed(problem, verdict):  # what others are to beat
            modes[mode_of(verdict.draft.plan)] = verdict
    measuring = judge
    if (tighter := _tightened(problem, judge, modes.values())) is not problem:
        workshop, measuring = (
            Workshop(tighter, memory_fraction, reference, starts),
            Judge(tighter, reference, seed=seed),
        )
    for name, known in baselines.items():
        verdict = judged(judge, _refined(name, measuring, workshop, problem), known)
        baselines[name] = verdict = None if verdict is None else polished(judge, verdict)
        if verdict is not None and allowed(problem, verdict):
            modes[mode_of(verdict.draft.plan)] = verdict
    before = dict(modes)
    steps = 0
    for number, (each, total) in enumerate(zip(solvers, totals, strict=True), 1):
        seconds = None if max_seconds is None else max_seconds * share * number / len(solvers)
        search = _Search(problem, workshop, measuring, each, total, lambda: clock() - began, seconds)
        drafts = search.drafts(rng, None if watch is None else partial(_shown, watch, steps, sum(totals)))
        drafts = [_asked(draft, problem) for draft in drafts]
        steps += search.steps
        for kind in KINDS:
            verdict = judged(judge, _of(drafts, kind), modes.get(kind))
            if verdict is not None:
                modes[kind] = verdict
    modes = {k: verdict if verdict is before.get(k) else polished(judge, verdict) for k, verdict in modes.items()}
    if not modes:
        raise nothing_fits(workshop)
    best = max(modes.values(), key=lambda verdict: verdict.value)
    if not best.keeps and problem.objective != "attainment":
        raise slo_missed(problem, best, reference)
    names = " and ".join(each.name for each in solvers)
    return ServingResult(best, baselines, modes, names, seed, steps, clock() - began)


def _of(drafts: Iterable[Draft], kind: str) -> list[Draft]:
    """Those of a kind of `KINDS`."""
    return [draft for draft in drafts if mode_of(draft.plan) == kind]


def allowed(problem: ServingProblem, verdict: Verdict) -> bool:
    """Whether a plan is of the mode that is asked for."""
    return problem.mode in ("auto", mode_of(verdict.draft.plan))


def _asked(draft: Draft, problem: ServingProblem) -> Draft:
    """The draft with the load that is asked for, where it was made for tighter limits."""
    return replace(draft, plan=replace(draft.plan, workload=problem.load))


def _refined(name: str, judge: Judge, workshop: Workshop, problem: ServingProblem) -> list[Draft]:
    """Finalists of a baseline with the shares that a search would give them: by what replicas do in simulation."""
    solver = SERVING_SOLVERS[name]
    drafts = [draft for draft in solver.search(workshop, np.random.default_rng(judge.seed)) if draft]
    first = most_promising(drafts, 2 * FINALISTS)
    if solver.apart:
        found = flowing(judge, workshop, first) if flows(problem) else []
    else:
        found = [measured(judge, workshop, draft) for draft in first]
    return [_asked(draft, problem) for draft in most_promising(found, FINALISTS)]


def _tightened(problem: ServingProblem, judge: Judge, known: Iterable[Verdict]) -> ServingProblem:
    """For attainment, where a known plan keeps the SLO: limits that it would miss, so that drafts differ by them."""
    slo = problem.load.slo
    kept = [verdict.run.tightness(slo, judge.reference) for verdict in known if verdict.keeps]
    if problem.objective != "attainment" or not kept:
        return problem
    limits = {name: replace(limit, value=limit.value * TIGHTER * min(kept)) for name, limit in slo.limits.items()}
    return replace(problem, load=replace(problem.load, slo=Slo(**limits)))


def _shown(watch: Watch, before: int, total: int, steps: int) -> None:
    watch(before + steps, total)


@dataclass(eq=False)
class _Search:
    """One solver's drafts, within its steps and until `seconds` of the clock."""

    problem: ServingProblem
    workshop: Workshop
    judge: Judge
    solver: ServingSolver
    total: int
    clock: Callable[[], float]
    seconds: float | None
    steps: int = 0

    def drafts(self, rng: np.random.Generator, watch: Callable[[int], None] | None) -> list[Draft]:
        """The best so far, again and again, and others. What the steady state promises is measured in between."""
        drafts: list[Draft] = []
        if self.solver.apart:
            if self.problem.mode == "auto" and not self.workshop.trusts:
                self._measure([seed for groups in grown(self.workshop) if (seed := self.workshop.draft(groups))])
            search = self.solver.search(self.workshop, rng)
            for share in LESSONS:
                more = self._run(search, drafts, share, watch)
                drafts = [
                    draft for kind in KINDS for draft in self._flows(most_promising(_of(drafts, kind), FINALISTS))
                ]
                if not more:
                    break
            return drafts
        if self._run(self.solver.search(self.workshop, rng), drafts, FIRST, watch):
            self._measure(drafts)
            self._run(self.solver.search(self.workshop, rng), drafts, 1.0, watch)
        if self.problem.objective == "cost" or not self.workshop.scored:
            drafts = [measured(self.judge, self.workshop, draft) for draft in most_promising(drafts, 2 * FINALISTS)]
            return most_promising(drafts, FINALISTS)
        plays = LIMITED_PLAYS if self.problem.load.slo.limits else PLAYS
        first = [self._groups(draft) for draft in most_promising(drafts, 2 * FINALISTS)]
        return Rehearsal(self.judge, self.workshop).best(first, self.workshop.scored, plays, FINALISTS)

    def _flows(self, drafts: list[Draft]) -> list[Draft]:
        return flowing(self.judge, self.workshop, drafts, self.workshop.learn) if flows(self.problem) else drafts

    def _groups(self, draft: Draft) -> list[Group]:
        position = self.problem.cluster.position
        return [frozenset(position(name) for s in replica.stages for name in s.devices) for replica in draft.replicas]

    def _run(
        self, search: Iterator[Draft | None], drafts: list[Draft], share: float, watch: Callable[[int], None] | None
    ) -> bool:
        """Go on until so much of the steps or the time is used; False where the solver has no more."""
        for draft in search:
            self.steps += 1
            if draft is not None:
                drafts.append(draft)
            if watch:
                watch(self.steps)
            late = self.seconds is not None and self.clock() >= self.seconds * share
            if self.steps >= self.total * share or late:
                return True
        return False

    def _measure(self, drafts: list[Draft]) -> None:
        replicas = [replica for draft in most_promising(drafts, FINALISTS) for replica in draft.replicas]
        seen = promises(self.judge, replicas)
        self.workshop.trust({depth: float(np.median(shares)) for depth, shares in seen.items()})
