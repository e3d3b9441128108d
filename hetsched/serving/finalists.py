"""The best of a solver's drafts: shares by what replicas keep in simulation, and whole plans that are played."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from hetsched.serving.judge import Judge, Verdict
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving import SERVING_SOLVERS
from hetsched.solvers.serving.phases import Phases
from hetsched.solvers.serving.workshop import Draft, Replica, Workshop

RIVALS = 8  # drafts of a baseline that are simulated
PATIENCE = 2  # drafts that are played in a row and are not better
PROMISE_KEPT = 0.97  # of what its replicas do by themselves a plan of many does about so much, and hardly ever more

Learn = Callable[[Iterable[tuple[Replica, float]]], None]


def best_of(
    name: str,
    judge: Judge,
    workshop: Workshop,
    least_score: float = -np.inf,
    to_beat: Verdict | None = None,
    count: int = RIVALS,
) -> Verdict | None:
    """The best of so many drafts of a baseline, of at least that score by the steady state, and of what is to beat."""
    drafts = SERVING_SOLVERS[name].search(workshop, np.random.default_rng(judge.seed))
    useful = [draft for draft in drafts if draft and draft.score >= least_score]
    return judged(judge, most_promising(useful, count), to_beat)


def promises(judge: Judge, replicas: Iterable[Replica]) -> dict[int, list[float]]:
    """What shares of the steady state's rate replicas keep in simulation, by their number of stages."""
    seen: dict[int, list[float]] = {}
    for replica in replicas:
        if replica.rate_per_s > 0.0:
            seen.setdefault(len(replica.stages), []).append(judge.rate_alone(replica) / replica.rate_per_s)
    return seen


def measured(judge: Judge, workshop: Workshop, draft: Draft) -> Draft:
    """The draft with requests shared by the rates that its replicas keep in simulation."""
    replicas = [replace(replica, rate_per_s=judge.rate_alone(replica)) for replica in draft.replicas]
    useful = sorted((r for r in replicas if r.rate_per_s > 0.0), key=lambda replica: -replica.rate_per_s)
    return workshop.assembled(useful) if useful else draft


def flows(problem: ServingProblem) -> bool:
    """Whether what replicas for one phase do alone is known in simulation: where no limits are to hold."""
    return problem.objective == "throughput" and not problem.load.slo.limits


def flowing(judge: Judge, workshop: Workshop, drafts: Iterable[Draft], learn: Learn | None = None) -> list[Draft]:
    """With shares by the largest flow of what their replicas do alone in simulation, which `learn` is told."""
    phases, found = Phases(workshop), list[Draft]()
    for draft in drafts:
        played = [replace(replica, rate_per_s=judge.rate_alone(replica)) for replica in draft.replicas]
        if learn is not None:
            learn((replica, replica.rate_per_s) for replica in played)
        other = phases.draft(phases.flowing(played))
        found += [] if other is None else [other]
    return found


def most_promising(drafts: list[Draft], count: int) -> list[Draft]:
    """So many of the highest score, no two of the same replicas and shares."""
    found: list[Draft] = []
    for draft in sorted(drafts, key=lambda draft: -draft.score):
        if all((draft.plan.pipelines, draft.plan.routes) != (d.plan.pipelines, d.plan.routes) for d in found):
            found.append(draft)
        if len(found) == count:
            break
    return found


def judged(judge: Judge, drafts: list[Draft], best: Verdict | None) -> Verdict | None:
    """The best by simulation, of these and of the one before.

    Where requests a second are all that counts, the most promising first; those that promise no more are not played,
    and it ends where some in a row were not better.
    """
    problem = judge.problem
    if flows(problem):
        promised = {draft: judge.promised_per_s(draft) for draft in drafts}
        drafts = sorted(drafts, key=lambda draft: -promised[draft])
    else:
        promised = dict.fromkeys(drafts, np.inf)
    in_vain = 0
    for draft in drafts:
        hopeless = best is not None and promised[draft] * PROMISE_KEPT < best.rate_per_s
        if hopeless or (promised[draft] < np.inf and in_vain == PATIENCE):
            break
        verdict, in_vain = judge.verdict(draft, best), in_vain + 1
        if verdict is not None and (best is None or verdict.value > best.value):
            best, in_vain = verdict, 0
    return best
