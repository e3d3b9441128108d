"""The baseline `megatron`: the best symmetric grid as a user without hetsched would start it.

Equal layers, equal batches, ranks in inventory order (Narayanan et al. 2021, arXiv 2104.04473): every number of stages,
replicas as the devices allow; consecutive devices in one pipeline, or in one data-parallel group as Megatron's default
order has it. On all devices, and, where there are several kinds, on each kind alone: a user would pick out those that
are alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import Grid, settle


@dataclass(frozen=True, slots=True)
class Megatron:
    """See the module; it ends when it has tried every grid."""

    name: str = "megatron"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """All there are."""
        return sum(1 for _ in inventory_grids(problem))

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Every grid in rank order, with the open options that suit it best."""
        for grid in inventory_grids(problem):
            yield settle(problem, model, grid, even=True)[0]


def inventory_grids(problem: Problem) -> Iterator[Grid]:
    """Grids of all devices, and of each kind where there are several, in inventory order."""
    kinds = [device.gpu for device in problem.cluster.devices]
    alike = [[d for d, gpu in enumerate(kinds) if gpu == kind] for kind in dict.fromkeys(kinds)]
    for line in [list(range(len(kinds))), *(alike if len(alike) > 1 else [])]:
        for replicas, stages in problem.grids(len(line)):
            for order in rank_orders(replicas, stages):
                yield [[line[rank] for rank in row] for row in order]


def rank_orders(replicas: int, stages: int) -> list[Grid]:
    """Inventory order cut into data-parallel groups (Megatron's default), and cut into pipelines."""
    ranks = np.arange(replicas * stages)
    orders = [ranks.reshape(stages, replicas), ranks.reshape(replicas, stages).T]
    return [order.tolist() for order in orders[: 1 if min(replicas, stages) == 1 else 2]]
