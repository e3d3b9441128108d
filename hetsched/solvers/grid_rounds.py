"""Rounds of search on one grid: annealing, evolution and exchanges take turns."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hetsched.solvers.annealing import Annealing
from hetsched.solvers.base import Candidate
from hetsched.solvers.evolutionary import Evolutionary
from hetsched.solvers.exchange import Exchange
from hetsched.solvers.grid import grid_of, settle, variant_of
from hetsched.solvers.layouts import GridSearch

WARMINGS = 6  # in a round, where nothing starts from random layouts
MOST_FROM_RANDOM = 128  # devices; beyond, what starts from random layouts is too slow to reach the good starts


@dataclass(frozen=True, slots=True)
class GridRounds:
    """How a round is made: pieces of a walk from a random layout, and children of an evolution."""

    pieces: int = 2
    children: int = 1
    annealing: Annealing = field(default_factory=Annealing)
    evolutionary: Evolutionary = field(default_factory=Evolutionary)
    exchange: Exchange = field(default_factory=Exchange)

    @property
    def steps(self) -> int:
        """Candidates of a round on a small grid."""
        return 3 + self.pieces + self.children


class GridField:
    """One grid under search: its walk and its population go on from round to round."""

    def __init__(self, rounds: GridRounds, grid: GridSearch, rng: np.random.Generator) -> None:
        self.rounds, self.grid, self.rng = rounds, grid, rng
        self.walk = rounds.annealing.walk(grid, rng)
        self.evolution = rounds.evolutionary.evolve(grid, rng)

    def round(self, best: Candidate) -> Iterator[Candidate]:
        """One step of each way to search."""
        problem, model = self.grid.problem, self.grid.model
        small = self.grid.layout.num_groups * self.grid.layout.group_size <= MOST_FROM_RANDOM
        for _ in range(1 if small else WARMINGS):
            start = grid_of(problem.cluster, best.plan)
            warmed = self.rounds.annealing.warm(self.grid, self.grid.classes_of(start), self.rng)
            yield warmed
            best = min(best, warmed, key=lambda candidate: candidate.cost.rank(problem.objective))
        for _ in range(self.rounds.pieces if small else 0):
            yield next(self.walk)
        for _ in range(self.rounds.children if small else 0):
            yield next(self.evolution)
        start = grid_of(problem.cluster, best.plan)
        yield settle(problem, model, start)[0]
        if not self.grid.priced_by_layout:
            yield self.rounds.exchange.improve(
                problem, model, start, variant_of(best.plan), self.grid.layout.class_of, self.rng
            )
