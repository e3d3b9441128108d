"""What a search asks of a cost model about plans in classes of like devices: the price of many plans, quickly.

A class is a number for devices that the model can't tell apart. A group is a tensor-parallel group, a sorted tuple of
classes; a chain is a pipeline, a tuple of (group, layers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from math import inf
from typing import Protocol

from hetsched.cost.pipeline_terms import PipelineTerms

Group = tuple[int, ...]
Chain = tuple[tuple[Group, int], ...]


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
    keys: list[int] = field(default_factory=list)


class ChainPricer(Protocol):
    """Prices plans of one cluster, model, job and set of options; it remembers what it has seen of each chain."""

    def move_s(self, chains: Sequence[Chain]) -> float:
        """About how long pricing a change of such a plan takes, so that steps of a search can be of one length."""
        ...

    def block_s(self, group: Group) -> float:
        """Seconds that one block of one micro-batch takes on a group, forward and backward."""
        ...

    def split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """The chain of these groups whose slowest stage is fastest, under memory; None where no split fits."""
        ...

    def terms(self, groups: Sequence[Group], share: int, pipelines: int) -> PipelineTerms:
        """Times and limits of the stages that these groups can be, where a pipeline does `share` micro-batches."""
        ...

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """How many micro-batches each does."""
        ...

    def stand(self, chains: Sequence[Chain]) -> Standing:
        """The price of a plan; inf where it breaks a limit."""
        ...

    def change(self, standing: Standing, changes: Mapping[int, Chain]) -> Standing:
        """The price with other chains at some positions, as many as before."""
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
    ends = [e + 2 * t if room > 1 else inf for e, t, room in zip(extra, seconds, most, strict=True)]
    for _ in range(blocks - depth):
        s = ends.index(min(ends))
        counts[s] += 1
        ends[s] = ends[s] + seconds[s] if counts[s] < most[s] else inf
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
