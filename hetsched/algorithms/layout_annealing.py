"""Simulated annealing of a stage layout (Kirkpatrick et al. 1983, doi:10.1126/science.220.4598.671).

The state is an ordered partition. A move exchanges two devices of two groups (or a device with an idle one), at
times alike in the groups that follow each, since good layouts are runs of equal groups; it exchanges two groups'
places, or reverses a run of groups. Only the groups a move touches are priced again.
"""

from collections.abc import Sequence
from math import exp, inf, log

import numpy as np

from hetsched.algorithms.stage_layout import Groups, StageLayout

EXCHANGE_SHARE = 0.85
RUN_SHARE = 0.3


def random_groups(layout: StageLayout, rng: np.random.Generator) -> Groups:
    """A uniformly random layout, as classes: `num_groups` groups, and the idle rest last where there is one."""
    classes = layout.class_of[rng.permutation(len(layout.class_of))].tolist()
    return cut(classes, layout.num_groups, layout.group_size)


def cut(items: Sequence[int], num_groups: int, group_size: int) -> Groups:
    """Consecutive groups of `group_size`, and one more with what is left."""
    groups = [list(items[g * group_size : (g + 1) * group_size]) for g in range(num_groups)]
    rest = list(items[num_groups * group_size :])
    return [*groups, rest] if rest else groups


class Walk:
    """An annealing run that can go on: where it stands (`groups`, `cost`) and the best it met.

    start: groups of classes in order, `num_groups` of them, and perhaps a last one of idle devices.
    """

    def __init__(self, layout: StageLayout, start: Groups) -> None:
        self.layout = layout
        self.stages = layout.num_groups
        self.groups = [list(group) for group in start]
        self.keys = [layout.key(group) for group in self.groups]
        self.group_costs = [layout.group_cost(key) for key in self.keys[: self.stages]]
        self.hops = [layout.hop(self.keys[s], self.keys[s + 1]) for s in range(self.stages - 1)]
        self.cost = layout.total(max(self.group_costs), self.hops)
        self.best, self.best_cost = [list(group) for group in self.groups], self.cost

    def run(self, rng: np.random.Generator, moves: int, hot_s: float, cold_s: float) -> None:
        """Try `moves` moves while the temperature, in the unit of the cost, falls geometrically from hot to cold."""
        places = len(self.groups)
        if places < 2 or moves < 1:
            return
        temperatures = np.geomspace(max(hot_s, 1e-30), max(cold_s, 1e-30), moves).tolist()
        for temperature, draws in zip(temperatures, rng.random((moves, 6)).tolist(), strict=True):
            kind, i, j, u, v, luck = draws
            a, b = int(i * places), int(j * (places - 1))
            b += b >= a
            if kind < EXCHANGE_SHARE:
                changed = self._exchange(a, b, u, v, luck, temperature)
            else:
                changed = self._reorder(a, b, kind, luck, temperature)
            if changed and self.cost < self.best_cost * (1 - 1e-12):
                self.best, self.best_cost = [list(group) for group in self.groups], self.cost

    def _exchange(self, a: int, b: int, u: float, v: float, luck: float, temperature: float) -> bool:
        """Exchange a device of group a with one of group b, perhaps, and alike in the groups that follow each."""
        groups, layout = self.groups, self.layout
        x, y = groups[a][int(u * len(groups[a]))], groups[b][int(v * len(groups[b]))]
        if x == y:
            return False
        length = 1
        if luck < RUN_SHARE:
            length, luck = max(1, self._run(a, b, x, y)), luck / RUN_SHARE
        else:
            luck = (luck - RUN_SHARE) / (1 - RUN_SHARE)
        keys, change = self.keys.copy(), layout.unit[y] - layout.unit[x]
        for step in range(length):
            keys[a + step] += change
            keys[b + step] -= change
        limit = self.cost - temperature * log(luck) if luck else inf
        priced = self._price(keys, ((a, y), (b, x)), length, limit)
        if priced is None:
            return False
        for step in range(length):
            first, second = groups[a + step], groups[b + step]
            first[first.index(x)] = y
            second[second.index(y)] = x
        self.keys = keys
        self.group_costs, self.hops, self.cost = priced
        return True

    def _price(
        self, keys: list[int], arrivals: tuple[tuple[int, int], ...], length: int, limit: float
    ) -> tuple[list[float], list[float], float] | None:
        """Group costs, hops and cost where runs of groups have changed; None as soon as the cost is above `limit`.

        arrivals: (first group of a run, the class that each of its `length` groups gets). Before a hop is priced it
        counts as the shortest edge that the newcomer finds into the group beside it: most moves fail at that already.
        """
        layout, stages, old, groups = self.layout, self.stages, self.keys, self.groups
        group_costs, hops, changed = self.group_costs.copy(), self.hops.copy(), []
        for first, newcomer in arrivals:
            outward, inward = layout.edges_from[newcomer], layout.edges_to[newcomer]
            for g in range(first, min(first + length, stages)):
                if g > 0:
                    changed.append(g - 1)
                    hops[g - 1] = (
                        min([inward[c] for c in groups[g - 1]]) if keys[g - 1] == old[g - 1] else layout.shortest_edge
                    )
                if g + 1 < stages:
                    changed.append(g)
                    hops[g] = (
                        min([outward[c] for c in groups[g + 1]]) if keys[g + 1] == old[g + 1] else layout.shortest_edge
                    )
        if layout.total(0.0, hops) > limit:
            return None
        for first, _ in arrivals:
            for g in range(first, min(first + length, stages)):
                group_costs[g] = layout.group_cost(keys[g])
        dearest = max(group_costs)
        for s in changed:
            if layout.total(dearest, hops) > limit:
                return None
            hops[s] = layout.hop(keys[s], keys[s + 1])
        cost = layout.total(dearest, hops)
        return None if cost > limit else (group_costs, hops, cost)

    def _run(self, a: int, b: int, x: int, y: int) -> int:
        """For how many groups from a and from b on an exchange of x and y is possible, without overlap."""
        groups, stages, length = self.groups, self.stages, 0
        most = min(stages - max(a, b), abs(a - b))
        while length < most and x in groups[a + length] and y in groups[b + length]:
            length += 1
        return length

    def _reorder(self, a: int, b: int, kind: float, luck: float, temperature: float) -> bool:
        """Exchange the places of two groups, or reverse the run between them, perhaps."""
        if a >= self.stages or b >= self.stages:
            return False
        a, b = min(a, b), max(a, b)
        order = list(range(len(self.groups)))
        if kind < (1 + EXCHANGE_SHARE) / 2:
            order[a], order[b] = b, a
        else:
            order[a : b + 1] = order[a : b + 1][::-1]
        keys = [self.keys[g] for g in order]
        hops = [self.layout.hop(keys[s], keys[s + 1]) for s in range(self.stages - 1)]
        cost = self.layout.total(max(self.group_costs), hops)
        if cost > self.cost and luck >= exp((self.cost - cost) / temperature):
            return False
        self.groups = [self.groups[g] for g in order]
        self.group_costs = [self.group_costs[g] for g in order[: self.stages]]
        self.keys, self.hops, self.cost = keys, hops, cost
        return True
