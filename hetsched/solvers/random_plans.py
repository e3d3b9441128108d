"""The baseline `random`: devices shuffled over a grid, the best of as many as are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import settle


@dataclass(frozen=True, slots=True)
class RandomPlans:
    """See the module."""

    name: str = "random"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """A few dozen."""
        return 32

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Grids in turn, devices at random."""
        grids = problem.grids()
        while True:
            for g in rng.permutation(len(grids)):
                replicas, stages = grids[g]
                order = rng.permutation(len(problem.cluster.devices))[: replicas * stages]
                yield settle(problem, model, order.reshape(stages, replicas).tolist())[0]
