"""FlashFlex's formulas for a search: plans as chains of classes, priced by what was seen before.

A change touches one pipeline or two, so seconds of a chain are remembered by chain; and DP of a block, by which groups
hold it. The groups of a block are known by the sum of a random number of 60 bits for each, modulo 2^64: that two
multisets have one sum is as likely as a broken memory cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf
from operator import gt

import numpy as np
from numpy.typing import NDArray

from hetsched.cluster import Cluster
from hetsched.cost.chains import Chain, Group, Standing, pipelined_ends
from hetsched.cost.pipeline_terms import PipelineTerms, gather_terms
from hetsched.cost.published.flashflex_formulas import (
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

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class _Line:
    """Groups in order: seconds of a block on each and of the hop after it, and how many blocks it holds at most.

    pattern: a number, the same of lines of which all that is the same.
    """

    block_s: list[float]
    hop_s: list[float]
    most: list[int]
    pattern: int


class FlashFlexChains:
    """A `ChainPricer`. members: per class, positions of its devices in the cluster."""

    def __init__(self, formulas: Formulas, cluster: Cluster, members: Sequence[Sequence[int]]) -> None:
        self.formulas, self.cluster, self.members = formulas, cluster, members
        self.blocks = formulas.model.num_layers
        self._block_s_of: dict[Group, float] = {}
        self._hops: dict[tuple[Group, Group], float] = {}
        self._most: dict[tuple[Group, bool, bool], int] = {}
        self._lines: dict[tuple[Group, ...], _Line] = {}
        self._patterns: dict[tuple[float, ...], int] = {}
        self._splits: dict[tuple[int, int], list[int] | None] = {}
        self._seconds: dict[tuple[int, int, tuple[int, ...]], float] = {}
        self._marks: dict[Group, int] = {}
        self._chain_marks: dict[Chain, Ints] = {}
        self._exchanges: dict[int, dict[int, float]] = {}
        self._draw = np.random.default_rng(0)

    @cached_property
    def _slowness(self) -> list[list[float]]:
        """[class][class]: seconds a byte takes between one device of each, or between two of one class."""
        first = [positions[0] for positions in self.members]
        last = [positions[-1] for positions in self.members]
        slowness: list[list[float]] = (1 / paper_bandwidth(self.cluster.links(first, last)[1])).tolist()
        return slowness

    def _spread(self, member: int, group: Sequence[int]) -> float:
        """Seconds a byte takes from one of a group to each of the others, summed."""
        row = self._slowness[member]
        return sum([row[other] for other in group]) - row[member]

    def move_s(self, chains: Sequence[Chain]) -> float:
        """See `ChainPricer`; measured."""
        return 2e-5 + 7e-7 * sum(map(len, chains))

    def block_s(self, group: Group) -> float:
        """See `ChainPricer`: its computing and its messages."""
        seconds = self._block_s_of.get(group)
        if seconds is None:
            gpu = self.cluster.devices[self.members[group[0]][0]].gpu
            flops_per_s = paper_flops_per_s(gpu.flops_per_s(self.formulas.job.dtype))
            seconds = self.formulas.compute_s(flops_per_s, len(group))
            slowest = max(self._spread(member, group) for member in group)
            seconds += 12 * self.formulas.hidden_bytes / len(group) * slowest
            self._block_s_of[group] = seconds
        return seconds

    def hop_s(self, here: Group, there: Group) -> float:
        """Seconds of one micro-batch's hop."""
        seconds = self._hops.get((here, there))
        if seconds is None:
            rows = [self._slowness[member] for member in here]
            nearest = min(min(row[other] for row in rows) + self._spread(other, there) / len(there) for other in there)
            seconds = 2 * self.formulas.hidden_bytes * nearest
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

    def _line(self, groups: tuple[Group, ...]) -> _Line:
        line = self._lines.get(groups)
        if line is None:
            if len(self._lines) > MOST_REMEMBERED:
                self._lines.clear()
            last = len(groups) - 1
            block_s = [self.block_s(group) for group in groups]
            hop_s = [self.hop_s(a, b) for a, b in pairwise(groups)] + [0.0]
            most = [self.most_layers(group, s == 0, s == last) for s, group in enumerate(groups)]
            pattern = self._patterns.setdefault((*block_s, *hop_s, *most), len(self._patterns))
            line = self._lines[groups] = _Line(block_s, hop_s, most, pattern)
        return line

    def split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """See `ChainPricer`."""
        line = self._line(groups)
        key = line.pattern, pipelines
        if key not in self._splits:
            if len(self._splits) > MOST_REMEMBERED:
                self._splits.clear()
            count = micro_batches(self.formulas.job, pipelines)
            self._splits[key] = pipelined_ends(line.block_s, line.hop_s, line.most, self.blocks, count)
        counts = self._splits[key]
        return None if counts is None else tuple(zip(groups, counts, strict=True))

    def terms(self, groups: Sequence[Group], share: int, pipelines: int) -> PipelineTerms:
        """See `ChainPricer`: a stage is held up by the hop after it."""
        depth = min(self.blocks, sum(len(self.members[member]) for member in {m for group in groups for m in group}))

        def hop_s(a: int, b: int) -> tuple[float, float, float, float]:
            seconds = self.hop_s(groups[a], groups[b])
            return seconds, seconds, 0.0, 0.0

        return gather_terms(
            len(groups),
            self.blocks,
            depth,
            lambda g, count, first, last: count * self.block_s(groups[g]),
            lambda g, behind, first, last: self.most_layers(groups[g], first, last),
            hop_s,
            trips=False,
        )

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """The even share, rounded up."""
        return [micro_batches(self.formulas.job, len(chains))] * len(chains)

    def chain_s(self, chain: Chain, count: int) -> float:
        """Seconds of a pipeline; inf where it does not fit."""
        groups, layers = zip(*chain, strict=True)
        line = self._line(groups)
        key = line.pattern, count, layers
        seconds = self._seconds.get(key)
        if seconds is None:
            if len(self._seconds) > MOST_REMEMBERED:
                self._seconds.clear()
            seconds = self._seconds[key] = self._play(line, layers, count)
        return seconds

    def _play(self, line: _Line, layers: Sequence[int], count: int) -> float:
        if any(map(gt, layers, line.most)):
            return inf
        return gpipe_s(
            [held * each + hop for held, each, hop in zip(layers, line.block_s, line.hop_s, strict=True)], count
        )

    def stand(self, chains: Sequence[Chain], limit_s: float = inf, near: Standing | None = None) -> Standing:
        """See `ChainPricer`; inf too where degrees that share a block do not divide one another."""
        chains, size = list(chains), len(chains)
        count = micro_batches(self.formulas.job, size)
        if near is None or len(near.chains) != size:
            times = [self.chain_s(chain, count) for chain in chains]
            keys = np.sum([self.marks(chain) for chain in chains], axis=0)
        else:
            times, keys = near.times.copy(), near.keys
            for position, (was, chain) in enumerate(zip(near.chains, chains, strict=True)):
                if chain is not was:
                    times[position] = self.chain_s(chain, count)
                    keys = keys - self.marks(was) + self.marks(chain)
        slowest = max(times)
        guide_s = PIPELINE_WEIGHT * ((1 - MEAN_WEIGHT) * slowest + MEAN_WEIGHT * sum(times) / size)
        if slowest == inf or guide_s > limit_s:
            return Standing(chains, inf, inf, times, keys)
        exchange = DATA_WEIGHT * self._exchange_s(chains, keys.tolist())
        return Standing(chains, PIPELINE_WEIGHT * slowest + exchange, guide_s + exchange, times, keys)

    def _exchange_s(self, chains: Sequence[Chain], keys: list[int]) -> float:
        """DP of all blocks."""
        pipelines = len(chains)
        if pipelines == 1:
            return 0.0
        known = self._exchanges.setdefault(pipelines, {})
        try:
            return sum(map(known.__getitem__, keys))
        except KeyError:
            for block, key in enumerate(keys):
                if key not in known:
                    known[key] = self._block_exchange_s([_holder(chain, block) for chain in chains])
            return sum(map(known.__getitem__, keys))

    def marks(self, chain: Chain) -> Ints:
        """(blocks,): the random number of the group that holds each block."""
        marks = self._chain_marks.get(chain)
        if marks is None:
            for group, _ in chain:
                if group not in self._marks:
                    self._marks[group] = int(self._draw.integers(1 << 60))
            if len(self._chain_marks) > MOST_REMEMBERED:
                self._chain_marks.clear()
            marks = np.repeat([self._marks[group] for group, _ in chain], [layers for _, layers in chain])
            self._chain_marks[chain] = marks
        return marks

    def _block_exchange_s(self, groups: list[Group]) -> float:
        degrees = sorted({len(group) for group in groups})
        least, widest = degrees[0], degrees[-1]
        if any(wide % narrow for narrow, wide in pairwise(degrees)):
            return inf
        slowest = 0.0
        for column in range(widest // least):
            ranks = [group[column * len(group) // widest] for group in groups]
            slowest += max(self._spread(rank, ranks) for rank in set(ranks))
        return 2 * self.formulas.block_bytes / (least * len(groups)) * slowest


def _holder(chain: Chain, block: int) -> Group:
    for group, layers in chain:
        block -= layers
        if block < 0:
            return group
    raise AssertionError("a chain covers all blocks")
