"""DT-FM's genetic operators on balanced partitions (arXiv 2206.01288, section 3.2): crossover and cyclic local search.

A partition is labels (n,): the group of each device, `num_groups` for an idle one. Its cost is that of its best order:
the groups coarsen to a graph whose edges are the hops between them, and the cheapest open path through it is the order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetsched.algorithms.assignment import sum_assignment
from hetsched.algorithms.open_tsp import open_tsp
from hetsched.algorithms.stage_layout import StageLayout

Labels = NDArray[np.intp]

CROSSOVER_POINTS = 5


@dataclass(frozen=True, eq=False)
class Individual:
    """A partition, its groups' best order, and its cost."""

    labels: Labels
    order: tuple[int, ...]
    cost: float

    def groups(self) -> list[list[int]]:
        """The devices of each group, in order; the idle ones last."""
        found = [np.flatnonzero(self.labels == g).tolist() for g in self.order]
        idle = np.flatnonzero(self.labels == len(self.order)).tolist()
        return [*found, idle] if idle else found


def evaluate(layout: StageLayout, labels: Labels, rng: np.random.Generator) -> Individual:
    """The partition with its best order: exact up to 15 groups, by local search beyond (`open_tsp`)."""
    classes = layout.class_of
    keys = [layout.key(classes[labels == g].tolist()) for g in range(layout.num_groups)]
    order, _ = open_tsp(layout.hop_matrix(keys), rng)
    places = [int(g) for g in order]
    return Individual(labels, tuple(places), layout.cost([keys[g] for g in places]))


def random_labels(layout: StageLayout, rng: np.random.Generator) -> Labels:
    """A uniformly random balanced partition."""
    devices = len(layout.class_of)
    used = layout.num_groups * layout.group_size
    labels = np.full(devices, layout.num_groups, dtype=np.intp)
    labels[:used] = np.repeat(np.arange(layout.num_groups), layout.group_size)
    return rng.permutation(labels)


def crossover(layout: StageLayout, mother: Individual, father: Individual, rng: np.random.Generator) -> Labels:
    """Five-point crossover: stretches of the devices take the one parent's labels and then the other's, repaired.

    The father's groups are first renamed to overlap the mother's most; devices of one class stand together. Then
    groups that hold too many give devices, at random, to those that hold too few.
    """
    groups = layout.num_groups
    overlap = np.zeros((groups, groups))
    both = (mother.labels < groups) & (father.labels < groups)
    np.add.at(overlap, (father.labels[both], mother.labels[both]), 1.0)
    rename = np.append(sum_assignment(-overlap)[0], groups)
    line = np.argsort(layout.class_of, kind="stable")
    cuts = np.sort(rng.integers(0, len(line) + 1, CROSSOVER_POINTS))
    from_father = np.searchsorted(cuts, np.arange(len(line)), side="right") % 2 == 1
    child = mother.labels.copy()
    child[line[from_father]] = rename[father.labels[line[from_father]]]
    return _balanced(layout, child, rng)


def _balanced(layout: StageLayout, labels: Labels, rng: np.random.Generator) -> Labels:
    sizes = np.full(layout.num_groups + 1, layout.group_size)
    sizes[-1] = len(labels) - layout.num_groups * layout.group_size
    surplus = np.bincount(labels, minlength=len(sizes)) - sizes
    leaving = [rng.permutation(np.flatnonzero(labels == g))[: surplus[g]] for g in np.flatnonzero(surplus > 0)]
    if leaving:
        needed = np.repeat(np.arange(len(sizes)), np.maximum(-surplus, 0))
        labels[np.concatenate(leaving)] = rng.permutation(needed)
    return labels


def cyclic_descent(layout: StageLayout, start: Individual, rng: np.random.Generator) -> Individual:
    """Passes of cyclic exchanges, in the way of Kernighan and Lin, for as long as a pass improves."""
    best = start
    while True:
        after = _cyclic_pass(layout, best, rng)
        if after.cost >= best.cost * (1 - 1e-12):
            return best
        best = after


def _cyclic_pass(layout: StageLayout, start: Individual, rng: np.random.Generator) -> Individual:
    """The best partition along a chain of cyclic exchanges, each device moving once at most.

    Along a cycle of groups A → B → ... → A each gives the next the free device of largest gain.
    """
    labels, best = start.labels.copy(), start
    groups = layout.num_groups + bool((labels == layout.num_groups).any())
    if groups < 2:
        return best
    free = np.ones(len(labels), dtype=bool)
    for _ in range(layout.group_size):
        cycle = rng.permutation(groups)[: rng.integers(2, groups + 1)]
        gain = gains(layout.within, labels, groups)
        moves: list[tuple[int, int]] = []
        for source, target in zip(cycle, np.roll(cycle, -1), strict=True):
            ready = np.flatnonzero((labels == source) & free)
            if len(ready):
                moves.append((int(ready[np.argmax(gain[ready, target])]), int(target)))
        if not moves or len(moves) < len(cycle):
            break
        for device, target in moves:
            labels[device] = target
            free[device] = False
        found = evaluate(layout, labels.copy(), rng)
        if found.cost < best.cost:
            best = found
    return best


def gains(within: NDArray[np.float64], labels: Labels, groups: int) -> NDArray[np.float64]:
    """(n, groups): how much each device is worth exchanging into each group.

    A device's mean cost into the other group, less its cheapest link inside its own: two near neighbours in one
    data-parallel group are better apart, where a pipeline's hop can use the link between them.
    """
    member = labels[:, None] == np.arange(groups)
    apart = within.copy()
    np.fill_diagonal(apart, 0.0)
    mean = apart @ member / np.maximum(member.sum(axis=0), 1)
    np.fill_diagonal(apart, np.inf)
    cheapest = np.where(labels[:, None] == labels, apart, np.inf).min(axis=1)
    return np.asarray(mean - np.where(np.isfinite(cheapest), cheapest, 0.0)[:, None])
