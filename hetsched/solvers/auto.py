"""The default: a portfolio inside one budget.

1. Starts: the baseline's grids, and every grid with the devices in the order of a clustering of the network.
2. Rounds on the most promising grids, fewer as they go: a piece of an annealing walk from a random layout, the best
   plan warmed up again, children of the evolution, and local search on the best plan by the cost model's own price.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hetsched.algorithms.graph_partition import hierarchical_order
from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.annealing import Annealing
from hetsched.solvers.base import Candidate
from hetsched.solvers.evolutionary import Evolutionary
from hetsched.solvers.exchange import Exchange
from hetsched.solvers.grid import grid_of, settle, shape_of, variant_of
from hetsched.solvers.layouts import GridSearch, grid_search
from hetsched.solvers.megatron import Megatron, rank_orders

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Auto:
    """See the module. `grids` are searched at most; a round is a step of each way to search."""

    grids: int = 3
    rounds: int = 7
    pieces: int = 2
    children: int = 1
    annealing: Annealing = field(default_factory=Annealing)
    evolutionary: Evolutionary = field(default_factory=Evolutionary)
    exchange: Exchange = field(default_factory=Exchange)
    name: str = "auto"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """`rounds` rounds of a grid, after the starts."""
        return 3 * Megatron().steps(problem) + self.rounds * (2 + self.pieces + self.children)

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Starts, then rounds for ever."""
        best: dict[Shape, Candidate] = {}
        for candidate in self._starts(problem, model):
            _keep(best, candidate)
            yield candidate
        shapes = sorted(best, key=lambda shape: best[shape].cost.rank())[: self.grids]
        fields = {shape: _Field(self, grid_search(problem, model, *shape), rng) for shape in shapes}
        while True:
            for shape in shapes:
                for candidate in fields[shape].round(best[shape]):
                    _keep(best, candidate)
                    yield candidate
            shapes.sort(key=lambda shape: best[shape].cost.rank())
            shapes = shapes[: max(1, len(shapes) - 1)]

    def _starts(self, problem: Problem, model: CostModel) -> Iterator[Candidate]:
        yield from Megatron().search(problem, model, np.random.default_rng(0))
        near = network_order(problem)
        inventory = list(range(len(near)))
        for replicas, stages in problem.grids():
            for line in (inventory, near):
                for order in rank_orders(replicas, stages):
                    yield settle(problem, model, [[line[rank] for rank in row] for row in order])[0]


class _Field:
    """One grid under search: its walk and its population go on from round to round."""

    def __init__(self, auto: Auto, grid: GridSearch, rng: np.random.Generator) -> None:
        self.auto, self.grid, self.rng = auto, grid, rng
        self.walk = auto.annealing.walk(grid, rng)
        self.evolution = auto.evolutionary.evolve(grid, rng)

    def round(self, best: Candidate) -> Iterator[Candidate]:
        """One step of each way to search."""
        for _ in range(self.auto.pieces):
            yield next(self.walk)
        start = grid_of(self.grid.problem.cluster, best.plan)
        yield self.auto.annealing.warm(self.grid, self.grid.classes_of(start), self.rng)
        for _ in range(self.auto.children):
            yield next(self.evolution)
        if not self.grid.priced_by_layout:
            problem, model = self.grid.problem, self.grid.model
            yield self.auto.exchange.improve(
                problem, model, start, variant_of(best.plan), self.grid.layout.class_of, self.rng
            )


def _keep(best: dict[Shape, Candidate], candidate: Candidate) -> None:
    shape = shape_of(candidate.plan)
    if shape not in best or candidate.cost.rank() < best[shape].cost.rank():
        best[shape] = candidate


def network_order(problem: Problem) -> list[int]:
    """The devices in the order of a clustering of the network: near ones next to one another."""
    everywhere = np.arange(len(problem.cluster.devices))
    if len(everywhere) < 3:
        return [int(device) for device in everywhere]
    latency, bandwidth = problem.cluster.links(everywhere, everywhere)
    seconds = latency + 1e8 / bandwidth
    return [int(device) for device in hierarchical_order(seconds + seconds.T)]
