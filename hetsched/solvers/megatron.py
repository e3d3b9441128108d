"""The baseline `megatron`: the best symmetric plan as a user without hetsched would start it.

Equal layers, equal batches, ranks in inventory order (Narayanan et al. 2021, arXiv 2104.04473): tensor-parallel degrees
of 1, 2, 4 and 8 inside a node, every number of stages, replicas as the devices allow; consecutive groups in one
pipeline, or in one data-parallel group as Megatron's default order has it. On all devices, and, where there are several
kinds, on each kind alone: a user would pick out those that are alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import Grid, grid_plan, settle, variants

WIDTHS = (1, 2, 4, 8)
MANY_DEVICES = 128  # beyond, only stages that all have as many blocks
SETTLED = 12  # grids for which all open options are tried: the best by the usual ones


@dataclass(frozen=True, slots=True)
class Megatron:
    """See the module; it ends when it has tried every grid."""

    name: str = "megatron"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """All there are."""
        return sum(1 for _ in inventory_grids(problem)) + SETTLED

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Every grid in rank order, and the best of them with the open options that suit them best."""
        found: list[tuple[tuple[float, float], int, int, Grid]] = []
        usual = next(variants(problem, model.assumes))[0]
        for width, grid in inventory_grids(problem):
            if width > 1 and model.refuses(grid_plan(problem, grid, usual, even=True, width=width)) is not None:
                continue
            candidate = settle(problem, model, grid, even=True, quick=True, width=width)[0]
            found.append((candidate.cost.rank(problem.objective), len(found), width, grid))
            yield candidate
        for _, _, width, grid in sorted(found)[:SETTLED]:
            yield settle(problem, model, grid, even=True, width=width)[0]


def inventory_grids(problem: Problem) -> Iterator[tuple[int, Grid]]:
    """Grids of all devices, and of each kind where there are several, in inventory order, by tensor-parallel degree."""
    devices = problem.cluster.devices
    kinds = [device.gpu for device in devices]
    alike = [[d for d, gpu in enumerate(kinds) if gpu == kind] for kind in dict.fromkeys(kinds)]
    many = len(devices) > MANY_DEVICES
    for chosen in [list(range(len(kinds))), *(alike if len(alike) > 1 else [])]:
        for width in WIDTHS:
            line = _teams(problem, chosen, width)
            if not line:
                break
            for replicas, stages in problem.grids(len(line)):
                if many and problem.choices.stages is None and problem.model.num_layers % stages:
                    continue
                for order in rank_orders(replicas, stages):
                    yield width, [[line[rank] for rank in row] for row in order]


def _teams(problem: Problem, chosen: list[int], width: int) -> list[int]:
    """The first device of each run of `width` chosen devices of one kind in one node."""
    devices, line = problem.cluster.devices, []
    at = 0
    while at + width <= len(chosen):
        first, last = chosen[at], chosen[at + width - 1]
        alike = all(devices[d].gpu == devices[first].gpu for d in chosen[at : at + width])
        if devices[first].node == devices[last].node and last - first == width - 1 and alike:
            line.append(first)
            at += width
        else:
            at += 1
    return line


def rank_orders(replicas: int, stages: int) -> list[Grid]:
    """Inventory order cut into data-parallel groups (Megatron's default), and cut into pipelines."""
    ranks = np.arange(replicas * stages)
    orders = [ranks.reshape(stages, replicas), ranks.reshape(replicas, stages).T]
    return [order.tolist() for order in orders[: 1 if min(replicas, stages) == 1 else 2]]
