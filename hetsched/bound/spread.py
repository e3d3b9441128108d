"""How the blocks of plans are spread over the parts of divisions, and how pipelines go across (6 of `roofline`)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.capacity import Nest
from hetsched.bound.parts import Parts
from hetsched.bound.rounds import Way
from hetsched.cluster import Floats

ROUNDING = 1e-9
APART = 12  # up to so many all numbers of stages are told apart; beyond, ever fewer

Range = tuple[int, int]  # the fewest and the most
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Holding:
    """Plans of which so many parts of a division have local blocks: `local`, K.

    outside: how many stages stand outside these parts, of the pipeline that has most of them there. home: whether the
    tied embedding's ring is in one part.
    """

    parts: Parts
    local: Range
    outside: Range
    home: bool

    @property
    def some(self) -> bool:
        """Whether some parts have local blocks, of several parts."""
        return self.local[0] > 0 and self.parts.several

    @property
    def visits(self) -> int:
        """Hops between parts of a pipeline that visits all of these; of one that leaves the only one."""
        return max(1, self.local[0] - 1) + self.home


Chain = tuple[Holding, ...]  # of divisions, each coarser than the next


def holdings(parts: Parts, blocks: int, tied: bool, coarser: Chain) -> Iterator[Holding]:
    """All that a division may be like, where what is local in it is so in coarser ones; tied: if an embedding is."""
    most, outside = min(len(parts.sizes), blocks), (0, blocks)
    if parts.several:
        yield Holding(parts, (0, 0), outside, home=False)
    for local in ((1, 1), (2, most)):
        if local[1] >= local[0] and all(one.local[0] for one in coarser):
            yield Holding(parts, local, outside, home=False)
            if tied and all(one.home for one in coarser):
                yield Holding(parts, local, outside, home=True)


def narrower(chain: Chain) -> list[Chain]:
    """Chains that together are all of a chain; none where all its ranges are narrow."""
    for k, holding in enumerate(chain):
        if holding.some:
            parts = [replace(holding, local=some) for some in _halves(holding.local)]
            parts = parts or [replace(holding, outside=some) for some in _halves(holding.outside)]
            if parts:
                found = (_tightened((*chain[:k], part, *chain[k + 1 :])) for part in parts)
                return [other for other in found if other]
    return []


def _halves(numbers: Range) -> list[Range]:
    """A range in two, the fewer first; none where it is narrow."""
    low, high = numbers
    if low == 0:
        return [(0, 0), (1, high)] if high else []
    if APART * high <= (APART + 1) * low:
        return []
    middle = min((low + high) // 2, 2 * low - 1)
    return [(low, middle), (middle + 1, high)]


def _tightened(chain: Chain) -> Chain:
    """The same plans, as what is outside the parts with local blocks is so in finer divisions; empty: there is none."""
    found, low, high = list(chain), 0, chain[-1].outside[1]
    for k, holding in enumerate(found):
        if holding.some:
            low = max(low, holding.outside[0])
            found[k] = replace(holding, outside=(low, holding.outside[1]))
    for k, holding in reversed(list(enumerate(found))):
        if holding.some:
            high = min(high, holding.outside[1])
            found[k] = replace(holding, outside=(holding.outside[0], high))
            if high < holding.outside[0]:
                return ()
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Spread:
    """The least seconds of all-reduces, (n,) by number of pipelines.

    stage_s: of a stage, whatever its bytes; per_byte: more a byte of blocks, on average; least_per_byte: of any block;
    once_s: of all stages of a pipeline together more. allowed: where there can be such plans.
    """

    stage_s: Floats
    per_byte: Floats
    least_per_byte: Floats
    once_s: Floats
    allowed: NDArray[np.bool_]

    def of(self, at: Places) -> "Spread":
        """The same for some numbers of pipelines."""
        return Spread(self.stage_s[at], self.per_byte[at], self.least_per_byte[at], self.once_s[at], self.allowed[at])


@dataclass(frozen=True, slots=True)
class Burden:
    """What a plan must do: L blocks of so many bytes of gradients, M micro-batches, by teams of speed w or more."""

    blocks: int
    block_bytes: float
    micro_batches: int
    slowest: float


def spread_of(chain: Chain, at: Places, replicas: Floats, end_s: float, burden: Burden) -> Spread:
    """What a chain says of plans that end by `end_s`; replicas: (n,), `at` their places in what `Parts` has."""
    allowed, model_bytes = np.ones(len(at), dtype=np.bool_), burden.blocks * burden.block_bytes
    share, groups, further = np.zeros(len(at)), np.zeros(len(at)), []
    lowest_s = np.full(len(at), np.inf)  # of what is across, so far
    for holding in chain:
        own, there_are = _not_local(holding, at, replicas, end_s, burden)
        allowed &= there_are
        fewest = holding.outside[0] if holding.some else 0
        share = np.maximum(share, np.maximum(own, fewest / burden.blocks))
        some = share > ROUNDING
        groups = np.maximum(groups, np.maximum(some, fewest))
        stage_s, per_byte = holding.parts.across_s[at], holding.parts.across_per_byte[at]
        allowed &= ~some | np.isfinite(per_byte)
        stage_s, per_byte = np.where(some, stage_s, np.inf), np.where(some & np.isfinite(per_byte), per_byte, 0.0)
        lowest_s = np.minimum(lowest_s, stage_s)
        further.append((share, groups, lowest_s, per_byte))
    stage_s, least = _of_any(chain, at, burden)
    stage_s = np.minimum(stage_s, lowest_s)
    mean, dearest, once_s = least, least, np.zeros(len(at))
    for share, groups, across_s, per_byte in reversed(further):
        before, dearest = dearest, np.maximum(dearest, per_byte)
        mean = mean + share * (dearest - before)
        more = np.where(np.isfinite(across_s), across_s, stage_s) - stage_s
        once_s = np.maximum(once_s, groups * more - (dearest - per_byte) * model_bytes)
    return Spread(stage_s, mean, least, once_s, allowed)


def _not_local(
    holding: Holding, at: Places, replicas: Floats, end_s: float, burden: Burden
) -> tuple[Floats, NDArray[np.bool_]]:
    """z, the least share of blocks that are not local, and whether such plans can be."""
    parts = holding.parts
    if not holding.local[0]:
        return np.ones(len(at)), np.isfinite(parts.across_per_byte[at])
    speed, there_are = parts.fastest(replicas, holding.local)
    computing = float(burden.micro_batches * burden.blocks)
    reducing = burden.slowest * replicas * parts.local_per_byte[at] * burden.block_bytes * burden.blocks
    share = np.maximum(0.0, 1 - end_s * speed / (computing + reducing))
    if not parts.several or not holding.outside[1]:
        there_are = there_are & (share <= ROUNDING)
    return share, there_are


def _of_any(chain: Chain, at: Places, burden: Burden) -> tuple[Floats, Floats]:
    """Of any group: seconds, and more a byte. Where no block is local, of the divisions where none is the dearest."""
    base = chain[-1]
    if base.local[0]:
        return base.parts.local_s[at], base.parts.local_per_byte[at]
    stage_s, per_byte = base.parts.across_s[at], base.parts.across_per_byte[at]
    for holding in chain[:-1]:
        if not holding.local[0]:
            more = holding.parts.across_per_byte[at] > per_byte
            stage_s = np.where(more, holding.parts.across_s[at], stage_s)
            per_byte = np.where(more, holding.parts.across_per_byte[at], per_byte)
    return stage_s, per_byte


def ways_of(chain: Chain, stages: Floats, lean: bool) -> list[tuple[Way, int]]:
    """How pipelines go across, lean ones or any, by how many of the nests they leave, from the innermost."""
    base = chain[-1]
    fewest = base.visits if base.local[0] > 1 else 0
    least = np.minimum(np.maximum(np.ceil(stages / base.parts.largest) - 1, fewest), stages - 1)
    near, far = base.parts.hops[lean]
    whatever = Way(least, near, far)  # goes for all of them
    found = [(whatever, 0)]
    for nest, holding in enumerate((one for one in reversed(chain) if one.some), start=1):
        crossing = np.minimum(float(holding.visits), stages - 1)
        if holding is base:
            crossing = np.maximum(crossing, least)
        way = max(Way(crossing, near, holding.parts.hops[lean][1]), whatever, key=Way.more_s)
        if holding.local[0] > 1:
            whatever, found = way, [(way, nest)]
        elif holding.outside[1]:
            found.append((way, nest))
    return found


def nests_of(chain: Chain, replicas: Floats) -> list[Nest]:
    """The parts that have local blocks, from the innermost."""
    return [
        Nest(holding.parts.fastest(replicas, holding.local)[0], holding.outside[1])
        for holding in reversed(chain)
        if holding.some
    ]
