"""Local search on asymmetric plans: islands of one number of pipelines each, annealed in turn (`chain_walk`).

Each island begins with a deal of the devices. A step is a walk on one island: from its best plan or from a deal. The
better an island's best, the more of the walks it gets.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp, inf
from random import Random

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.cost.chains import Chain, Standing
from hetsched.problem import Problem
from hetsched.solvers.arena import UNSUPPORTED, Arena, arenas, deals, replica_counts
from hetsched.solvers.base import Candidate

WARMTH = 1.0  # a walk's heat is drawn from e^-WARMTH to e^WARMTH times the usual
FAVOUR = 1.5  # how much rarer each island in the order of their bests is searched than the one before


@dataclass(slots=True)
class Island:
    """One number of pipelines in one arena: where it began, its best plan, and how often it was searched."""

    arena: Arena
    starts: list[list[Chain]]
    best: Standing
    walks: int = 0


@dataclass(frozen=True, slots=True)
class LocalSearch:
    """See the module. A step is `moves` moves; temperatures are shares of the iteration time."""

    moves: int = 8_000
    scouting: int = 500
    hot: float = 0.003
    cold: float = 0.00005
    name: str = "local-search"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem of a model with quick prices."""
        return None if arenas(problem, model) else UNSUPPORTED

    def steps(self, problem: Problem) -> int:
        """A walk on each island, and a few more on the best."""
        return 90

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """A scouting walk on each island, then longer ones for ever."""
        random = Random(int(rng.integers(1 << 60)))
        islands: dict[tuple[int, int], Island] = {}
        for arena in arenas(problem, model):
            for replicas in replica_counts(problem):
                yield from self.settle(islands, arena, deals(arena, replicas), random)
        while islands:
            yield self.step(islands, random)

    def settle(
        self, islands: dict[tuple[int, int], Island], arena: Arena, starts: Iterable[list[Chain]], random: Random
    ) -> Iterator[Candidate]:
        """A scouting walk from each start, and an island where it leads."""
        for start in starts:
            best = arena.walk(random).run(start, self.scouting, self.hot, 10 * self.cold)
            if best.seconds < inf:
                island = keep(islands, arena, best)
                island.starts.append(start)
                yield arena.candidate(best.chains)

    def step(self, islands: dict[tuple[int, int], Island], random: Random) -> Candidate:
        """A walk on the island whose turn it is."""
        order = sorted(islands.values(), key=lambda island: island.best.seconds)
        turn = min(range(len(order)), key=lambda rank: (order[rank].walks + 1) * FAVOUR**rank)
        island = order[turn]
        heat = self.hot * exp(random.uniform(-WARMTH, WARMTH))
        again = island.starts and island.walks % 2 == 1
        start = island.starts[(island.walks // 2) % len(island.starts)] if again else island.best.chains
        island.walks += 1
        best = island.arena.walk(random).run(start, self.moves, heat, self.cold)
        keep(islands, island.arena, best)
        return island.arena.candidate(best.chains)


def keep(islands: dict[tuple[int, int], Island], arena: Arena, found: Standing) -> Island:
    """The island of a plan, which is its best where it is better than what was there."""
    key = id(arena), len(found.chains)
    island = islands.setdefault(key, Island(arena, [], found))
    if found.seconds < island.best.seconds:
        island.best = found
    return island
