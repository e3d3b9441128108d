"""Local search on asymmetric plans: islands (`archipelago`) that begin with plans that `hierarchical` constructs."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.archipelago import COLD, HOT, Archipelago
from hetsched.solvers.arena import UNSUPPORTED, Arenas
from hetsched.solvers.base import Candidate
from hetsched.solvers.hierarchical import settled_best, starts
from hetsched.solvers.nearly import nearly_fitting

ISLANDS = 10


@dataclass(frozen=True, slots=True)
class LocalSearch:
    """See the module. Temperatures are shares of the iteration time."""

    hot: float = HOT
    cold: float = COLD
    walks: int = 40
    name: str = "local-search"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem of a model with quick prices."""
        return None if Arenas(problem, model) else UNSUPPORTED

    def steps(self, problem: Problem) -> int:
        """Walks of a tenth of a second."""
        return self.walks

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """The islands' starts, then walks for ever."""
        arenas, random = Arenas(problem, model), Random(int(rng.integers(1 << 60)))
        first = settled_best(arenas, list(starts(arenas, rng)), ISLANDS)
        if not first:
            yield from nearly_fitting(problem, model, rng)
        for place in first:
            yield place.candidate()
        islands = Archipelago(arenas, first, random, self.hot, self.cold)
        while islands:
            yield islands.step().candidate()
