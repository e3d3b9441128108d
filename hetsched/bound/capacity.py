"""How many micro-batches pipelines can do that share the speed of a cluster (7 of `roofline`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.duality import can_reach
from hetsched.bound.speeds import Make, SpeedLevel
from hetsched.cluster import Floats

# of what a block a second brings where links are free
PRICES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
FEW_PRICES = PRICES[::3]
FEW = 4  # numbers of pipelines for which the best prices are found at once
SLACK = 1e-9
ROUNDING = 1e-7


@dataclass(frozen=True, slots=True)
class Line:
    """Micro-batches that grow with a pipeline's speed: start + slope · blocks a second; both (n, S)."""

    start: Floats
    slope: Floats

    def at(self, speed: Floats) -> Floats:
        """Their number at a speed."""
        return self.start + self.slope * speed


def _corners(
    lines: list[Line], cap: Floats, low: Floats, high: Floats, kinks: Sequence[float]
) -> Iterator[tuple[Floats, Floats]]:
    """(speed, micro-batches) where the least of `lines` and `cap` has its corners between two speeds, and is one.

    It is concave, so less a price for speed, that may be higher from one of the `kinks` on, it is largest at one of
    these; -inf where it is less than one. Where all speeds are alike it is in whole micro-batches.
    """
    cap, speeds, alike = _whole(cap), [low], not (high > low * (1 + ROUNDING)).any()
    if not alike:
        speeds += [high, *(np.full_like(high, kink) for kink in kinks)]
        with np.errstate(divide="ignore", invalid="ignore"):
            for line in lines:
                speeds += [(1 - line.start) / line.slope, (cap - line.start) / line.slope]
            for one, other in combinations(lines, 2):
                speeds.append((one.start - other.start) / (other.slope - one.slope))
    for speed in speeds:
        inside = np.clip(np.where(np.isfinite(speed), speed, 0.0), low, high)
        count = cap
        for line in lines:
            count = np.minimum(count, line.at(inside))
        count = _whole(count) if alike else count
        yield inside, np.where(count >= 1 - SLACK, count, -np.inf)


def _whole(count: Floats) -> Floats:
    """What can be done of it, in whole micro-batches."""
    return np.floor(count * (1 + ROUNDING) + ROUNDING)


@dataclass(frozen=True, eq=False)
class Kind:
    """Pipelines of one kind: each does at most the least of `lines` and of cap, (n, S); -inf where there are none.

    make: what its teams do and waste. nest: how many of some nests it leaves, from the innermost.
    """

    lines: list[Line]
    cap: Floats
    make: Make
    nest: int

    def of(self, at: NDArray[np.intp]) -> "Kind":
        """The same for some numbers of pipelines."""
        return replace(self, lines=[Line(line.start[at], line.slope[at]) for line in self.lines], cap=self.cap[at])

    def under(self, cap: Floats) -> "Kind":
        """The same with a lower cap."""
        return replace(self, cap=np.minimum(self.cap, cap))


@dataclass(frozen=True, slots=True)
class Nest:
    """Parts of a cluster: blocks a second of their devices, (n,); outside: the most stages of a pipeline elsewhere.

    Each nest is in the next one.
    """

    speed: Floats
    outside: int


def can_do(
    kinds: Sequence[Kind],
    stages: Floats,
    level: SpeedLevel,
    replicas: Floats,
    wanted: float,
    nests: Sequence[Nest],
    single: bool,
    roughly: bool = False,
) -> NDArray[np.bool_]:
    """(n,): whether so many pipelines (`replicas`), each of one of the kinds, can do the micro-batches `wanted`.

    stages: (S,). The speeds of all, with what they waste, add up to that of all devices at most, so every price x for
    speed says how many they can do: x · the speed of all + replicas · the most that one does less what its speed costs
    (weak duality). So do prices for the devices of each of the nests besides: of those the best are found, unless it is
    to be said `roughly`. single: some pipeline of those that keep to all nests has one stage.
    """
    if not kinds:
        return np.zeros(len(replicas), dtype=np.bool_)
    every = float(level.device.sum())
    usual = np.clip(every / replicas / level.team, stages.min(), stages.max())
    column = np.minimum(np.searchsorted(stages, usual), len(stages) - 1)
    slope = kinds[0].lines[0].slope
    gain = np.broadcast_to(slope, kinds[0].cap.shape)[np.arange(len(replicas)), column]
    uses, count, inner = _corners_of(kinds, stages, level, nests)
    limits = np.stack([np.full(len(replicas), every), *(nest.speed for nest in nests)])
    enough = np.ones(len(replicas), dtype=np.bool_)
    exact = len(nests) > 0 and (not roughly or len(replicas) <= FEW)
    for shares in () if exact else _shares(FEW_PRICES if roughly else PRICES, len(nests)):
        prices = np.array(shares)[:, None] * gain
        paid = sum(price[:, None] * used for price, used in zip(prices, uses, strict=True))
        most = (prices * limits).sum(axis=0) + replicas * (count - paid).max(axis=(0, 2))
        enough &= most >= wanted * (1 - SLACK)
    for row in np.flatnonzero(enough) if exact else ():
        some = np.isfinite(count[:, row])
        args = count[:, row][some], uses[:, :, row][:, some], limits[:, row]
        enough[row] = can_reach(*args, float(replicas[row]), wanted * (1 - SLACK))
    if single:
        alone = count[inner][:, :, stages == 1]
        enough &= alone.max(axis=(0, 2), initial=0.0) >= 1 - SLACK  # none where no pipeline may have one stage
    return enough


def _shares(prices: Sequence[float], nests: int) -> Iterator[tuple[float, ...]]:
    """Prices for all devices, and for those of one of so many nests besides."""
    for price in prices:
        yield price, *[0.0] * nests
        for nest in range(nests):
            for more in prices:
                if more > price:
                    yield price, *[0.0] * nest, more - price, *[0.0] * (nests - 1 - nest)


def _corners_of(
    kinds: Sequence[Kind], stages: Floats, level: SpeedLevel, nests: Sequence[Nest]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Of all corners of these kinds what they use, (1 + nests, corners, n, S), of the speed of all devices and of each
    nest's; micro-batches, (corners, n, S); and whether they keep to all nests, (corners,).
    """
    uses, counts, inner = [], [], []
    outside = [nest.outside * level.team for nest in nests]
    for kind in kinds:
        waste, cheap = kind.make.waste_of(stages), outside[: kind.nest]
        low, high = kind.make.slowest * stages[None, :], kind.make.team * stages[None, :]
        for speed, count in _corners(kind.lines, kind.cap, low, high, cheap):
            used = [speed + waste] * (1 + len(nests))
            for nest, most in enumerate(cheap):
                used[1 + nest] = np.maximum(0.0, speed - most)
            uses.append(np.stack([np.broadcast_to(one, count.shape) for one in used]))
            counts.append(count)
            inner.append(not kind.nest)
    return np.stack(uses, axis=1), np.stack(counts), np.array(inner)
