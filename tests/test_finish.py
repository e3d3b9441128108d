"""Of the plans that a search found, the one that is best as simulated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

import numpy as np
import pytest

from hetsched.catalog import find_model
from hetsched.cluster import Cluster
from hetsched.cost import COST_MODELS
from hetsched.cost.base import CostModel
from hetsched.finish import MOST_PLAYED, best_played
from hetsched.problem import Choices, Problem
from hetsched.search import MOST_ALIKE, MOST_FINALISTS, NEAR_BEST, SAME_RANK, MaxSteps, solve
from hetsched.simulate.training import passes_of, simulate_iteration
from hetsched.solvers import SOLVERS
from hetsched.solvers.base import Candidate
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]
STEPS = 40


@dataclass(frozen=True)
class Again:
    """What a search gave, once more."""

    candidates: list[Candidate]
    name: str = "again"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        return None

    def steps(self, problem: Problem) -> int:
        return len(self.candidates)

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        yield from self.candidates


def shape(candidate: Candidate) -> tuple[int, str]:
    return len(candidate.plan.pipelines), candidate.plan.options.schedule


def problem_of(random_cluster: MakeCluster, seed: int, batch: int = 24) -> Problem:
    model = find_model("gpt3-xl")
    assert model is not None
    choices = Choices(micro_batch=1, schedule="1f1b", recompute=True, zero=0)
    return Problem(random_cluster(seed, (2, 2, 1)), model, TrainingJob(batch, 2048), choices)


def test_the_best_as_played_of_those_near_the_best_in_price(random_cluster: MakeCluster) -> None:
    """Some searches end with another plan than the one of the least price."""
    others = 0
    for seed in range(3):
        problem, model = problem_of(random_cluster, seed), COST_MODELS["roofline"](0.92)
        found = SOLVERS["local-search"].search(problem, model, np.random.default_rng(0))
        candidates = list(islice(found, STEPS))
        for objective in ("time", "cost"):
            problem = replace(problem, objective=objective)
            result = solve(problem, Again(candidates), model)
            worth = {f"{c.cost.rank(objective)[1]:.8e}": c for c in reversed(candidates) if c.cost.feasible}
            least = float(min(worth, key=float))
            near = [worth[key] for key in sorted(worth, key=float) if float(key) <= least * (1 + NEAR_BEST)]
            near = [
                c for at, c in enumerate(near) if [shape(other) for other in near[:at]].count(shape(c)) < MOST_ALIKE
            ]
            assert [c.cost for c in result.finalists] == [c.cost for c in near[:MOST_FINALISTS]]
            played = [simulate_iteration(problem.cluster, c.plan).iteration_s for c in result.finalists]
            ranks = [replace(c.cost, iteration_s=s).rank(objective) for c, s in zip(near, played, strict=False)]
            best = best_played(problem, model, result)
            chosen = [c.plan for c in result.finalists].index(best.best)
            assert ranks[chosen] == min(ranks)
            assert best.played_s == played[chosen]
            assert best.cost == result.finalists[chosen].cost
            others += best.best != result.best
    assert others > 0


def test_a_plan_has_as_little_of_zero_as_it_needs(random_cluster: MakeCluster) -> None:
    """Of plans with ZeRO 2, which a search may come to as it leaves most room."""
    stages = set()
    for seed, fraction in product(range(3), (0.92, 0.5, 0.3)):
        model = COST_MODELS["roofline"](fraction)
        problem = replace(problem_of(random_cluster, seed), choices=Choices(micro_batch=1, schedule="1f1b"))
        found = solve(problem, SOLVERS["local-search"], model, stop=MaxSteps(8)).finalists
        plans = [replace(c.plan, options=replace(c.plan.options, zero=2)) for c in found if c.plan.options.zero < 3]
        candidates = [Candidate(plan, model.price(problem.cluster, plan)) for plan in plans]
        if not candidates:
            continue
        best = best_played(problem, model, solve(problem, Again(candidates), model))
        zero = best.best.options.zero
        stages.add(zero)
        for less in range(zero):
            plan = replace(best.best, options=replace(best.best.options, zero=less))
            cost = model.price(problem.cluster, plan)
            played_s = simulate_iteration(problem.cluster, plan).iteration_s
            assert best.played_s is not None
            slower = cost.iteration_s > best.cost.iteration_s or played_s > best.played_s
            assert not cost.feasible or slower
    assert min(stages) < 2
    assert len(stages) > 1


def test_a_published_formula_is_not_played(random_cluster: MakeCluster) -> None:
    problem, model = problem_of(random_cluster, 0), COST_MODELS["flashflex"](0.92)
    result = solve(problem, SOLVERS["auto"], model, stop=MaxSteps(8))
    assert best_played(problem, model, result) is result
    assert result.cost.iteration_s == pytest.approx(result.finalists[0].cost.iteration_s, rel=SAME_RANK)


def test_what_takes_long_to_play_is_not_played(random_cluster: MakeCluster) -> None:
    problem, model = problem_of(random_cluster, 0, MOST_PLAYED), COST_MODELS["roofline"](0.92)
    result = solve(problem, SOLVERS["megatron"], model)
    assert passes_of(result.best) > MOST_PLAYED
    assert best_played(problem, model, result) is result
