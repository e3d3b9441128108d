"""The default: a portfolio inside one budget.

Where the cost model has quick prices of asymmetric plans: the starts of `hierarchical`, and all that grids are good for
as starts, the baseline's and those of `grid_starts`, `tilings` and `bands`. The best of them, as they are and with room
to spare (`Arenas.roomiest`), are walked down in step (`in_step`); then islands of the best, as of `local-search`, but
judged as played where that takes no longer than a walk (`played`). Of many devices tilings alone.

Else, on grids alone: the same grids; then, on the most promising, fewer as they go, rounds (`grid_rounds`).

It is meant to be no worse than any solver alone, which chance may belie by a percent or two: by the price of published
formulas, and under the roofline as played, since that is how the best of a search is chosen (`finish.best_played`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import inf
from random import Random

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.archipelago import Archipelago
from hetsched.solvers.arena import Arenas, Hand, Place
from hetsched.solvers.bands import banded
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import USUAL, Grid, settle, shape_of
from hetsched.solvers.grid_rounds import GridField, GridRounds
from hetsched.solvers.grid_starts import start_grids
from hetsched.solvers.hierarchical import settled_best, starts
from hetsched.solvers.in_step import in_step
from hetsched.solvers.layouts import grid_search
from hetsched.solvers.megatron import MANY_DEVICES, Megatron, inventory_grids
from hetsched.solvers.nearly import nearly_fitting
from hetsched.solvers.played import Judge
from hetsched.solvers.tilings import Tilings

USUAL_DEVICES, MOST_AT_ONCE = 64, 8
PER_LINE = 6  # of each line of starts that are held against the others
IN_STEP = 24  # of the starts, with their like that have room to spare, are walked down in step before they are judged
IN_STEP_S = 2.0  # for each of its descents
AT_ONCE = 6  # of these between two steps
ISLANDS = 10
AS_THEY_ARE = 4  # of the best starts begin as they are too: what goes downhill at once may end in a worse valley


@dataclass(frozen=True, slots=True)
class Auto:
    """See the module. `grids` are searched at most where grids are all there is."""

    walks: int = 60
    grids: int = 3
    searched: GridRounds = field(default_factory=GridRounds)
    name: str = "auto"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """Starts that are better than those before, some that are walked down or played, and walks of 0.1 s."""
        return ISLANDS + self.walks

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Starts, then walks or rounds for ever."""
        arenas = Arenas(problem, model)
        yield from self._islands(arenas, model, rng) if arenas else self._on_grids(problem, model, rng)

    def _islands(self, arenas: Arenas, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        lines: list[list[Place]] = []
        best = inf
        for line in _starts(arenas, rng):
            lines.append([])
            for place in line:
                lines[-1].append(place)
                if place.worth < best:
                    best = place.worth
                    yield place.candidate()
        places = _apart([place for line in lines for place in settled_best(arenas, line, PER_LINE)])
        if not places:
            yield from nearly_fitting(arenas.problem, model, rng)
        for place in places[:1]:
            yield place.candidate()
        random = Random(int(rng.integers(1 << 60)))
        roomy = [place for place in map(arenas.roomiest, places) if place is not None]
        first = places[:AS_THEY_ARE]
        begun = _apart([*places, *roomy])[:IN_STEP]
        for number, place in enumerate(begun):
            first.append(in_step(place, random, IN_STEP_S / len(begun)))
            if number % AT_ONCE == 0:
                yield first[-1].candidate()
        judge, first = Judge(first), _apart(first)
        for number, place in enumerate(first):
            played = judge.candidate(place)
            if number % AT_ONCE == 0:
                yield played
        first.sort(key=judge.worth)
        islands = Archipelago(arenas, first[:ISLANDS], random, judge=judge)
        while islands:
            yield judge.candidate(islands.step())

    def _on_grids(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        grids = _Grids(problem, self, rng)
        for candidate in Megatron().search(problem, model, rng):
            grids.keep(candidate)
        for grid in start_grids(problem):
            grids.keep(settle(problem, model, grid, quick=True)[0])
        yield from sorted(grids.best.values(), key=grids.rank)[:ISLANDS]
        grids.choose(model)
        found = grids.rounds()
        at_once = max(1, min(MOST_AT_ONCE, USUAL_DEVICES // len(problem.cluster.devices)))  # where they are quick
        while True:
            yield min(islice(found, at_once), key=grids.rank)


def _apart(places: list[Place]) -> list[Place]:
    """By price; of those of one price and number of pipelines the last."""
    apart = {(len(place.standing.chains), f"{place.worth:.9g}"): place for place in places}
    return sorted(apart.values(), key=lambda place: place.worth)


def _starts(arenas: Arenas, rng: np.random.Generator) -> Iterator[Iterable[Place]]:
    """Lines of starts."""
    yield Tilings(arenas, rng).starts()
    if len(arenas.problem.cluster.devices) <= MANY_DEVICES:
        yield starts(arenas, rng)
        yield _on_inventory(arenas, partial(arenas.settle, quick=True))
        if len(arenas.problem.micro_batches) > USUAL:
            yield _on_inventory(arenas, partial(arenas.settle_as, arenas.ladders[-1][0]))
        yield from banded(arenas, rng)


def _on_inventory(arenas: Arenas, settled: Callable[[Hand], Place | None]) -> Iterator[Place]:
    """The grids of the baseline and of `grid_starts`."""
    problem, classes = arenas.problem, arenas.inventory.class_of
    grids = [*inventory_grids(problem), *((1, grid) for grid in start_grids(problem))]
    for hand in dict.fromkeys(_hand(classes, grid, width) for width, grid in grids):
        place = settled(hand)
        if place is not None:
            yield place


def _hand(classes: list[int], grid: Grid, width: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The groups of a grid's pipelines; each of its places stands for `width` devices from that one on."""
    return tuple(
        tuple(tuple(classes[device : device + width]) for device in pipeline) for pipeline in zip(*grid, strict=True)
    )


class _Grids:
    """The best plan on each grid of single devices, and the grids under search."""

    def __init__(self, problem: Problem, auto: Auto, rng: np.random.Generator) -> None:
        self.problem, self.auto, self.rng = problem, auto, rng
        self.best: dict[tuple[int, int], Candidate] = {}
        self.fields: dict[tuple[int, int], GridField] = {}

    def rank(self, candidate: Candidate) -> tuple[float, float]:
        return candidate.cost.rank(self.problem.objective)

    def keep(self, candidate: Candidate) -> Candidate:
        """A candidate, which is the best of its grid where it is."""
        if all(stage.tensor_parallel == 1 for _, _, stage in candidate.plan.stages):
            shape = shape_of(candidate.plan)
            self.best[shape] = min(self.best.get(shape, candidate), candidate, key=self.rank)
        return candidate

    def choose(self, model: CostModel) -> None:
        """The grids to search."""
        for shape in sorted(self.best, key=lambda shape: self.rank(self.best[shape]))[: self.auto.grids]:
            self.fields[shape] = GridField(self.auto.searched, grid_search(self.problem, model, *shape), self.rng)

    def rounds(self) -> Iterator[Candidate]:
        """A round on each grid, for ever; one grid less from then on, the worst."""
        while True:
            for shape, field_of in self.fields.items():
                for candidate in field_of.round(self.best[shape]):
                    yield self.keep(candidate)
            if len(self.fields) > 1:
                del self.fields[max(self.fields, key=lambda shape: self.rank(self.best[shape]))]
