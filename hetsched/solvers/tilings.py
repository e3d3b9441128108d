"""Starts of like pipelines: teams in a line, laid over the grid of pipelines and stages in strips.

A strip is `run` stages of every pipeline; in it a pipeline's stages follow one another in the line. So with a run of 1
a stage's teams are neighbours, and gradients stay near; with all stages a pipeline's are, and activations stay near;
between these so many stages of a pipeline share a node. Runs may be kept whole, those that fit in a node in one, with
what is over in it left idle; slower kinds may be in wider teams, so that all teams are about as fast. A line may be in
segments, the regions in the order of the cheapest path: each holds as many whole stages of all pipelines as it has
teams for, so that no gradients leave it.

First a coarse sweep over degrees, depths, runs and lines, then whatever is next to the best.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np

from hetsched.algorithms.open_tsp import open_tsp
from hetsched.cost.chains import Group
from hetsched.solvers.arena import Arenas, Place, hand_of
from hetsched.solvers.grid_starts import device_counts, network_order
from hetsched.solvers.megatron import WIDTHS
from hetsched.units import BYTES_PER_GB

REFINED = 4  # tilings whose neighbours are tried, of unlike numbers of pipelines and degrees
HOP_GB = 0.05  # what a hop between regions is weighed by

Line = list[list[int]]  # classes, in segments
Laid = tuple[tuple[Group, ...], ...]


@dataclass(frozen=True, slots=True)
class Tiling:
    """line: the position of one of the lines; devices: how many are used at most, the first of the line in network
    order, the fastest of the others; depth: in a line of segments it only says how many pipelines there are.

    run, whole: see the module. level: whether slower kinds are in wider teams, as fast as the fastest of `width`.
    turned: whether each segment is turned round.
    """

    line: int
    width: int
    devices: int
    depth: int
    run: int
    whole: bool = False
    level: bool = False
    turned: bool = False


class Tilings:
    """The tilings of a problem, each priced once."""

    def __init__(self, arenas: Arenas, rng: np.random.Generator) -> None:
        self.arenas = arenas
        self._lines, self._fast = lines(arenas, rng)
        self._block_s = arenas.usual.pricer.block_s
        self._teams: dict[tuple[int, int, int, bool], list[list[Group]]] = {}
        self._counts = device_counts(arenas.problem)
        self._hands: set[Laid] = set()
        self._most = arenas.problem.choices.stages or arenas.problem.model.num_layers
        counts = sorted(arenas.inventory.counts)
        self._usual = counts[len(counts) // 2]
        self.places: dict[Tiling, Place] = {}

    def starts(self) -> Iterator[Place]:
        """The coarse sweep, then the best in the setting that suits them, and their neighbours in the same."""
        for tiling in self._coarse():
            hand = self._new(tiling)
            if hand is not None:
                yield from self._kept(tiling, self.arenas.settle(hand, quick=True))
        tried: set[Tiling] = set()
        while left := [tiling for tiling in self._best() if tiling not in tried]:
            best = left[0]
            tried.add(best)
            place = self.arenas.settle(hand_of(self.places[best].standing.chains)) or self.places[best]
            yield from self._kept(best, place)
            for tiling in self._near(best):
                hand = self._new(tiling)
                if hand is not None:
                    yield from self._kept(tiling, self.arenas.settle_as(place.arena, hand))

    def _new(self, tiling: Tiling) -> Laid | None:
        hand = self._laid(tiling)
        if hand is None or hand in self._hands:
            return None
        self._hands.add(hand)
        return hand

    def _kept(self, tiling: Tiling, place: Place | None) -> Iterator[Place]:
        if place is not None:
            self.places[tiling] = place
            yield place

    def _coarse(self) -> Iterator[Tiling]:
        fixed = self.arenas.problem.choices.stages
        devices = sum(self.arenas.inventory.counts)
        for width in WIDTHS:
            for line in range(len(self._lines)):
                parts = self._parts(line, width, devices, level=False)
                for depth in [fixed] if fixed else spread(min(sum(map(len, parts)), self._most)):
                    for run in sorted({1, min(depth, max(1, self._usual // width)), depth}):
                        yield Tiling(line, width, devices, depth, run)
                        yield Tiling(line, width, devices, depth, run, whole=True)

    def _best(self) -> list[Tiling]:
        """The best of each number of pipelines and degree."""
        found: dict[tuple[int, int], Tiling] = {}
        for tiling in sorted(self.places, key=lambda tiling: self.places[tiling].worth):
            found.setdefault((tiling.width, len(self.places[tiling].standing.chains)), tiling)
        return list(found.values())[:REFINED]

    def _near(self, tiling: Tiling) -> Iterator[Tiling]:
        step = max(1, tiling.depth // 8)
        for depth in dict.fromkeys((tiling.depth - step, tiling.depth - 1, tiling.depth + 1, tiling.depth + step)):
            run = depth if tiling.run == tiling.depth else tiling.run
            yield replace(tiling, depth=depth, run=run)
        for run in dict.fromkeys((tiling.run // 2, tiling.run - 1, tiling.run, tiling.run + 1, tiling.run * 2)):
            yield replace(tiling, run=run)
            yield replace(tiling, run=run, whole=not tiling.whole)
        for count in self._counts:
            yield replace(tiling, devices=count)
        replicas = len(self.places[tiling].standing.chains)
        for fewer in dict.fromkeys((replicas - 1, replicas - max(1, replicas // 8))):
            yield replace(tiling, devices=fewer * tiling.depth * tiling.width)
        yield replace(tiling, level=not tiling.level)
        yield replace(tiling, turned=not tiling.turned)

    def _parts(self, line: int, width: int, devices: int, level: bool) -> list[list[Group]]:
        """The teams of a line, or of its first devices, or of its fastest where it is in segments."""
        key = line, width, devices, level
        if key not in self._teams:
            counts = self.arenas.inventory.counts
            segments = self._lines[line]
            used: set[int] = set()
            for member in self._fast if line else segments[0]:
                if sum(counts[other] for other in used) < devices:
                    used.add(member)
            self._teams[key] = [
                [team for member in segment if member in used for team in self._teams_of(member, width, level)]
                for segment in segments
            ]
        return self._teams[key]

    def _teams_of(self, member: int, width: int, level: bool) -> list[Group]:
        """A class in teams; what is left over is idle."""
        counts = self.arenas.inventory.counts
        size, widths = width, [w for w in WIDTHS if width <= w <= counts[member]]
        fastest = next((other for other in self._fast if counts[other] >= width), None)
        if level and widths and fastest is not None:
            aim_s = self._block_s((fastest,) * width)
            size = min(widths, key=lambda w: abs(log(self._block_s((member,) * w) / aim_s)))
        return [(member,) * size] * (counts[member] // size)

    def _laid(self, tiling: Tiling) -> Laid | None:
        choices, depth = self.arenas.problem.choices, tiling.depth
        if not 1 <= tiling.run <= depth <= self._most:
            return None
        segments = self._parts(tiling.line, tiling.width, tiling.devices, tiling.level)
        most = min(sum(map(len, segments)), tiling.devices // tiling.width)
        replicas = min(choices.replicas or most // depth, self.arenas.problem.job.global_batch)
        if replicas < 1:
            return None
        pipelines: list[list[Group]] = [[] for _ in range(replicas)]
        for segment in segments:
            size = min(tiling.run, len(segment) // replicas)
            teams = segment[::-1] if tiling.turned else segment
            slots = runs(teams, size, tiling.whole) if size else []
            for position in range(len(slots) // replicas * replicas):
                pipelines[position % replicas] += slots[position]
        stages = len(pipelines[0])
        wanted = self._most if len(segments) > 1 else depth
        if not stages or (stages < wanted and (choices.stages or len(segments) == 1)):
            return None
        return tuple(tuple(pipeline[:wanted]) for pipeline in pipelines)


def runs(line: Sequence[Group], size: int, whole: bool) -> list[Sequence[Group]]:
    """A line of teams cut into runs; whole: each within one class where that has as many, or else from its first on.

    A run is of `size` teams, or where not whole the last is of those that are left.
    """
    if not whole:
        return [line[at : at + size] for at in range(0, len(line) - size + 1, size)]
    found, at = [], 0
    ends = {team: place + 1 for place, team in enumerate(line)}
    counts = Counter(line)
    while at + size <= len(line):
        team = line[at]
        left = ends[team] - at
        if left < min(size, counts[team]):
            at = ends[team]
            continue
        found.append(line[at : at + size])
        at += size
    return found


def spread(most: int) -> list[int]:
    """1, 2, 3, 4 and so on up to `most`, ever sparser."""
    found, at = [], 1
    while at < most:
        found.append(at)
        at += max(1, at // 3)
    return [*found, most] if most else []


def lines(arenas: Arenas, rng: np.random.Generator) -> tuple[list[Line], list[int]]:
    """The classes in network order; with the fastest kinds last, which suits the head of the model, where there are
    several; and so region by region. And the fastest first."""
    problem, inventory = arenas.problem, arenas.inventory
    cluster = problem.cluster
    near = list(dict.fromkeys(inventory.class_of[device] for device in network_order(problem)))
    flops = [cluster.devices[positions[0]].gpu.flops_per_s(problem.job.dtype) for positions in inventory.members]
    fast = sorted(near, key=lambda member: -flops[member])
    regions: dict[str, list[int]] = {}
    for member in fast[::-1]:
        regions.setdefault(cluster.nodes[inventory.nodes[member]].region, []).append(member)
    found = [[near], [fast[::-1]]] if fast != near else [[near]]
    if 1 < len(regions) < len(near):
        firsts = [[inventory.members[member][0] for member in part] for part in regions.values()]
        apart = np.array([[_apart_s(arenas, here, there) for there in firsts] for here in firsts])
        order, _ = open_tsp(apart, rng)
        parts = list(regions.values())
        found.append([parts[region] for region in order])
    return found, fast


def _apart_s(arenas: Arenas, here: list[int], there: list[int]) -> float:
    latency, bandwidth = arenas.problem.cluster.links(here, there)
    seconds = latency + HOP_GB * BYTES_PER_GB / bandwidth
    return float(np.median(seconds[np.isfinite(seconds)])) if np.isfinite(seconds).any() else 1e9
