"""FlashFlex's formulas for a search: plans as chains of classes, priced by what was seen before.

A change touches one pipeline or two, so seconds of a chain are remembered by chain; and DP of a block, by which groups
hold it. The groups of a block are known by the sum of a random number of 60 bits for each: that two multisets have one
sum is as likely as a broken memory cell.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import inf

import numpy as np

from hetsched.cluster import Cluster
from hetsched.cost.chains import Chain, Group
from hetsched.cost.published.flashflex import (
    DATA_WEIGHT,
    PIPELINE_WEIGHT,
    Formulas,
    gpipe_s,
    micro_batches,
    paper_bandwidth,
    paper_flops_per_s,
)

MEAN_WEIGHT = 0.1  # of the guide: how much the mean pipeline counts beside the slowest
MOST_REMEMBERED = 300_000


class FlashFlexChains:
    """A `ChainPricer`. members: per class, positions of its devices in the cluster."""

    def __init__(self, formulas: Formulas, cluster: Cluster, members: Sequence[Sequence[int]]) -> None:
        self.formulas, self.cluster, self.members = formulas, cluster, members
        self.blocks = formulas.model.num_layers
        self._stage_s: dict[Group, float] = {}
        self._hops: dict[tuple[Group, Group], float] = {}
        self._most: dict[tuple[Group, bool, bool], int] = {}
        self._splits: dict[tuple[Group, ...], Chain | None] = {}
        self._seconds: dict[tuple[Chain, int], float] = {}
        self._marks: dict[Group, int] = {}
        self._chain_marks: dict[Chain, list[int]] = {}
        self._exchanges: dict[int, dict[int, float]] = {}
        self._draw = np.random.default_rng(0)

    @cached_property
    def _bandwidth(self) -> np.ndarray:
        """(classes, classes): between one device of each; on the diagonal between two of the class, inf if alone."""
        first = [positions[0] for positions in self.members]
        last = [positions[-1] for positions in self.members]
        return paper_bandwidth(self.cluster.links(first, last)[1])

    def _links(self, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        return self._bandwidth[np.ix_(rows, columns)]

    def _inside(self, group: Sequence[int]) -> np.ndarray:
        links = self._links(group, group)
        np.fill_diagonal(links, np.inf)
        return links

    def stage_s(self, group: Group) -> float:
        """Seconds that a block of one micro-batch takes on a group: its computing and its messages."""
        seconds = self._stage_s.get(group)
        if seconds is None:
            gpu = self.cluster.devices[self.members[group[0]][0]].gpu
            flops_per_s = paper_flops_per_s(gpu.flops_per_s(self.formulas.job.dtype))
            seconds = self.formulas.compute_s(flops_per_s, len(group))
            seconds += self.formulas.tensor_parallel_s(self._inside(group)) if len(group) > 1 else 0.0
            self._stage_s[group] = seconds
        return seconds

    def hop_s(self, here: Group, there: Group) -> float:
        """Seconds of one micro-batch's hop."""
        seconds = self._hops.get((here, there))
        if seconds is None:
            seconds = self.formulas.hop_s(self._links(here, there), self._inside(there))
            self._hops[here, there] = seconds
        return seconds

    def most_layers(self, group: Group, first: bool, last: bool) -> int:
        """How many blocks a group can hold, 0 where not one; first, last: at which ends of the model it stands."""
        most = self._most.get((group, first, last))
        if most is None:
            devices = [self.cluster.devices[self.members[member][0]] for member in group]
            available = sum(device.gpu.memory_bytes for device in devices) / len(group)
            held = self.formulas.memory_bytes
            counts = range(1, self.blocks + 1)
            most = sum(held(count, len(group), first, last) <= available for count in counts)
            self._most[group, first, last] = most
        return most

    def split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """See `ChainPricer`. Exact: each layer in turn goes where it ends first; then the rest is as even as can be."""
        if groups in self._splits:
            return self._splits[groups]
        if len(self._splits) > MOST_REMEMBERED:
            self._splits.clear()
        self._splits[groups] = chain = self._split(groups)
        return chain

    def _split(self, groups: tuple[Group, ...]) -> Chain | None:
        depth = len(groups)
        if depth > self.blocks:
            return None
        last = depth - 1
        seconds = [self.stage_s(group) for group in groups]
        extra = [self.hop_s(a, b) for a, b in pairwise(groups)] + [0.0]
        most = [self.most_layers(group, s == 0, s == last) for s, group in enumerate(groups)]
        if not all(most) or sum(most) < self.blocks:
            return None
        counts = [1] * depth
        ends = [e + t * 2 if m > 1 else inf for e, t, m in zip(extra, seconds, most, strict=True)]
        for _ in range(self.blocks - depth):
            s = ends.index(min(ends))
            counts[s] += 1
            ends[s] = ends[s] + seconds[s] if counts[s] < most[s] else inf
        return tuple(zip(groups, counts, strict=True))

    def fits(self, chain: Chain, pipelines: int) -> bool:
        """See `ChainPricer`."""
        last = len(chain) - 1
        return all(layers <= self.most_layers(group, s == 0, s == last) for s, (group, layers) in enumerate(chain))

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """The even share, rounded up."""
        return [micro_batches(self.formulas.job, len(chains))] * len(chains)

    def chain_s(self, chain: Chain, count: int) -> float:
        """Seconds of a pipeline; inf where it does not fit."""
        seconds = self._seconds.get((chain, count))
        if seconds is None:
            if self.fits(chain, 1):
                stages = [layers * self.stage_s(group) for group, layers in chain]
                for s, (here, there) in enumerate(pairwise(chain)):
                    stages[s] += self.hop_s(here[0], there[0])
                seconds = gpipe_s(stages, count)
            else:
                seconds = inf
            if len(self._seconds) > MOST_REMEMBERED:
                self._seconds.clear()
            self._seconds[chain, count] = seconds
        return seconds

    def price(self, chains: Sequence[Chain]) -> tuple[float, float]:
        """See `ChainPricer`; inf where a chain does not fit, or degrees that share a block do not divide."""
        pipelines = len(chains)
        count = micro_batches(self.formulas.job, pipelines)
        times = [self.chain_s(chain, count) for chain in chains]
        slowest = max(times)
        if slowest == inf:
            return inf, inf
        exchange = self.exchange_s(chains)
        blended = (1 - MEAN_WEIGHT) * slowest + MEAN_WEIGHT * sum(times) / pipelines
        return (
            PIPELINE_WEIGHT * slowest + DATA_WEIGHT * exchange,
            PIPELINE_WEIGHT * blended + DATA_WEIGHT * exchange,
        )

    def exchange_s(self, chains: Sequence[Chain]) -> float:
        """DP of all blocks."""
        pipelines = len(chains)
        if pipelines == 1:
            return 0.0
        known = self._exchanges.setdefault(pipelines, {})
        keys = list(map(sum, zip(*map(self.marks, chains), strict=True)))
        try:
            return sum(map(known.__getitem__, keys))
        except KeyError:
            for block, key in enumerate(keys):
                if key not in known:
                    known[key] = self._block_exchange_s([_holder(chain, block) for chain in chains])
            return sum(map(known.__getitem__, keys))

    def marks(self, chain: Chain) -> list[int]:
        """(blocks,): the random number of the group that holds each block."""
        marks = self._chain_marks.get(chain)
        if marks is None:
            marks = []
            for group, layers in chain:
                if group not in self._marks:
                    self._marks[group] = int(self._draw.integers(1 << 60))
                marks += [self._marks[group]] * layers
            if len(self._chain_marks) > MOST_REMEMBERED:
                self._chain_marks.clear()
            self._chain_marks[chain] = marks
        return marks

    def _block_exchange_s(self, groups: list[Group]) -> float:
        degrees = sorted({len(group) for group in groups})
        if any(wide % narrow for narrow, wide in pairwise(degrees)):
            return inf
        rows = [member for group in groups for member in group]
        bandwidth = self._inside(rows)
        places = iter(range(len(rows)))
        return self.formulas.data_parallel_s([[next(places) for _ in group] for group in groups], bandwidth)


def _holder(chain: Chain, block: int) -> Group:
    for group, layers in chain:
        block -= layers
        if block < 0:
            return group
    raise AssertionError("a chain covers all blocks")
