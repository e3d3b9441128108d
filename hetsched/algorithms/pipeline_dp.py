"""The best pipeline of workers from a stock of parts: which workers, in what order, with how many items each. Exact.

A worker of type g is made of widths[g] parts of kind kinds[g]; a stage is a worker with a number of like items. A
pipeline of r rounds takes sum + (r - 1) · largest: each stage's time and each hop once, then as often as there are
further rounds what sets the pace. That is the slowest stage or hop. In 1F1B it is also a round trip: a stage that k
others follow has at most k + 1 rounds under way, so from any stage s to any later u the rounds come no faster than the
stages and hops from s to u, both ways, over u - s + 1 (the cycles of forwards and backwards that turn round at u).

For a limit M on the largest, the least sum is a dynamic programme from the last stage to the first:

    F[d, v, h, l] = min over g and x of F[d - 1, v - w_h, g, l - x] + through[h, g] + base[h] + x · item[h]

is the least sum of d + 1 stages at the end of a pipeline that are made of the parts v, hold l items, and begin with
type h; x of the items are in that one. It may have as many as the limit on its time and its store allow; the store may
depend on d. A first stage closes the pipeline. The minimum over x is that of a sliding window, so that a limit costs
O(depth · types² · prod(counts + 1) · items). For the least limit, but for round trips, the most items that d + 1 stages
can hold are enough to know, since any fewer can be held too: O(depth · types² · prod(counts + 1)) for each of the
log(types² · items) limits looked at. With round trips, F may not be above (d + 1) · M, which a least F sees to, but
that is only what is asked of trips to the end. All are kept where E ≤ 0 for

    E[d, v, h, l] = min over g and x of max(0, E[d - 1, v - w_h, g, l - x] + through[h, g]) + base[h] + x · item[h] - M

the greatest sum, less M for each stage, of any stretch that begins with h. So the least pace is found exactly, and the
least sum for a pace is bounded by F from below; a pipeline of least E that keeps the limit is taken where that of least
F does not.

Which limit is best, `pipeline_limits` finds.

So do PipeDream (Narayanan et al. 2019, arXiv 1806.03377, section 3.1) for like workers in a hierarchy, Alpa (Zheng et
al. 2022, arXiv 2201.12023, eq. 2 to 4, whose limits go up in steps) for sub-meshes of one kind, and HexGen (Jiang et
al. 2024, arXiv 2311.11514, section 4.2) for groups of several kinds; none with store or round trips by position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
MIDDLE, FIRST, LAST, ONLY = range(4)
UNREACHED = -(10**9)
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Line:
    """A pipeline: the type and the items of each stage, in order; the sum and the largest of its times, in seconds."""

    types: tuple[int, ...]
    items: tuple[int, ...]
    sum_s: float
    largest_s: float

    def seconds(self, repeats: int) -> float:
        """How long so many rounds take."""
        return self.sum_s + (repeats - 1) * self.largest_s


@dataclass(frozen=True, slots=True)
class _Aim:
    """What a programme makes least: the sum, or by how much round trips of least slack are above the limit."""

    limit: float
    by_slack: bool
    trips: bool

    @property
    def less(self) -> float:
        """What each stage takes off."""
        return self.limit if self.by_slack else 0.0

    def after_hop(self, values: Floats) -> Floats:
        """What of the stages behind a hop counts."""
        return np.maximum(values, 0.0) if self.by_slack else values

    def most(self, behind: int) -> float:
        """The largest value that the limit allows."""
        if self.by_slack:
            return self.limit * ROUNDING
        return self.limit * (behind + 1) * (1 + ROUNDING) if self.trips and self.limit < inf else inf


@dataclass(frozen=True, eq=False)
class PipelineProgramme:
    """See the module. counts: of each kind of part; kinds, widths: (G,), of each type of worker; items: in all.

    A stage of x items on type g in role r (MIDDLE, FIRST, LAST, ONLY) takes base_s[r, g] + x · item_s[g], (4, G) and
    (G,), item_s not negative, and holds at most most[r, d, g] items where d stages follow it, (4, D, G) for pipelines
    of at most D stages. A hop from type g to h adds through_s[g, h] to the sum, holds up the sending stage for
    held_s[g, h], and takes busy_s[g, h] of its link, (G, G); where through is inf there is none. trips: whether round
    trips bind. stages: how many a pipeline has, None where that is free.
    """

    counts: Sequence[int]
    kinds: Sequence[int]
    widths: Sequence[int]
    items: int
    item_s: Floats
    base_s: Floats
    most: Ints
    through_s: Floats
    held_s: Floats
    busy_s: Floats
    trips: bool = False
    stages: int | None = None

    @property
    def states(self) -> int:
        """How many the least sum is worked out for."""
        return self._depth * prod(count + 1 for count in self.counts) * len(self.kinds) * self.items

    @cached_property
    def _depth(self) -> int:
        parts = sum(count // min(self._widths_of(kind), default=1) for kind, count in enumerate(self.counts))
        return min(self.items, parts, int(self.most.shape[1]), self.stages or self.items)

    def _widths_of(self, kind: int) -> list[int]:
        return [width for width, other in zip(self.widths, self.kinds, strict=True) if other == kind]

    @cached_property
    def _held(self) -> Floats:
        """(4, G, G, items): times of a stage of type g before one of type h with 1, 2, … items; no hop at the end."""
        stages = self.base_s[:, :, None, None] + self.item_s[:, None, None] * np.arange(1, self.items + 1)
        held = np.where(np.isfinite(self.through_s), self.held_s, inf)[None, :, :, None]
        ends = np.isin(np.arange(4), (LAST, ONLY))[:, None, None, None]
        return np.where(ends, stages, stages + held)

    @cached_property
    def limits(self) -> Floats:
        """All times that a largest can be."""
        times = np.concatenate((self._held.ravel(), self.busy_s.ravel()))
        return np.unique(times[np.isfinite(times)])

    def _room(self, limit: float) -> Ints:
        """(4, D, G, G): how many items a stage of type g before one of type h can have, so many stages following."""
        fits = (self._held <= limit).sum(axis=-1)
        fits[[MIDDLE, FIRST]] *= self.busy_s <= limit
        room: Ints = np.minimum(fits[:, None], self.most[:, :, :, None])
        return room

    def _shifts(self, g: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The states' stock without a worker of type g, and with it."""
        kind, width = self.kinds[g], self.widths[g]
        before = [slice(None)] * len(self.counts)
        after = list(before)
        before[kind], after[kind] = slice(0, self.counts[kind] + 1 - width), slice(width, None)
        return tuple(before), tuple(after)

    def _alone(self, g: int) -> tuple[int, ...]:
        return tuple(self.widths[g] if kind == self.kinds[g] else 0 for kind in range(len(self.counts)))

    @cached_property
    def _usable(self) -> list[int]:
        return [g for g in range(len(self.kinds)) if self.widths[g] <= self.counts[self.kinds[g]]]

    def _may_close(self, depth: int) -> bool:
        return self.stages in (None, depth)

    def reaches(self, limit: float) -> bool:
        """Whether a pipeline with no time above the limit exists."""
        room, usable = self._room(limit), self._usable
        if self._may_close(1) and any(room[ONLY, 0, g, 0] >= self.items for g in usable):
            return True
        shape = tuple(count + 1 for count in self.counts)
        most = np.full((*shape, len(self.kinds)), UNREACHED)
        for g in usable:
            if room[LAST, 0, g, 0] > 0:
                most[(*self._alone(g), g)] = room[LAST, 0, g, 0]
        for behind in range(1, self._depth):
            more = np.full_like(most, UNREACHED)
            for h in usable:
                before, after = self._shifts(h)
                for role in (FIRST, MIDDLE):
                    wide = room[role, behind, h]
                    held = (most[before] + np.where(wide > 0, wide, UNREACHED)).max(axis=-1)
                    if role == MIDDLE:
                        more[after][..., h] = held
                    elif self._may_close(behind + 1) and held.max() >= self.items:
                        return True
            most = more
            if most.max() < 0:
                break
        return False

    def solve(self, limit: float, by_slack: bool = False) -> Line | None:
        """The pipeline of least sum with no time above the limit, or of least slack with no round trip above it either;
        None where there is none."""
        aim = _Aim(limit, by_slack, self.trips)
        room, usable, items = self._room(limit), self._usable, self.items
        ends: list[tuple[float, int, int, tuple[int, ...]]] = []  # value, stages behind, first type, state behind it
        if self._may_close(1):
            ends += [
                (self.base_s[ONLY, g] - aim.less + items * self.item_s[g], 0, g, ())
                for g in usable
                if room[ONLY, 0, g, 0] >= items
            ]
        shape = tuple(count + 1 for count in self.counts)
        count = np.arange(items)
        first = np.full((*shape, len(self.kinds), items), inf)
        for g in usable:
            most = min(items - 1, int(room[LAST, 0, g, 0]))
            held = count[1 : most + 1]
            first[(*self._alone(g), g)][held] = self.base_s[LAST, g] - aim.less + held * self.item_s[g]
        layers = [first]
        for behind in range(1, self._depth):
            now, after = layers[-1], np.full_like(first, inf)
            for h in usable:
                if self._may_close(behind + 1):
                    ends += self._closed(now, room[FIRST, behind, h], h, behind, aim)
                if behind + 1 < self._depth:
                    self._prepend(now, after, room[MIDDLE, behind, h], h, aim)
            after[after > aim.most(behind)] = inf
            if not np.isfinite(after).any():
                break
            layers.append(after)
        ends = [end for end in ends if end[0] <= aim.most(end[1])]
        if not ends:
            return None
        _, behind, h, state = min(ends)
        types, counts = [h], [items - (state[-1] if state else 0)]
        while behind:
            behind -= 1
            *stock, g, left = state
            types.append(g)
            if behind == 0:
                counts.append(left)
                break
            state = self._before(layers[behind - 1], room[MIDDLE, behind, g], g, stock, left, aim)
            counts.append(left - state[-1])
        return self._line(types, counts)

    def _prepend(self, now: Floats, after: Floats, rooms: Ints, h: int, aim: _Aim) -> None:
        """Lower the states `after` to what a stage of type h makes of the states `now`.

        rooms: (G,), how many items it can have before each type.
        """
        without, along = self._shifts(h)
        each = np.arange(self.items) * self.item_s[h]
        target = after[along][..., h, :]
        for room in np.unique(rooms[rooms > 0]).tolist():
            types = np.flatnonzero(rooms == room)
            behind = aim.after_hop(now[without][..., types, :] + self.through_s[h, types, None]).min(axis=-2) - each
            # the least of the states with 1 to `room` items fewer
            window = minimum_filter1d(behind, room, axis=-1, mode="constant", cval=inf, origin=(room - 1) // 2)
            sums = self.base_s[MIDDLE, h] - aim.less + each[1:] + window[..., :-1]
            np.minimum(target[..., 1:], sums, out=target[..., 1:])

    def _closed(
        self, now: Floats, rooms: Ints, h: int, behind: int, aim: _Aim
    ) -> list[tuple[float, int, int, tuple[int, ...]]]:
        """The best pipeline that a first stage of type h makes of the states `now`, if any."""
        most = int(rooms.max())
        if not most:
            return []
        left = np.arange(most, 0, -1)  # for the first stage
        sums = aim.after_hop(now[self._shifts(h)[0]][..., self.items - most :] + self.through_s[h][:, None])
        sums += self.base_s[FIRST, h] - aim.less + left * self.item_s[h]
        if rooms.min() < most:
            sums[..., left > rooms[:, None]] = inf
        *stock, g, place = map(int, np.unravel_index(int(sums.argmin()), sums.shape))
        value = float(sums[(*stock, g, place)])
        return [(value, behind, h, (*stock, g, self.items - most + place))] if value < inf else []

    def _before(self, layer: Floats, rooms: Ints, h: int, stock: list[int], held: int, aim: _Aim) -> tuple[int, ...]:
        """The state behind a stage of type h that makes its state's sum least."""
        stock = list(stock)
        stock[self.kinds[h]] -= self.widths[h]
        taken = held - np.arange(self.items)  # items of that stage
        sums = aim.after_hop(layer[tuple(stock)] + self.through_s[h][:, None]) + taken * self.item_s[h]
        sums = np.where((taken > 0) & (taken <= rooms[:, None]), sums, inf)
        g, left = np.unravel_index(int(sums.argmin()), sums.shape)
        return (*stock, int(g), int(left))

    def _line(self, types: list[int], counts: list[int]) -> Line:
        last = len(types) - 1
        total = largest = 0.0
        ways: list[float] = []  # from the stage at hand to each one after it, with both
        for s in reversed(range(last + 1)):
            g, count = types[s], counts[s]
            role = ONLY if last == 0 else FIRST if s == 0 else LAST if s == last else MIDDLE
            h = types[s + 1] if s < last else 0
            own, hop = float(self.base_s[role, g] + count * self.item_s[g]), 0.0
            largest = max(largest, float(self._held[role, g, h, count - 1]))
            if s < last:
                largest, hop = max(largest, float(self.busy_s[g, h])), float(self.through_s[g, h])
            total += own + hop
            ways = [own, *(own + hop + way for way in ways)]
            if self.trips:
                largest = max(largest, *(way / (stages + 1) for stages, way in enumerate(ways)))
        return Line(tuple(types), tuple(counts), total, largest)
