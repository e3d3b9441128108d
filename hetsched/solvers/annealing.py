"""Simulated annealing of DT-FM's joint problem, the stages' groups and their order at once (`layout_annealing`).

Coolings from random layouts, each twice as long as the one before: a slow cooling finds what no number of fast ones
does, and how slow it must be is not known beforehand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hetsched.algorithms.layout_annealing import Walk, random_groups
from hetsched.algorithms.stage_layout import Groups
from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.layouts import GridSearch, grid_search

WARM = (0.01, 0.02)  # shares, as in `Annealing`: enough to leave a good layout, not enough to forget it
WARM_END = 0.001
SHORTER = 3  # than a piece: many short warmings got further than few long ones on 256 devices
HOTTER = 10.0  # every other cooling starts so much hotter: small layouts have deep valleys


@dataclass(frozen=True, slots=True)
class Annealing:
    """See the module. A step, or piece, is `sweeps` moves for each device in the layout.

    Temperatures are shares of half a random layout's cost, divided by the number of groups: the more groups, the less
    of the cost one move changes. Measured on 64 to 256 devices in ten cities and 32 sites.
    """

    sweeps: int = 48
    first_pieces: int = 7
    hot: float = 0.15
    cold: float = 0.008
    name: str = "annealing"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """Steps of about 0.2 s for 64 GPUs."""
        return 20

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """One grid after another, a piece of its walk at a time."""
        walks = [self.walk(grid_search(problem, model, *grid), rng) for grid in problem.grids()]
        while True:
            for walk in walks:
                yield next(walk)

    def walk(self, grid: GridSearch, rng: np.random.Generator) -> Iterator[Candidate]:
        """The coolings of one grid, for ever; yields the best layout of each cooling so far, piece by piece."""
        pieces, hot = self.first_pieces, self.hot
        while True:
            walk = Walk(grid.layout, random_groups(grid.layout, rng))
            scale_s = walk.cost / 2 / grid.layout.num_groups
            temperatures = scale_s * np.geomspace(hot, self.cold, pieces + 1)
            for hot_s, cold_s in pairwise(temperatures):
                walk.run(rng, self.moves(grid), float(hot_s), float(cold_s))
                yield grid.candidate(walk.best)
            pieces *= 2
            hot = HOTTER * self.hot if hot == self.hot else self.hot

    def warm(self, grid: GridSearch, start: Groups, rng: np.random.Generator) -> Candidate:
        """The best layout that one short warming of `start` comes by; how warm is drawn anew each time."""
        walk = Walk(grid.layout, start)
        scale_s = walk.cost / grid.layout.num_groups
        warmth = float(np.exp(rng.uniform(np.log(WARM[0]), np.log(WARM[1]))))
        walk.run(rng, self.moves(grid) // SHORTER, scale_s * warmth, scale_s * WARM_END)
        return grid.candidate(walk.best)

    def moves(self, grid: GridSearch) -> int:
        """The moves of one piece."""
        layout = grid.layout
        return self.sweeps * layout.num_groups * layout.group_size
