"""FlashFlex's two-phase graph partition (Yan et al. 2024, arXiv 2409.01143; HexiScale), with refinement that works.

1. The devices, in teams of one machine, are split into pipelines: each kind evenly, so that computing is balanced, by
   partitions of the network that keep fast links between pipelines, for gradients, or inside them; the parts of
   different kinds are joined by the best assignment. Or each team goes to the pipeline that has least.
2. A pipeline's stages are ordered by the open-loop travelling salesman, and its layers split by speed under memory.
3. Refinement: the best of these are walked down by exchanges between pipelines, moves, and changes of layers and of
   degrees, each priced (`chain_walk`); and so again for other numbers of pipelines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from hetsched.algorithms.graph_partition import partition
from hetsched.algorithms.open_tsp import held_karp, local_search
from hetsched.cost.base import CostModel
from hetsched.cost.chains import Group
from hetsched.problem import Problem
from hetsched.solvers.arena import UNSUPPORTED, Arenas, Hand, Place, hand_of, replica_counts
from hetsched.solvers.base import Candidate
from hetsched.solvers.inventory import Inventory
from hetsched.solvers.megatron import WIDTHS
from hetsched.solvers.nearly import nearly_fitting

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_UNITS = 96  # that a partition is sought for; more are dealt in network order
LONGEST_TSP, LONGEST_EXACT = 24, 12  # stages
STEP_S = 0.1
STARTS_KEPT = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hierarchical:
    """See the module. The first steps are the best starts; each further one refines one of them."""

    refinements: int = 40
    hot: float = 0.003
    cold: float = 0.00005
    name: str = "hierarchical"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem of a model with quick prices."""
        return None if Arenas(problem, model) else UNSUPPORTED

    def steps(self, problem: Problem) -> int:
        """The best starts, and some refinements."""
        return STARTS_KEPT + self.refinements

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """The best starts of all numbers of pipelines, then refinements of them for ever."""
        arenas, random = Arenas(problem, model), Random(int(rng.integers(1 << 60)))
        best = settled_best(arenas, list(starts(arenas, rng)))
        for place in best:
            yield place.candidate()
        if not best:
            yield from nearly_fitting(problem, model, rng)
        for place in self.refined(best, random):
            yield place.candidate()

    def refined(self, best: Sequence[Place], random: Random) -> Iterator[Place]:
        """Walks from these plans in turn, for ever; after each turn the worst is left, down to two."""
        best, turn = list(best), 0
        while best:
            place = best[turn]
            found = refine(place, random, self.hot, self.cold)
            yield found
            if found.worth < place.worth:
                best[turn] = found
            turn = (turn + 1) % len(best)
            if turn == 0:
                best.sort(key=lambda place: place.worth)
                best = best[: max(2, len(best) - 1)]


def refine(place: Place, random: Random, hot: float, cold: float) -> Place:
    """A walk of one step's length from a plan."""
    moves = max(30, int(STEP_S / place.arena.pricer.move_s(place.standing.chains)))
    return Place(place.arena, place.arena.walk(random).run(place.standing.chains, moves, hot, cold))


def settled_best(arenas: Arenas, places: list[Place], keep: int = STARTS_KEPT) -> list[Place]:
    """The best places, each in the setting that suits it best; one a number of pipelines and degree at most."""
    seen: set[tuple[int, int]] = set()
    found: list[Place] = []
    for place in sorted(places, key=lambda place: place.worth):
        chains = place.standing.chains
        shape = len(chains), max(len(group) for chain in chains for group, _ in chain)
        if shape not in seen and len(seen) < keep:
            seen.add(shape)
            found.append(arenas.settle(hand_of(chains)) or place)
            if found[-1].worth > place.worth:
                found[-1] = place
    return found


def starts(arenas: Arenas, rng: np.random.Generator) -> Iterator[Place]:
    """Constructive plans: every number of pipelines, several tensor-parallel degrees and ways to split the network."""
    seen: set[tuple[tuple[Group, ...], ...]] = set()
    for width in WIDTHS:
        if width > 1 and max(arenas.inventory.counts) < width:
            break
        units = _units(arenas.inventory, width)
        network = _Network(arenas, units)
        for replicas in replica_counts(arenas.problem):
            if replicas > len(units):
                continue
            for hand in network.hands(replicas, rng):
                key = tuple(map(tuple, hand))
                place = None if key in seen else arenas.settle(hand, quick=True)
                seen.add(key)
                if place is not None:
                    yield place


