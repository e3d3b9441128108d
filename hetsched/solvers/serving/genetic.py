"""Solver `genetic`: HexGen's outer search (Jiang et al. 2024, arXiv 2311.11514, section 4.3).

A chromosome divides the GPUs into groups; each group's best layout comes from the exact inner problem. The network's
k-means seeds the population; mutations merge two groups, split one, swap or move GPUs, several of a machine at once.
The fitness is the workload's objective by the steady state; the driver simulates the finalists.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from hetsched.solvers.serving.market import Market
from hetsched.solvers.serving.neighbours import COUNTS, MANY_GROUPS, clustered, group_counts, grown
from hetsched.solvers.serving.workshop import Draft, Group, Workshop

Partition = tuple[Group, ...]

STEPS_FOR = 15_000  # steps times GPUs of a good search
LEAST_STEPS, MOST_STEPS = 150, 1000


@dataclass(frozen=True, slots=True)
class Genetic:
    """population: chromosomes kept; mutations: of a child, at most; crossover: the share of children of two parents.

    recombined: after so many children the best division into groups that any of them had, by an integer programme.
    """

    population: int = 24
    mutations: int = 3
    crossover: float = 0.2
    tournament: int = 3
    recombined: int = 60
    name: str = "genetic"
    apart: bool = False

    def steps(self, workshop: Workshop) -> int:
        """Seeds and children."""
        gpus = len(workshop.problem.cluster.devices)
        return int(np.clip(STEPS_FOR // max(1, gpus), LEAST_STEPS, MOST_STEPS))

    def search(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Draft | None]:
        """Seeds, then children for ever; a draft where the child is better than all before, else None."""
        kept: dict[Partition, float] = {}
        best = -np.inf
        for partition in self._partitions(workshop, kept, rng):
            if partition in kept:
                yield None
                continue
            score = workshop.score(partition)
            kept[partition] = score
            if len(kept) > self.population:
                del kept[min(kept, key=lambda p: kept[p])]
            if score > best:
                best = score
                yield workshop.draft(partition)
            else:
                yield None

    def _partitions(
        self, workshop: Workshop, kept: dict[Partition, float], rng: np.random.Generator
    ) -> Iterator[Partition]:
        yield from self._seeds(workshop, rng)
        for number in itertools.count():
            if number % self.recombined == 0:
                yield _recombined(workshop)
            parents = [self._parent(kept, rng) for _ in range(2)]
            child = list(_crossed(*parents) if rng.random() < self.crossover else parents[0])
            for _ in range(int(rng.integers(1, self.mutations + 1))):
                child = mutated(workshop, child, rng)
            yield _canonical(child)

    def _seeds(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Partition]:
        for start in workshop.starts:
            yield _canonical(list(start))
        cluster = workshop.problem.cluster
        by_node: dict[int, set[int]] = {}
        for device, node in enumerate(cluster.node_numbers):
            by_node.setdefault(node, set()).add(device)
        yield _canonical([frozenset(devices) for devices in by_node.values()])
        for groups in grown(workshop):
            yield _canonical(groups)
        for count in group_counts(workshop, MANY_GROUPS, COUNTS):
            yield _canonical(clustered(workshop, count, rng))

    def _parent(self, kept: dict[Partition, float], rng: np.random.Generator) -> Partition:
        """The best of a few that are drawn."""
        known = list(kept)
        drawn = rng.integers(len(known), size=self.tournament)
        return known[max(drawn, key=lambda number: kept[known[number]])]


def _recombined(workshop: Workshop) -> Partition:
    """The groups, of all that are known, that do most by the objective together; the GPUs of none by machine."""
    problem = workshop.problem
    market = Market(workshop, several=False)
    market.learn(workshop.known_groups())
    rate = problem.load.rate_per_s if problem.objective == "cost" else None
    best = market.most(inf) if rate is None else market.cheapest(rate)
    groups = [] if best is None else list(best.groups)
    rest = frozenset(range(len(problem.cluster.devices))).difference(*groups)
    return _canonical([*groups, *(frozenset(devices) for devices in _machines(workshop, rest))])


def mutated(workshop: Workshop, groups: list[Group], rng: np.random.Generator) -> list[Group]:
    """One of: merge two groups, split one, swap GPUs of two, move some to another (or to a group of their own)."""
    kind = rng.choice(("merge", "split", "swap", "move", "move"))
    if kind == "split" or len(groups) == 1:
        return _split(workshop, groups, rng)
    a, b = (int(k) for k in rng.choice(len(groups), 2, replace=False))
    others = [group for k, group in enumerate(groups) if k not in (a, b)]
    if kind == "merge":
        return [*others, groups[a] | groups[b]]
    taken = _chunk(workshop, groups[a], rng)
    given = _chunk(workshop, groups[b], rng) if kind == "swap" else frozenset()
    pair = [(groups[a] - taken) | given, (groups[b] - given) | taken]
    return [*others, *(group for group in pair if group)]


def _split(workshop: Workshop, groups: list[Group], rng: np.random.Generator) -> list[Group]:
    """A group in two: some of its machines, or of one machine's GPUs, apart."""
    number = int(rng.integers(len(groups)))
    group = groups[number]
    if len(group) < 2:
        return groups
    machines = _machines(workshop, group)
    if len(machines) > 1 and rng.random() < 0.7:
        several = int(rng.integers(1, len(machines)))
        chosen = rng.choice(len(machines), several, replace=False)
        apart = frozenset(device for k in chosen for device in machines[int(k)])
    else:
        apart = _chunk(workshop, group, rng)
    rest = group - apart
    return [*groups[:number], *groups[number + 1 :], *(part for part in (apart, rest) if part)]


def _chunk(workshop: Workshop, group: Group, rng: np.random.Generator) -> Group:
    """1, 2, 4, ... GPUs of one of a group's machines, or all it has there."""
    machines = _machines(workshop, group)
    machine = machines[int(rng.integers(len(machines)))]
    sizes = [2**k for k in range(len(machine).bit_length()) if 2**k <= len(machine)] + [len(machine)]
    return frozenset(machine[: int(rng.choice(sizes))])


def _machines(workshop: Workshop, group: Group) -> list[list[int]]:
    """The group's GPUs by machine and kind."""
    cluster = workshop.problem.cluster
    found: dict[tuple[int, str], list[int]] = {}
    for device in sorted(group):
        found.setdefault((cluster.node_numbers[device], cluster.devices[device].gpu.kind), []).append(device)
    return list(found.values())


def _crossed(a: Partition, b: Partition) -> list[Group]:
    """Half of one parent's groups, and of the other's what is left of them."""
    half = list(a[::2])
    used = frozenset().union(*half) if half else frozenset()
    return half + [rest for group in b if (rest := group - used)]


def _canonical(groups: list[Group]) -> Partition:
    return tuple(sorted((group for group in groups if group), key=sorted))
