"""How many micro-batches pipelines can do that share the speed of a cluster (7 of `roofline`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.speeds import SpeedLevel
from hetsched.cluster import Floats

PRICES = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)  # of what a block a second brings where links are free
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
    """Pipelines of one kind: each does at most the least of `lines` and of cap, (n, S); -inf where there are none."""

    lines: list[Line]
    cap: Floats

    def of(self, at: NDArray[np.intp]) -> "Kind":
        """The same for some numbers of pipelines."""
        return Kind([Line(line.start[at], line.slope[at]) for line in self.lines], self.cap[at])

    def under(self, cap: Floats) -> "Kind":
        """The same with a lower cap."""
        return Kind(self.lines, np.minimum(self.cap, cap))


def can_do(
    kinds: Sequence[Kind],
    stages: Floats,
    level: SpeedLevel,
    replicas: Floats,
    wanted: Floats,
    inside: Floats | None,
    single: bool,
) -> NDArray[np.bool_]:
    """(n,): whether so many pipelines (`replicas`), each of one of the kinds, can do the micro-batches `wanted`.

    stages: (S,). The speeds of all add up to that of all devices at most, so every price x for speed says how many they
    can do: x · the speed of all + replicas · the most that one does less what its speed costs (weak duality). Where
    there are two kinds, the first keep to devices whose speeds add up to `inside`, (n,), and may pay more for them:
    y - x for what those devices have, if the first pay y >= x, and the second x. single: some pipeline of the first
    kind has one stage.
    """
    low, high = level.slowest * stages[None, :], level.team * stages[None, :]
    every = float(level.device.sum())
    usual = np.clip(every / replicas / level.team, stages.min(), stages.max())
    column = np.minimum(np.searchsorted(stages, usual), len(stages) - 1)
    slope = kinds[0].lines[0].slope
    gain = np.broadcast_to(slope, kinds[0].cap.shape)[np.arange(len(replicas)), column]
    corners = [list(_corners(kind.lines, kind.cap, low, high)) for kind in kinds]
    prices = [share * gain for share in PRICES]
    best = [[_best(mine, price) for price in prices] for mine in corners]
    most = np.full(len(replicas), np.inf)
    if inside is None:
        for price, count in zip(prices, best[0], strict=True):
            most = np.minimum(most, price * every + replicas * count)
    else:
        for (k, more), (j, price) in product(enumerate(prices), enumerate(prices)):
            if j <= k:
                count = np.maximum(best[0][k], best[1][j])
                most = np.minimum(most, price * every + (more - price) * inside + replicas * count)
    enough: NDArray[np.bool_] = most >= wanted * (1 - SLACK)
    if single:
        enough &= np.max([count[:, stages == 1].max(axis=1) for _, count in corners[0]], axis=0) >= 1 - SLACK
    return enough


def _best(corners: Sequence[tuple[Floats, Floats]], price: Floats) -> Floats:
    """(n,): the most micro-batches that a pipeline does, less the price of its speed."""
    most = np.full(len(price), -np.inf)
    for speed, count in corners:
        most = np.maximum(most, (count - price[:, None] * speed).max(axis=1))
    return most
