"""The default: a portfolio inside one budget.

1. Starts: the baseline's grids, and every grid with the devices in the order of a clustering of the network; also
   grids of the nearest, or fastest, part of the devices alone: what is slow or far away may be better left idle.
2. Rounds on the most promising grids, fewer as they go: a piece of an annealing walk from a random layout, the best
   plan warmed up again, children of the evolution, and local search on the best plan by the cost model's own price.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from hetsched.algorithms.graph_partition import hierarchical_order
from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.annealing import Annealing
from hetsched.solvers.base import Candidate
from hetsched.solvers.evolutionary import Evolutionary
from hetsched.solvers.exchange import Exchange
from hetsched.solvers.grid import Grid, grid_of, settle, shape_of, variant_of
from hetsched.solvers.layouts import GridSearch, grid_search
from hetsched.solvers.megatron import Megatron, rank_orders

Shape = tuple[int, int]
MOST_COUNTS = 8
USUAL_DEVICES = 64
WARMINGS = 6  # in a round, where nothing starts from random layouts
MOST_FROM_RANDOM = 128  # devices; beyond, what starts from random layouts is too slow to reach the good starts


@dataclass(frozen=True, slots=True)
class Auto:
    """See the module. `grids` are searched at most; a round is a step of each way to search."""

    grids: int = 3
    rounds: int = 5
    pieces: int = 2
    children: int = 1
    annealing: Annealing = field(default_factory=Annealing)
    evolutionary: Evolutionary = field(default_factory=Evolutionary)
    exchange: Exchange = field(default_factory=Exchange)
    name: str = "auto"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem."""
        return None

    def steps(self, problem: Problem) -> int:
        """All starts, then `rounds` rounds of a grid."""
        starts = Megatron().steps(problem) + sum(1 for _ in start_grids(problem))
        rounds = self.rounds * max(1, USUAL_DEVICES // len(problem.cluster.devices))  # small problems are quick
        return starts + rounds * (3 + self.pieces + self.children)

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Starts, then rounds for ever."""
        best: dict[Shape, Candidate] = {}

        def keep(candidate: Candidate) -> Candidate:
            shape = shape_of(candidate.plan)
            if shape not in best or rank(candidate) < rank(best[shape]):
                best[shape] = candidate
            return candidate

        def rank(candidate: Candidate) -> tuple[float, float]:
            return candidate.cost.rank(problem.objective)

        for candidate in Megatron().search(problem, model, rng):
            yield keep(candidate)
        for grid in start_grids(problem):
            yield keep(settle(problem, model, grid, quick=True)[0])
        shapes = sorted(best, key=lambda shape: rank(best[shape]))[: self.grids]
        fields = {shape: _Field(self, grid_search(problem, model, *shape), rng) for shape in shapes}
        while True:
            for shape in shapes:
                for candidate in fields[shape].round(best[shape]):
                    yield keep(candidate)
            shapes.sort(key=lambda shape: rank(best[shape]))
            shapes = shapes[: max(1, len(shapes) - 1)]


class _Field:
    """One grid under search: its walk and its population go on from round to round."""

    def __init__(self, auto: Auto, grid: GridSearch, rng: np.random.Generator) -> None:
        self.auto, self.grid, self.rng = auto, grid, rng
        self.walk = auto.annealing.walk(grid, rng)
        self.evolution = auto.evolutionary.evolve(grid, rng)

    def round(self, best: Candidate) -> Iterator[Candidate]:
        """One step of each way to search."""
        problem, model = self.grid.problem, self.grid.model
        small = self.grid.layout.num_groups * self.grid.layout.group_size <= MOST_FROM_RANDOM
        for _ in range(1 if small else WARMINGS):
            start = grid_of(problem.cluster, best.plan)
            warmed = self.auto.annealing.warm(self.grid, self.grid.classes_of(start), self.rng)
            yield warmed
            best = min(best, warmed, key=lambda candidate: candidate.cost.rank(problem.objective))
        for _ in range(self.auto.pieces if small else 0):
            yield next(self.walk)
        for _ in range(self.auto.children if small else 0):
            yield next(self.evolution)
        start = grid_of(problem.cluster, best.plan)
        yield settle(problem, model, start)[0]
        if not self.grid.priced_by_layout:
            yield self.auto.exchange.improve(
                problem, model, start, variant_of(best.plan), self.grid.layout.class_of, self.rng
            )


def start_grids(problem: Problem) -> Iterator[Grid]:
    """Devices in network order on every grid; and on the grids of parts of them, nearest or fastest first."""
    devices = problem.cluster.devices
    near = network_order(problem)
    fast = sorted(near, key=lambda d: -devices[d].gpu.flops_per_s(problem.job.dtype))
    lines = [near, fast] if fast != near else [near]
    for count in device_counts(problem):
        for replicas, stages in problem.grids(count):
            for line in lines:
                for order in rank_orders(replicas, stages):
                    yield [[line[rank] for rank in row] for row in order]


def device_counts(problem: Problem) -> list[int]:
    """How many devices to start with: all; the fastest kinds; the largest regions; at most `MOST_COUNTS` of these."""
    cluster, job = problem.cluster, problem.job
    speeds = Counter(device.gpu.flops_per_s(job.dtype) for device in cluster.devices)
    regions = Counter(cluster.node(device.node).region for device in cluster.devices)
    by_speed = accumulate(count for _, count in sorted(speeds.items(), reverse=True))
    by_region = accumulate(sorted(regions.values(), reverse=True))
    counts = sorted({*by_speed, *by_region, len(cluster.devices)}, reverse=True)
    least = (problem.choices.replicas or 1) * (problem.choices.stages or 1)
    counts = [count for count in counts if count >= least]
    step = -(-len(counts) // MOST_COUNTS)
    return counts[::step]


def network_order(problem: Problem) -> list[int]:
    """The devices in the order of a clustering of the network: near ones next to one another."""
    everywhere = np.arange(len(problem.cluster.devices))
    if len(everywhere) < 3:
        return [int(device) for device in everywhere]
    latency, bandwidth = problem.cluster.links(everywhere, everywhere)
    seconds = latency + 1e8 / bandwidth
    return [int(device) for device in hierarchical_order(seconds + seconds.T)]
