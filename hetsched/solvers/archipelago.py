"""Islands of asymmetric plans, one for each plan that a search begins with, annealed in turn.

A step is a walk (`chain_walk`) on one island, from its best plan or from where it began; a better plan is tried in
larger and smaller micro-batches too. The starts say little of where walks lead, so all islands get some walks; then the
better half of them as many again each; and so on, down to two (successive halving: Jamieson and Talwalkar 2016, arXiv
1502.07943).

What a plan is worth may be judged by more than its price: as played, say. What the price calls equal, or takes for
better, may then be worse; so every other walk on an island is several short ones, no further than a few changes, each
judged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf
from random import Random

from hetsched.solvers.arena import Arenas, Place
from hetsched.solvers.hierarchical import STEP_S, refine
from hetsched.solvers.played import Judge

HOT, COLD = 0.001, 0.00002  # shares of the iteration time
WALKS = 2  # on each island before the worse half is left
RESTART, ANEW = 4, 10.0  # of so many walks on an island one begins where it began, so much hotter
WARMTH = 1.0  # a walk's heat is drawn from e^-WARMTH to e^WARMTH times the usual
DRIFTS, DRIFT_STEPS, DRIFT_MOVES = 8, 4, 60  # short walks in place of a long one, at most; changes in one; and tried


@dataclass(slots=True)
class Island:
    """Where it began, its best plan, what that is worth, and how often it was searched."""

    start: Place
    best: Place
    worth: float
    walks: int = 0


class Archipelago:
    """Islands, and whose turn it is. judge: what plans are worth, as priced where there is none."""

    def __init__(
        self,
        arenas: Arenas,
        places: Iterable[Place],
        random: Random,
        hot: float = HOT,
        cold: float = COLD,
        judge: Judge | None = None,
    ) -> None:
        self.arenas, self.random, self.hot, self.cold, self.judge = arenas, random, hot, cold, judge
        self.islands = [Island(place, place, self._worth(place)) for place in places]
        self._left: list[Island] = []
        self._turns = self.islands * WALKS

    def __bool__(self) -> bool:
        return bool(self.islands)

    def step(self) -> Place:
        """A walk on the island whose turn it is, or several short ones: the best of what that came to."""
        if not self._turns:
            self.islands.sort(key=lambda island: island.worth)
            keep = max(2, len(self.islands) // 2)
            self._left += self.islands[keep:]
            self.islands = self.islands[:keep]
            self._turns = self.islands * WALKS + self._left[:1]
            self._left = self._left[1:] + self._left[:1]
        island = self._turns.pop(0)
        heat = self.hot * exp(self.random.uniform(-WARMTH, WARMTH))
        turn, drifts = island.walks % RESTART, self._drifts(island)
        island.walks += 1
        if turn % 2 and drifts:
            return self._drifted(island, drifts, heat)
        if turn == RESTART - (2 if drifts else 1):
            return self._kept(island, refine(island.start, self.random, ANEW * heat, self.cold))
        return self._kept(island, refine(island.best, self.random, heat, self.cold))

    def _worth(self, place: Place) -> float:
        return self.judge.worth(place) if self.judge else place.worth

    def _kept(self, island: Island, found: Place, even: bool = False) -> Place:
        """What was found; it is the island's best from now on where it is better; even: or as good."""
        worth = self._worth(found)
        if worth < island.worth:
            resized = self.arenas.resized(found)
            if self._worth(resized) < worth:
                found, worth = resized, self._worth(resized)
        if worth < island.worth or (even and worth == island.worth):
            island.best, island.worth = found, worth
        return found

    def _drifts(self, island: Island) -> int:
        play_s = self.judge.play_s(island.best) if self.judge else inf
        return min(DRIFTS, max(1, int(STEP_S / play_s))) if play_s < inf else 0

    def _drifted(self, island: Island, drifts: int, heat: float) -> Place:
        found = []
        for _ in range(drifts):
            arena, steps = island.best.arena, 1 + int(self.random.random() * DRIFT_STEPS)
            chains = island.best.standing.chains
            there = Place(arena, arena.walk(self.random).drift(chains, steps, DRIFT_MOVES, heat))
            found.append(self._kept(island, there, even=True))
        return min(found, key=self._worth)
