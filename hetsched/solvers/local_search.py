"""Local search on asymmetric plans: islands of one setting and number of pipelines each, annealed in turn.

Each island begins with a constructive plan (`hierarchical.starts`) and a short walk from it. A step is a walk
(`chain_walk`) on one island, from its best plan or from where it began. The better an island's best, the more of the
walks it gets.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp
from random import Random

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.arena import UNSUPPORTED, Arenas, Place
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import Variant
from hetsched.solvers.hierarchical import refine, settled_best, starts

WARMTH = 1.0  # a walk's heat is drawn from e^-WARMTH to e^WARMTH times the usual
FAVOUR = 1.5  # how much rarer each island in the order of their bests is searched than the one before
ISLANDS = 10


@dataclass(slots=True)
class Island:
    """Where it began, its best plan, and how often it was searched."""

    start: Place
    best: Place
    walks: int = 0


class Archipelago:
    """Islands by setting and number of pipelines, and whose turn it is."""

    def __init__(self, places: Iterable[Place], random: Random, hot: float, cold: float) -> None:
        self.random, self.hot, self.cold = random, hot, cold
        self.islands: dict[tuple[Variant, int], Island] = {}
        for place in places:
            self.keep(place)

    def keep(self, place: Place) -> None:
        """A plan found: the best of its island, or a new island."""
        island = self.islands.setdefault(place.key, Island(place, place))
        if place.seconds < island.best.seconds:
            island.best = place

    def step(self) -> Place:
        """A walk on the island whose turn it is."""
        order = sorted(self.islands.values(), key=lambda island: island.best.seconds)
        turn = min(range(len(order)), key=lambda rank: (order[rank].walks + 1) * FAVOUR**rank)
        island = order[turn]
        heat = self.hot * exp(self.random.uniform(-WARMTH, WARMTH))
        found = refine(island.start if island.walks % 3 == 2 else island.best, self.random, heat, self.cold)
        island.walks += 1
        self.keep(found)
        return found


@dataclass(frozen=True, slots=True)
class LocalSearch:
    """See the module. Temperatures are shares of the iteration time."""

    hot: float = 0.003
    cold: float = 0.00005
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
        for place in first:
            yield place.candidate()
        islands = Archipelago(first, random, self.hot, self.cold)
        while islands.islands:
            yield islands.step().candidate()
