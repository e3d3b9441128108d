"""Islands of asymmetric plans, one for each plan that a search begins with, annealed in turn.

A step is a walk (`chain_walk`) on one island, from its best plan or from where it began; a better plan is tried in
larger and smaller micro-batches too. The starts say little of where
walks lead, so all islands get some walks; then the better half of them as many again each; and so on, down to two
(successive halving: Jamieson and Talwalkar 2016, arXiv 1502.07943).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp
from random import Random

from hetsched.solvers.arena import Arenas, Place
from hetsched.solvers.hierarchical import refine

HOT, COLD = 0.001, 0.00002  # shares of the iteration time
WALKS = 2  # on each island before the worse half is left
RESTART, ANEW = 4, 10.0  # of so many walks on an island one begins where it began, so much hotter
WARMTH = 1.0  # a walk's heat is drawn from e^-WARMTH to e^WARMTH times the usual


@dataclass(slots=True)
class Island:
    """Where it began, its best plan, and how often it was searched."""

    start: Place
    best: Place
    walks: int = 0


class Archipelago:
    """Islands, and whose turn it is."""

    def __init__(
        self, arenas: Arenas, places: Iterable[Place], random: Random, hot: float = HOT, cold: float = COLD
    ) -> None:
        self.arenas, self.random, self.hot, self.cold = arenas, random, hot, cold
        self.islands = [Island(place, place) for place in places]
        self._left: list[Island] = []
        self._turns = self.islands * WALKS

    def __bool__(self) -> bool:
        return bool(self.islands)

    def step(self) -> Place:
        """A walk on the island whose turn it is."""
        if not self._turns:
            self.islands.sort(key=lambda island: island.best.worth)
            keep = max(2, len(self.islands) // 2)
            self._left += self.islands[keep:]
            self.islands = self.islands[:keep]
            self._turns = self.islands * WALKS + self._left[:1]
            self._left = self._left[1:] + self._left[:1]
        island = self._turns.pop(0)
        heat = self.hot * exp(self.random.uniform(-WARMTH, WARMTH))
        if island.walks % RESTART == RESTART - 1:
            found = refine(island.start, self.random, ANEW * heat, self.cold)
        else:
            found = refine(island.best, self.random, heat, self.cold)
        island.walks += 1
        if found.worth < island.best.worth:
            island.best = found = self.arenas.resized(found)
        return found
