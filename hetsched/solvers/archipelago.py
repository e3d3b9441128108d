"""Islands of asymmetric plans, one for each setting and number of pipelines, annealed in turn.

A step is a walk (`chain_walk`) on one island, from its best plan or from where it began. The better an island's best,
the more of the walks it gets.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp
from random import Random

from hetsched.solvers.arena import Place
from hetsched.solvers.grid import Variant
from hetsched.solvers.hierarchical import refine

HOT, COLD = 0.003, 0.00005  # shares of the iteration time
RESTART = 6  # of so many walks on an island one begins where it began
WARMTH = 1.0  # a walk's heat is drawn from e^-WARMTH to e^WARMTH times the usual
FAVOUR = 2.0  # how much rarer each island in the order of their bests is searched than the one before


@dataclass(slots=True)
class Island:
    """Where it began, its best plan, and how often it was searched."""

    start: Place
    best: Place
    walks: int = 0


class Archipelago:
    """Islands by setting and number of pipelines, and whose turn it is."""

    def __init__(self, places: Iterable[Place], random: Random, hot: float = HOT, cold: float = COLD) -> None:
        self.random, self.hot, self.cold = random, hot, cold
        self.islands: dict[tuple[Variant, int], Island] = {}
        for place in places:
            self.keep(place)

    def keep(self, place: Place) -> None:
        """A plan found: the best of its island, or a new island."""
        island = self.islands.setdefault(place.key, Island(place, place))
        if place.worth < island.best.worth:
            island.best = place

    def __bool__(self) -> bool:
        return bool(self.islands)

    @property
    def best(self) -> Place | None:
        """The best plan of all islands."""
        return min((island.best for island in self.islands.values()), key=lambda place: place.worth, default=None)

    def step(self) -> Place:
        """A walk on the island whose turn it is."""
        order = sorted(self.islands.values(), key=lambda island: island.best.worth)
        turn = min(range(len(order)), key=lambda rank: (order[rank].walks + 1) * FAVOUR**rank)
        island = order[turn]
        heat = self.hot * exp(self.random.uniform(-WARMTH, WARMTH))
        anew = island.walks % RESTART == RESTART - 1
        found = refine(island.start if anew else island.best, self.random, heat, self.cold)
        island.walks += 1
        self.keep(found)
        return found
