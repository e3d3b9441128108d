"""What a search asks of a cost model about plans in classes of like devices: the price of many plans, quickly.

A class is a number for devices that the model can't tell apart. A group is a tensor-parallel group, a sorted tuple of
classes; a chain is a pipeline, a tuple of (group, layers).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from math import inf
from operator import truediv
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hetsched.cost.pipeline_terms import PipelineTerms

Group = tuple[int, ...]
Chain = tuple[tuple[Group, int], ...]
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Standing:
    """A plan's chains and its price.

    seconds: the iteration time, which equals the cost model's; guide_s: what a search should go by, which also sees
    what a maximum hides. times, keys: what the pricer keeps to price a change quickly.
    """

    chains: list[Chain]
    seconds: float
    guide_s: float
    times: list[float] = field(default_factory=list)
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class ChainPricer(Protocol):
    """Prices plans of one cluster, model, job and set of options; it remembers what it has seen of each chain."""

    def move_s(self, chains: Sequence[Chain]) -> float:
        """About how long pricing a change of such a plan takes, so that steps of a search can be of one length."""
        ...

    def block_s(self, group: Group) -> float:
        """Seconds that one block of one micro-batch takes on a group, forward and backward."""
        ...

    def split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """The chain of these groups that ends soonest (`pipelined_ends`), under memory; None where no split fits."""
        ...

    def terms(self, groups: Sequence[Group], share: int, pipelines: int) -> PipelineTerms:
        """Times and limits of the stages that these groups can be, where a pipeline does `share` micro-batches."""
        ...

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """How many micro-batches each does."""
        ...

    def stand(self, chains: Sequence[Chain], limit_s: float = inf, near: Standing | None = None) -> Standing:
        """The price of a plan; inf where it breaks a limit, and where its guide_s is found to be above `limit_s`.

        near: a plan that shares most of its chains, at the same positions.
        """
        ...


def even_ends(seconds: Sequence[float], extra: Sequence[float], most: Sequence[int], blocks: int) -> list[int] | None:
    """How many of `blocks` like layers each stage takes, one or more, so that the slowest stage is as fast as can be.

    Stage s takes extra[s] + count · seconds[s], and holds at most most[s]. None where no split fits. Exact: where each
    layer in turn goes to the stage that it makes least slow, no other split has a faster slowest stage.
    """
    depth = len(seconds)
    if depth > blocks or sum(most) < blocks or not all(most):
        return None
    counts = [1] * depth
    if min(seconds) > 0.0:  # what ends before all would if layers were divisible goes there in any case
        level = (blocks + sum(map(truediv, extra, seconds))) / sum([1 / t for t in seconds])
        sure = [max(1, min(room, int((level - e) / t))) for e, t, room in zip(extra, seconds, most, strict=True)]
        counts = sure if sum(sure) <= blocks else counts
    stages = zip(extra, seconds, most, counts, strict=True)
    ends = [e + (count + 1) * t if count < room else inf for e, t, room, count in stages]
    for _ in range(blocks - sum(counts)):
        s = ends.index(min(ends))
        counts[s] += 1
        ends[s] = ends[s] + seconds[s] if counts[s] < most[s] else inf
    return counts


def pipelined_ends(
    seconds: Sequence[float],
    extra: Sequence[float],
    most: Sequence[int],
    blocks: int,
    repeats: int,
    floor_s: float = 0.0,
) -> list[int] | None:
    """As `even_ends`, but so that a pipeline of `repeats` micro-batches ends soonest: sum + (repeats - 1) · slowest.

    The slowest is no less than floor_s, what hops take.
    Exact: for a limit on the slowest the least sum fills the fastest stages first, and limits are gone through from the
    largest that can matter down, each to just below the slowest that the one before came to.
    """
    counts = even_ends(seconds, extra, most, blocks)
    if counts is None or len(counts) == 1:
        return counts
    stages = list(zip(extra, seconds, most, strict=True))
    order = sorted(range(len(counts)), key=seconds.__getitem__)
    further = repeats - 1

    def filled(limit: float) -> tuple[list[int], float, float] | None:
        """Counts, sum and slowest, none of them slower than the limit."""
        left, found = blocks - len(stages), [1] * len(stages)
        for s in order:
            more, each, room = stages[s]
            if each > 0.0 and limit < inf:
                room = min(room, int((limit - more) / each))
            taken = min(left, max(0, room - 1))
            found[s] += taken
            left -= taken
        if left:
            return None
        times = [more + each * count for (more, each, _), count in zip(stages, found, strict=True)]
        return found, sum(times), max(floor_s, *times)

    times = [more + each * count for (more, each, _), count in zip(stages, counts, strict=True)]
    level = max(floor_s, *times)
    best_s = sum(times) + further * level
    free = filled(inf)
    for trial in (filled(level * (1 + ROUNDING)), free):
        if trial is not None and trial[1] + further * trial[2] < best_s:
            counts, best_s = trial[0], trial[1] + further * trial[2]
    if free is None or not further:
        return counts
    limit = min(free[2] * (1 - ROUNDING), (best_s - free[1]) / further)
    while limit > level:
        trial = filled(limit)
        if trial is None or trial[1] + further * level >= best_s:
            break
        if trial[1] + further * trial[2] < best_s:
            counts, best_s = trial[0], trial[1] + further * trial[2]
        limit = trial[2] * (1 - ROUNDING)
    return counts


def apportion(total: int, paces: Sequence[tuple[float, float]]) -> list[int]:
    """Micro-batches for each pipeline, at least one, so that the slowest ends soonest.

    paces: seconds that each micro-batch takes, and seconds besides. Each in turn goes where it would end first.
    """
    size = len(paces)
    rate = sum(1 / pace for pace, _ in paces)
    level = (total + sum(more / pace for pace, more in paces)) / rate
    counts = [int((level - more) / pace) - 1 for pace, more in paces]
    if min(counts) < 1:  # the others get less than if these had none
        counts = [1] * size
    short = total - sum(counts)
    ends = [((count + 1) * pace + more, k) for k, (count, (pace, more)) in enumerate(zip(counts, paces, strict=True))]
    heapify(ends)
    for _ in range(short):
        end, k = ends[0]
        counts[k] += 1
        heapreplace(ends, (end + paces[k][0], k))
    return counts