def _units(inventory: Inventory, width: int) -> list[Group]:
    """All devices in teams of `width` of one class; what is left over in teams of half of that, and so on."""
    units: list[Group] = []
    for member, count in enumerate(inventory.counts):
        left, size = count, width
        while left:
            units += [(member,) * size] * (left // size)
            left, size = left % size, max(1, size // 2)
    return units


class _Network:
    """Units, how slow the links between them are, and hands that split them."""

    def __init__(self, arenas: Arenas, units: list[Group]) -> None:
        inventory = arenas.inventory
        self.units, self.stages = units, arenas.problem.choices.stages
        self.blocks = arenas.problem.model.num_layers
        self.kinds = [(inventory.kinds[unit[0]], len(unit)) for unit in units]
        pricer = arenas.usual.pricer
        self.speeds = [1 / pricer.block_s(unit) for unit in units]
        first = [inventory.members[unit[0]][0] for unit in units]
        last = [inventory.members[unit[0]][-1] for unit in units]
        latency, bandwidth = arenas.problem.cluster.links(first, last)
        job, model = arenas.problem.job, arenas.problem.model
        self.hop_s: Floats = latency + job.seq_len * model.hidden_size * job.dtype_bytes / bandwidth
        np.fill_diagonal(self.hop_s, 0.0)
        self.hop_s = np.where(np.isfinite(self.hop_s), self.hop_s, 0.0)
        self._orders: dict[tuple[Group, ...], list[Group]] = {}
        self._clusters: dict[int, tuple[list[list[int]], Floats]] = {}

    def hands(self, replicas: int, rng: np.random.Generator) -> Iterator[Hand]:
        """Fast links between the pipelines, or inside them; and by weight, with the slowest kinds left out in turn."""
        if len(self.units) <= MOST_UNITS:
            far = self.hop_s.max() - self.hop_s
            labelings = [self._joined(replicas, weight, rng) for weight in (far, self.hop_s)]
        else:
            labelings = [self._dealt(replicas, blockwise) for blockwise in (False, True)]
        for labels in labelings:
            yield from self._hand([[u for u, label in enumerate(labels) if label == k] for k in range(replicas)], rng)
        if len(self.units) <= MOST_UNITS:
            for depth in DEPTHS:
                if replicas * depth <= len(self.units) and depth <= self.blocks:
                    yield from self._hand(self._dense(replicas, depth), rng)
        slowest = sorted(set(self.kinds), key=lambda kind: self.speeds[self.kinds.index(kind)])
        for left_out in range(min(2, len(slowest))):
            used = set(slowest[left_out:])
            chosen = [u for u, kind in enumerate(self.kinds) if kind in used]
            if len(chosen) >= replicas:
                yield from self._hand(self._weighed(replicas, chosen), rng)

    def _hand(self, parts: list[list[int]], rng: np.random.Generator) -> Iterator[Hand]:
        hand = []
        for part in parts:
            fastest = sorted(part, key=lambda u: -self.speeds[u])[: self.stages or self.blocks]
            if not fastest or (self.stages is not None and len(fastest) < self.stages):
                return
            hand.append(self._ordered(sorted(fastest), rng))
        yield hand

    def _ordered(self, part: list[int], rng: np.random.Generator) -> list[Group]:
        """The units of a pipeline by the cheapest path through them."""
        groups = tuple(self.units[u] for u in part)
        if len(part) > LONGEST_TSP or len(part) < 3:
            return list(groups)
        order = self._orders.get(groups)
        if order is None:
            hop_s = self.hop_s[np.ix_(part, part)]
            exact = len(part) <= LONGEST_EXACT
            path, _ = held_karp(hop_s) if exact else local_search(hop_s, rng, restarts=4, rounds=4)
            order = self._orders[groups] = [groups[position] for position in path]
        return order

    def _joined(self, replicas: int, weight: Floats, rng: np.random.Generator) -> list[int]:
        """A label for each unit: partitions of each kind with little weight inside, joined kind by kind."""
        labels = np.full(len(self.units), -1)
        load = np.zeros(replicas)
        for kind in sorted(set(self.kinds), key=lambda kind: -self.speeds[self.kinds.index(kind)]):
            mine = np.flatnonzero([other == kind for other in self.kinds])
            each, over = divmod(len(mine), replicas)
            sizes = [each + (k < over) for k in range(replicas)]
            parts = [size for size in sizes if size]
            groups = np.zeros(len(mine), dtype=np.intp)
            if len(parts) > 1:
                groups = partition(weight[np.ix_(mine, mine)], parts, rng, "sum", starts=2, longest_cycle=2)
            part_of = groups == np.arange(len(parts))[:, None]
            cost = part_of @ weight[mine] @ (labels[:, None] == np.arange(replicas))
            cost += (1e-9 + 1e-6 * weight.max() * part_of.sum(axis=1))[:, None] * load
            for part, k in zip(*linear_sum_assignment(cost), strict=True):
                labels[mine[part_of[part]]] = k
                load[k] += sum(self.speeds[u] for u in mine[part_of[part]])
        return [int(label) for label in labels]

    def _dealt(self, replicas: int, blockwise: bool) -> list[int]:
        """Each kind in inventory order, dealt in turn or in blocks."""
        labels = [0] * len(self.units)
        for kind in set(self.kinds):
            mine = [u for u, other in enumerate(self.kinds) if other == kind]
            for position, unit in enumerate(mine):
                labels[unit] = position * replicas // len(mine) if blockwise else position % replicas
        return labels

    def _dense(self, replicas: int, depth: int) -> list[list[int]]:
        """Pipelines of so many units that are near one another, which are near one another too; others stay idle."""
        if depth not in self._clusters:
            apart = self.hop_s + self.hop_s.T
            clusters = dense_clusters(apart, depth)
            flat = np.array(clusters).ravel()
            among = apart[np.ix_(flat, flat)].reshape(len(clusters), depth, len(clusters), depth).max(axis=(1, 3))
            self._clusters[depth] = clusters, among
        clusters, among = self._clusters[depth]
        return [clusters[k] for k in nearest(among, replicas)]

    def _weighed(self, replicas: int, chosen: list[int]) -> list[list[int]]:
        """The fastest first, each to the pipeline that has least (Graham's LPT rule, 1969, doi:10.1137/0117039)."""
        parts: list[list[int]] = [[] for _ in range(replicas)]
        heap = [(0.0, k) for k in range(replicas)]
        for unit in sorted(chosen, key=lambda u: -self.speeds[u]):
            weight, k = heap[0]
            parts[k].append(unit)
            heapreplace(heap, (weight + self.speeds[unit], k))
        return parts


def dense_clusters(distance: Floats, size: int) -> list[list[int]]:
    """As many sets of `size` points as there are, the densest first: of those left, a point and its nearest.

    distance: (n, n), symmetric. A set is as dense as its farthest two points are near.
    """
    left = np.arange(len(distance))
    found: list[list[int]] = []
    while len(left) >= size:
        among = distance[np.ix_(left, left)].copy()
        np.fill_diagonal(among, -1.0)  # a point is its own nearest
        near = np.argsort(among, axis=1, kind="stable")[:, :size]
        width = among[near[:, :, None], near[:, None, :]].max(axis=(1, 2))
        chosen = near[int(np.argmin(width))]
        found.append(sorted(left[chosen].tolist()))
        left = np.delete(left, chosen)
    return found


def nearest(distance: Floats, count: int) -> list[int]:
    """`count` points near one another: from each point the nearest are added in turn, and the least sum is taken."""
    best: tuple[float, list[int]] = (np.inf, [])
    for start in range(len(distance)):
        chosen, total, to = [start], 0.0, distance[start].copy()
        while len(chosen) < count:
            to[chosen] = np.inf
            following = int(np.argmin(to))
            total += float(to[following])
            chosen.append(following)
            to = to + distance[following]
        if total < best[0]:
            best = total, chosen
    return best[1]
