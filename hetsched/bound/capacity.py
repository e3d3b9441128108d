"""How many micro-batches pipelines can do that share the speed of a cluster (7 of `roofline`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.speeds import Make, SpeedLevel
from hetsched.cluster import Floats

# of what a block a second brings where links are free
PRICES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
FEW_PRICES = PRICES[::3]
SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Line:
    """Micro-batches that grow with a pipeline's speed: start + slope · blocks a second; both (n, S)."""

    start: Floats
    slope: Floats

    def at(self, speed: Floats) -> Floats:
        """Their number at a speed."""
        return self.start + self.slope * speed


def _corners(lines: list[Line], cap: Floats, low: Floats, high: Floats) -> Iterator[tuple[Floats, Floats]]:
    """(speed, micro-batches) where the least of `lines` and `cap` has its corners between two speeds, and is one.

    It is concave, so less a price for speed it is largest at one of these; -inf where it is less than one.
    """
    speeds = [low]
    if (high > low * (1 + SLACK)).any():
        speeds.append(high)
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
        yield inside, np.where(count >= 1 - SLACK, count, -np.inf)


@dataclass(frozen=True, eq=False)
class Kind:
    """Pipelines of one kind: each does at most the least of `lines` and of cap, (n, S); -inf where there are none.

    make: what its teams do and waste. nest: the smallest of some nested parts of the cluster that it keeps to, by
    number from the innermost.
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


def can_do(
    kinds: Sequence[Kind],
    stages: Floats,
    level: SpeedLevel,
    replicas: Floats,
    wanted: float,
    nests: Sequence[Floats],
    single: bool,
    shares: Sequence[float] = PRICES,
) -> NDArray[np.bool_]:
    """(n,): whether so many pipelines (`replicas`), each of one of the kinds, can do the micro-batches `wanted`.

    stages: (S,). The speeds of all, with what they waste, add up to that of all devices at most, so every price x for
    speed says how many they can do: x · the speed of all + replicas · the most that one does less what its speed costs
    (weak duality). Kinds that keep to nested parts, with devices whose speeds add up to `nests`, each (n,), may pay
    more the further inside: besides the outermost price for all devices that is, for those of each part, what its price
    is more than the next one's. single: some pipeline of the innermost kinds has one stage. shares: prices to try.
    """
    every = float(level.device.sum())
    usual = np.clip(every / replicas / level.team, stages.min(), stages.max())
    column = np.minimum(np.searchsorted(stages, usual), len(stages) - 1)
    slope = kinds[0].lines[0].slope
    gain = np.broadcast_to(slope, kinds[0].cap.shape)[np.arange(len(replicas)), column]
    prices = [share * gain for share in shares]
    groups = [[kind for kind in kinds if kind.nest == nest] for nest in range(len(nests) + 1)]
    corners = [_corners_of(group, stages) for group in groups]
    best = [[(count - price[:, None] * speed).max(axis=(0, 2)) for price in prices] for speed, count in corners]
    most = np.full(len(replicas), np.inf)
    for chain in combinations_with_replacement(range(len(prices)), len(groups)):
        falling = chain[::-1]
        paid, count = prices[falling[-1]] * every, best[0][falling[0]]
        for nest, speed in enumerate(nests):
            paid = paid + (prices[falling[nest]] - prices[falling[nest + 1]]) * speed
            count = np.maximum(count, best[nest + 1][falling[nest + 1]])
        most = np.minimum(most, paid + replicas * count)
    enough: NDArray[np.bool_] = most >= wanted * (1 - SLACK)
    if single:
        alone = corners[0][1][:, :, stages == 1]
        enough &= alone.max(axis=(0, 2), initial=0.0) >= 1 - SLACK  # none where no pipeline may have one stage
    return enough


def _corners_of(kinds: Sequence[Kind], stages: Floats) -> tuple[Floats, Floats]:
    """(corners, n, S): speeds with what is wasted, and micro-batches, of all corners of these kinds."""
    found = [
        (np.broadcast_to(speed + kind.make.waste_of(stages), count.shape), count)
        for kind in kinds
        for speed, count in _corners(
            kind.lines, kind.cap, kind.make.slowest * stages[None, :], kind.make.team * stages[None, :]
        )
    ]
    return np.stack([speed for speed, _ in found]), np.stack([count for _, count in found])
