"""Devices in ordered groups, one a pipeline stage: the joint problem of DT-FM (arXiv 2206.01288, section 3).

The cost of an ordered partition C_1 ... C_P, each of D devices, is

    max over groups and d in C of sum over d' in C of within[d, d']           DATAP, level 1
    + hop_weight · sum over s of bottleneck(C_s, C_s+1)                       PIPELINE, level 2
    + peak_weight · max(0, largest bottleneck - peak_floor)                   0 in the paper

where bottleneck(A, B) is the smallest, over perfect matchings of A to B, of the matching's largest `between` edge.
Devices that the matrices cannot tell apart (the GPUs of one city) form a class, and a group is known by how many it has
of each class; so the two inner problems are solved once for each composition that a search meets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hetsched.algorithms.assignment import bottleneck_assignment

Floats = NDArray[np.float64]
Groups = list[list[int]]

MAX_REMEMBERED = 500_000
MAX_LISTED_EDGES = 80  # beyond, arrays are faster than lists


@dataclass(frozen=True, slots=True)
class Weights:
    """How the parts of a layout's cost add up; the default is the paper's."""

    hop: float = 2.0
    peak: float = 0.0
    peak_floor: float = 0.0


class StageLayout:
    """An instance: which of n devices stand in which of `num_groups` ordered groups of `group_size`.

    within, between: (n, n), from row to column, diagonals unused; n may exceed num_groups · group_size.
    kinds: (n,), numbers of what the matrices do not show of devices, where it matters to the caller.
    A search works on classes (`class_of`) and keys; `expand` turns its groups of classes into groups of devices.
    """

    def __init__(
        self,
        within: Floats,
        between: Floats,
        num_groups: int,
        group_size: int,
        weights: Weights | None = None,
        kinds: Sequence[int] | None = None,
    ) -> None:
        self.within, self.between = within, between
        self.num_groups, self.group_size = num_groups, group_size
        self.weights = weights or Weights()
        self.class_of = device_classes(within, between, kinds=kinds)
        self.members_of = [np.flatnonzero(self.class_of == c).tolist() for c in range(int(self.class_of.max()) + 1)]
        self._bits = len(within).bit_length()
        self._class_within = self._per_class(within).tolist()
        self._class_between = self._per_class(between)
        self.edges_from: list[list[float]] = self._class_between.tolist()
        self.edges_to: list[list[float]] = self._class_between.T.tolist()
        apart = ~np.eye(len(between), dtype=bool)
        self.shortest_edge = float(between[apart].min()) if apart.any() else 0.0
        self._group_costs: dict[int, float] = {}
        self._hops: dict[tuple[int, int], float] = {}
        # A key holds the count of each class in turn: swapping two devices is an addition and a subtraction.
        self.unit = [1 << (self._bits * c) for c in range(len(self.members_of))]

    def _per_class(self, matrix: Floats) -> Floats:
        first = [members[0] for members in self.members_of]
        last = [members[-1] for members in self.members_of]
        values = matrix[np.ix_(first, last)]
        alone = np.equal(first, last)
        values[alone, alone] = 0.0
        return values

    def key(self, classes: Iterable[int]) -> int:
        """The key of a group, given the classes of its devices."""
        return sum(self.unit[c] for c in classes)

    def composition(self, key: int) -> list[tuple[int, int]]:
        """(class, count) for each class in the group of that key."""
        bits, parts = self._bits, []
        while key:
            c = ((key & -key).bit_length() - 1) // bits
            count = (key >> (bits * c)) & ((1 << bits) - 1)
            parts.append((c, count))
            key -= count << (bits * c)
        return parts

    def group_cost(self, key: int) -> float:
        """DATAP of one group: the largest, over its devices, of the summed `within` to the others."""
        cost = self._group_costs.get(key)
        if cost is None:
            parts, within = self.composition(key), self._class_within
            cost = 0.0
            for a, _ in parts:
                row = within[a]
                total = -row[a]
                for b, count in parts:
                    total += count * row[b]
                cost = max(cost, total)
            if len(self._group_costs) >= MAX_REMEMBERED:
                self._group_costs.clear()
            self._group_costs[key] = cost
        return cost

    def hop(self, source: int, target: int) -> float:
        """The bottleneck of the best perfect matching from one group to another, by their keys."""
        cost = self._hops.get((source, target))
        if cost is None:
            cost = self._bottleneck(self.composition(source), self.composition(target))
            if len(self._hops) >= MAX_REMEMBERED:
                self._hops.clear()
            self._hops[source, target] = cost
        return cost

    def _bottleneck(self, sources: list[tuple[int, int]], targets: list[tuple[int, int]]) -> float:
        if len(sources) * len(targets) > MAX_LISTED_EDGES:
            a = np.array([c for c, count in sources for _ in range(count)])
            b = np.array([c for c, count in targets for _ in range(count)])
            return bottleneck_assignment(self._class_between[a[:, None], b])[1]
        between = self.edges_from
        rows = [[between[a][b] for b, _ in targets] for a, _ in sources]
        return class_bottleneck(rows, [count for _, count in sources], [count for _, count in targets])

    def cost(self, keys: Sequence[int]) -> float:
        """The cost of an ordered partition, by its groups' keys."""
        hops = [self.hop(a, b) for a, b in pairwise(keys)]
        return self.total(max(map(self.group_cost, keys)), hops)

    def total(self, group_cost: float, hops: Sequence[float]) -> float:
        """The cost of a partition whose dearest group and whose hops are known."""
        weights = self.weights
        total = group_cost + weights.hop * sum(hops)
        if weights.peak and hops:
            total += weights.peak * max(0.0, max(hops) - weights.peak_floor)
        return total

    def hop_matrix(self, keys: Sequence[int]) -> Floats:
        """(P, P): the hop from each group to each other, the coarsened graph; 0 on the diagonal."""
        size = len(keys)
        matrix = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                if i != j:
                    matrix[i, j] = self.hop(keys[i], keys[j])
        return matrix

    def expand(self, groups: Sequence[Iterable[int]]) -> list[list[int]]:
        """Groups of devices for groups of classes, the devices of a class in turn."""
        left = [list(reversed(members)) for members in self.members_of]
        return [[left[c].pop() for c in sorted(group)] for group in groups]

    def match(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Order each group of devices so that its k-th device hands on to the next group's k-th device.

        Each hop's largest edge is its bottleneck, and among such matchings the sum is least.
        """
        ordered = [list(groups[0])]
        for group in groups[1:]:
            columns, _ = bottleneck_assignment(self.between[np.ix_(ordered[-1], group)], then_sum=True)
            ordered.append([group[column] for column in columns])
        return ordered


def class_bottleneck(edges: list[list[float]], needs: list[int], rooms: list[int]) -> float:
    """The bottleneck of the best perfect matching between classes that hold `needs` and `rooms` devices.

    edges: from each source class to each target class. The threshold method of `bottleneck_assignment` on a flow
    between classes: where no more devices fit below the threshold, the classes reached need one edge that leaves them
    (Hall), and the cheapest is the next threshold.
    """
    threshold: float = max(*map(min, edges), *map(min, zip(*edges, strict=True)))
    places = range(len(rooms))
    room = rooms.copy()
    flow = [[0] * len(rooms) for _ in needs]
    waiting: list[tuple[int, int]] = []
    for i, need in enumerate(needs):
        row, left = edges[i], need
        for j in places:
            if room[j] and row[j] <= threshold:
                moved = left if left < room[j] else room[j]
                flow[i][j] = moved
                room[j] -= moved
                left -= moved
                if not left:
                    break
        if left:
            waiting.append((i, left))
    for root, unplaced in waiting:
        left = unplaced
        while left:
            threshold, moved = _augment(edges, flow, room, root, left, threshold)
            left -= moved
    return threshold


def _augment(
    edges: list[list[float]], flow: list[list[int]], room: list[int], root: int, left: int, threshold: float
) -> tuple[float, int]:
    """Make place for devices of class `root` along one path; returns the threshold it needed and how many moved."""
    reached_by: dict[int, int] = {}  # target class: the source class it was reached from
    freed_by = {root: -1}  # source class: the target class whose place it would leave
    sources, outside = [root], set(range(len(room)))
    while True:
        source = sources.pop() if sources else -1
        if source < 0:
            threshold = min(edges[i][j] for i in freed_by for j in outside)
            sources = [i for i in freed_by if any(edges[i][j] <= threshold for j in outside)]
            continue
        for j in [j for j in outside if edges[source][j] <= threshold]:
            outside.discard(j)
            reached_by[j] = source
            if room[j]:
                return threshold, _shift(flow, room, reached_by, freed_by, j, left)
            for i, row in enumerate(flow):
                if row[j] and i not in freed_by:
                    freed_by[i] = j
                    sources.append(i)


def _shift(
    flow: list[list[int]], room: list[int], reached_by: dict[int, int], freed_by: dict[int, int], end: int, left: int
) -> int:
    """Move as many devices as the path to target class `end` lets."""
    path, moved, j = [], min(left, room[end]), end
    while j >= 0:
        i = reached_by[j]
        path.append((i, j))
        j = freed_by[i]
        if j >= 0:
            moved = min(moved, flow[i][j])
    room[end] -= moved
    for i, j in path:
        flow[i][j] += moved
        if freed_by[i] >= 0:
            flow[i][freed_by[i]] -= moved
    return moved


def device_classes(*matrices: Floats, kinds: Sequence[int] | None = None) -> NDArray[np.intp]:
    """(n,): equal numbers for devices that no (n, n) matrix tells apart: exchanging the two changes none of them.

    kinds: (n,), where devices of different kinds are never alike.
    """
    size = len(matrices[0])
    found = np.full(size, -1, dtype=np.intp)
    first: list[int] = []
    for device in range(size):
        for number, other in enumerate(first):
            same_kind = kinds is None or kinds[device] == kinds[other]
            if same_kind and all(_alike(matrix, device, other) for matrix in matrices):
                found[device] = number
                break
        else:
            found[device] = len(first)
            first.append(device)
    return found


def _alike(matrix: Floats, a: int, b: int) -> bool:
    if matrix[a, b] != matrix[b, a]:
        return False
    differ = (matrix[a] != matrix[b]) | (matrix[:, a] != matrix[:, b])
    differ[[a, b]] = False
    return not differ.any()
