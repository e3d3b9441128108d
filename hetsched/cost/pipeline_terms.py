"""What a dynamic programme over pipelines asks of a cost model: times and limits of stages and hops, as arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

ENDS = ((False, False), (True, False), (False, True), (True, True))  # by role: is it the first stage, is it the last?
MIDDLE, FIRST, LAST, ONLY = range(4)


@dataclass(frozen=True, eq=False)
class PipelineTerms:
    """Stages that G groups can be, and the hops between them.

    A stage of x blocks on group g in role r takes base_s[r, g] + x · block_s[g] of one micro-batch, forward and
    backward. block_s: (G,); base_s: (4, G), the roles being MIDDLE, FIRST, LAST, ONLY. most: (4, depth, G), how many
    blocks it can hold where so many stages follow it.

    A hop from group g to h adds through_s[g, h] to the way of a micro-batch; it holds up the stage that sends for
    held_s[g, h] of that; its link is busy for busy_s[g, h]; and it adds nothing to a pace of hidden_s[g, h] or slower.
    (G, G) each, inf where there is none. trips: whether 1F1B's round trips may set the pace.
    """

    block_s: Floats
    base_s: Floats
    most: Ints
    through_s: Floats
    held_s: Floats
    busy_s: Floats
    hidden_s: Floats
    trips: bool


def gather_terms(
    size: int,
    blocks: int,
    depth: int,
    stage_s: Callable[[int, int, bool, bool], float],
    most: Callable[[int, int, bool, bool], int],
    hop_s: Callable[[int, int], tuple[float, float, float, float] | None],
    trips: bool,
) -> PipelineTerms:
    """The terms of groups 0 to size - 1 for pipelines of at most `depth` stages.

    stage_s(group, blocks, first, last): seconds, linear in its blocks. most(group, stages behind, first, last).
    hop_s(a, b): (through, held, busy, hidden), or None where a and b can't stand side by side.
    """
    block_s = np.array([stage_s(g, 1, False, False) if blocks > 2 else 0.0 for g in range(size)])
    base_s = np.zeros((len(ENDS), size))
    room = np.zeros((len(ENDS), depth, size), dtype=np.intp)
    for role, (first, last) in enumerate(ENDS):
        count = blocks if first and last else 1
        if count > blocks - (not first) - (not last):
            continue
        for g in range(size):
            base_s[role, g] = stage_s(g, count, first, last) - count * block_s[g]
            room[role, :, g] = [most(g, 0 if last else behind, first, last) for behind in range(depth)]
    hops = np.full((4, size, size), inf)
    for a in range(size):
        for b in range(size):
            found = hop_s(a, b) if depth > 1 else None
            if found is not None:
                hops[:, a, b] = found
    return PipelineTerms(block_s, base_s, room, hops[0], hops[1], hops[2], hops[3], trips)
