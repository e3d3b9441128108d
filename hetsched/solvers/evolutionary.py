"""DT-FM's scheduler (Yuan et al. 2022, arXiv 2206.01288): an evolution of balanced partitions.

A population of partitions; two parents cross over at five points; their child goes down by cyclic exchanges; its groups
coarsen to a graph, are ordered by the cheapest open path, and matched along it. A child replaces the worst of the
population if it is better than that and not there yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.algorithms.cyclic_exchange import Individual, crossover, cyclic_descent, evaluate, random_labels
from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.layouts import GridSearch, grid_search

SAME_COST = 1e-9


@dataclass(frozen=True, slots=True)
class Evolutionary:
    """See the module."""

    population: int = 16
    name: str = "evolutionary"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """Candidates of about 10 ms for 64 GPUs."""
        return 400

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """One grid after another, each with a population of its own, a child a turn."""
        grids = [self.evolve(grid_search(problem, model, *grid), rng) for grid in problem.grids()]
        while True:
            for grid in grids:
                yield next(grid)

    def evolve(self, grid: GridSearch, rng: np.random.Generator) -> Iterator[Candidate]:
        """The evolution of one grid's population, for ever; yields each child."""
        layout = grid.layout
        population: list[Individual] = []
        while True:
            if len(population) < self.population:
                labels = random_labels(layout, rng)
            else:
                mother, father = rng.choice(len(population), 2, replace=False)
                labels = crossover(layout, population[mother], population[father], rng)
            child = cyclic_descent(layout, evaluate(layout, labels, rng), rng)
            yield grid.candidate_of_devices(child.groups())
            if len(population) < self.population:
                population.append(child)
                continue
            worst = max(range(len(population)), key=lambda i: population[i].cost)
            known = any(abs(other.cost - child.cost) <= SAME_COST * child.cost for other in population)
            if child.cost < population[worst].cost and not known:
                population[worst] = child
