"""The default: a portfolio inside one budget.

1. Starts: the baseline's grids; every grid with the devices in the order of a clustering of the network, also of the
   nearest, or fastest, part of the devices alone: what is slow or far away may be better left idle; and, where the
   cost model has quick prices of asymmetric plans, the starts of `hierarchical`.
2. Rounds. On the most promising grids, fewer as they go: a piece of an annealing walk from a random layout, the best
   plan warmed up again, children of the evolution, and local search on the best plan by the cost model's own price. On
   asymmetric plans, the best of all starts and rounds among them: walks as of `local-search`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.archipelago import Archipelago
from hetsched.solvers.arena import Arenas, Place
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import settle, shape_of
from hetsched.solvers.grid_rounds import GridField, GridRounds
from hetsched.solvers.grid_starts import start_grids
from hetsched.solvers.hierarchical import settled_best, starts
from hetsched.solvers.layouts import grid_search
from hetsched.solvers.megatron import Megatron

Shape = tuple[int, int]
USUAL_DEVICES = 64
ISLANDS = 10
GRIDS_KEPT = 4  # that asymmetric search starts from
HOPELESS = 1.25  # a grid so much worse than the best plan is searched no more


@dataclass(frozen=True, slots=True)
class Auto:
    """See the module. `grids` are searched at most; a round is a step of each way to search."""

    grids: int = 3
    rounds: int = 5
    walks: int = 9
    searched: GridRounds = field(default_factory=GridRounds)
    name: str = "auto"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """All starts, then `rounds` rounds of a grid, more of them where they are quick, and of walks."""
        first = Megatron().steps(problem) + sum(1 for _ in start_grids(problem)) + GRIDS_KEPT + ISLANDS
        return first + self.rounds * (_at_once(problem) * self.searched.steps + self.walks)

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Starts, then rounds for ever."""
        grids, symmetric = _Grids(problem, self, rng), []
        for candidate in Megatron().search(problem, model, rng):
            yield grids.keep(candidate)
            symmetric.append(candidate)
        for grid in start_grids(problem):
            yield grids.keep(settle(problem, model, grid, quick=True)[0])
        arenas = Arenas(problem, model)
        found = [place for place in map(arenas.place, [*grids.best.values(), *symmetric]) if place] if arenas else []
        places = settled_best(arenas, found, GRIDS_KEPT)
        places += settled_best(arenas, list(starts(arenas, rng)), ISLANDS) if arenas else []
        for place in places:
            yield place.candidate()
        islands = Archipelago(places, Random(int(rng.integers(1 << 60))))
        grids.choose(model)
        while True:
            for _ in range(_at_once(problem)):
                for candidate in grids.round(islands.best):
                    yield candidate
                    if arenas and (stood := arenas.place(candidate)) is not None:
                        islands.keep(stood)
            for _ in range(self.walks if islands else 0):
                yield islands.step().candidate()


def _at_once(problem: Problem) -> int:
    """How many rounds on grids go with one of walks: a walk takes as long on any cluster."""
    return max(1, USUAL_DEVICES // len(problem.cluster.devices))


class _Grids:
    """The best plan on each grid of single devices, and the grids under search."""

    def __init__(self, problem: Problem, auto: Auto, rng: np.random.Generator) -> None:
        self.problem, self.auto, self.rng = problem, auto, rng
        self.best: dict[Shape, Candidate] = {}
        self.fields: dict[Shape, GridField] = {}

    def rank(self, shape: Shape) -> tuple[float, float]:
        return self.best[shape].cost.rank(self.problem.objective)

    def keep(self, candidate: Candidate) -> Candidate:
        """A candidate, which is the best of its grid where it is."""
        if any(stage.tensor_parallel > 1 for _, _, stage in candidate.plan.stages):
            return candidate
        shape = shape_of(candidate.plan)
        before = self.best.get(shape)
        objective = self.problem.objective
        if before is None or candidate.cost.rank(objective) < before.cost.rank(objective):
            self.best[shape] = candidate
        return candidate

    def choose(self, model: CostModel) -> None:
        """The grids to search."""
        for shape in sorted(self.best, key=self.rank)[: self.auto.grids]:
            self.fields[shape] = GridField(self.auto.searched, grid_search(self.problem, model, *shape), self.rng)

    def round(self, best: Place | None) -> Iterator[Candidate]:
        """A round on each grid that is not hopeless beside the best asymmetric plan, or on the best one; one grid less
        from then on."""
        broken, value = best.candidate().cost.rank(self.problem.objective) if best else (np.inf, np.inf)
        for shape in sorted(self.fields, key=self.rank, reverse=True):
            if len(self.fields) > 1 and self.rank(shape) > (broken, HOPELESS * value):
                del self.fields[shape]
                continue
            for candidate in self.fields[shape].round(self.best[shape]):
                yield self.keep(candidate)
        if len(self.fields) > 1:
            del self.fields[max(self.fields, key=self.rank)]
