"""How many micro-batches a pipeline of S stages can do by a time T, with the filling and draining of its schedule.

Stage s holds l_s blocks (at least one, L in all) and works w_s = f_s + b_s a micro-batch; its hop takes u_s there and
d_s back; m micro-batches; C = sum w_s + H, H = sum (u_s + d_s). W, f, b: the least seconds of a block (both passes,
forward, backward) on any team; a + g l_s: of a stage's all-reduce.

1F1B. Stage 0 begins forward i + S after backward i ends, so forward k S begins after k C. Write m = k S + n, n >= 1.
From there it takes sum_{j < s} (f_j + u_j) to reach stage s, which still has n forwards to do, and n backwards; if
k >= 1 also the S - 1 - s backwards that 1F1B keeps it behind. Then it all-reduces:
    T >= k C + sum_{j < s} (f_j + u_j) + n w_s + (S - 1 - s) b_s + g l_s + a     (+ e if s = S - 1),        (here)
where e is the all-reduce of a tied embedding, which comes last; or its last gradient goes up to stage 0:
    T >= k C + sum_{j < s} (w_j + u_j + d_j) + n w_s + (S - 1 - s) b_s + g l_0 + a + e.                      (up)
Take the second theta times and the first 1 - theta times, and each s with a weight p_s, sum p_s = 1. A block on stage
j then counts p_j x_j + c (sum of p_s, s > j), where x_j = n W + (S - 1 - j) b + (1 - theta) g and
c = theta W + (1 - theta) f. All blocks count y alike if, from the last stage on, p_j = (y - c A_j) / x_j with
A_j = sum_{s > j} p_s. So with P_i the product of 1 - c / x over the i last stages,
    c A_j = y (1 - P_{S - 1 - j}),     y = c / (1 - P_S),
and T >= k C + y L + sum_j A_j (u_j + theta d_j) + ..., wherever the blocks are. Hops that must be far ones are so at
the end at best, where A_j is least. More micro-batches never end sooner, so if this is over T for k S + n, fewer fit.

GPipe. All forwards come first. Forward m goes down to stage s with m forwards there, on to the end, and its gradient up
with m backwards at any stage: T >= C + (m - 1) w_s + q for all s, so too with the mean of w_s; and a link that carries
m messages there and m back adds (m - 1) times both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetsched.bound.links import Hop
from hetsched.cluster import Floats

THETAS = np.array([0.0, 0.5, 1.0])
EVERY = 12  # remainders n up to this are all tried, then ever fewer
COARSER = 1.12
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many blocks there are, and the least seconds of one; first, last: embedding and head, as so many blocks."""

    count: int
    both_s: float
    forward_s: float
    backward_s: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Way:
    """How pipelines go across parts: at least so often, (S,); the hops inside a part and across."""

    crossing: Floats
    near: Hop
    far: Hop

    def more_s(self) -> float:
        """What going across takes more, there and back, of the deepest pipelines."""
        near, far = self.near, self.far
        return float(self.crossing[-1]) * (far.forward_s + far.backward_s - near.forward_s - near.backward_s)


@dataclass(frozen=True, slots=True)
class Reductions:
    """The least seconds of all-reduces, (n,) by number of pipelines.

    stage_s: of a stage, and block_s: of each of its blocks more; further_s: what all blocks of a pipeline take more
    than that; tied_s: of the tied embedding.
    """

    stage_s: Floats
    block_s: Floats
    further_s: Floats
    tied_s: Floats


def remainders(most: int) -> Floats:
    """The n to try, up to `most`."""
    found, at = set(), 1.0
    while at <= most:
        found.add(int(at))
        at = at + 1 if at < EVERY else at * COARSER
    return np.array(sorted(found), dtype=np.float64)


def most_in_rounds(
    end_s: float,
    blocks: Blocks,
    stages: Floats,
    ways: Sequence[Way],
    reductions: Reductions,
    micro_batches: int,
) -> list[Floats]:
    """For each way across, (n, S): the most micro-batches, by number of pipelines and of stages, in 1F1B.

    stages: (S,). More than `micro_batches` are not told apart.
    """
    stage_s, block_s, further_s, tied_s = (
        times[:, None, None]
        for times in (reductions.stage_s, reductions.block_s, reductions.further_s, reductions.tied_s)
    )
    depth = int(stages.max())
    back = np.arange(depth)  # stages from the last one on
    at = stages.astype(np.intp) - 1
    count = remainders(micro_batches)[:, None]
    theta, behind_s = THETAS[:, None, None, None, None], np.array([0.0, blocks.backward_s])[:, None, None, None]
    share = theta * blocks.both_s + (1 - theta) * blocks.forward_s
    x = count * blocks.both_s + back * behind_s + (1 - theta) * block_s  # (thetas, k = 0 and k >= 1, n, counts, back)
    product = np.cumprod(1 - share / x, axis=-1)
    taken = 1 - product
    sums = np.concatenate([np.zeros((*taken.shape[:-1], 1)), np.cumsum(taken, axis=-1)], axis=-1)
    before = np.where(at > 0, product[..., at - 1], 1.0)  # P of all stages but the first
    own = x[..., at]
    with np.errstate(divide="ignore"):
        each_s = share * np.minimum(1 / (1 - before), (1 + theta * block_s / own) / taken[..., at])
    first = np.maximum(each_s * before - theta * block_s, 0.0) / own  # p of the first stage
    last = np.where(at > 0, each_s / x[..., :1], first)
    first_s = first * count * blocks.both_s + theta * blocks.both_s * (1 - first)
    rest = each_s * blocks.count + last * count * blocks.both_s * blocks.last + first_s * blocks.first
    rest += stage_s + theta * tied_s + (1 - theta) * (last * tied_s + np.minimum(first, last) * further_s)
    rest += np.maximum(first * own + share * (1 - first) + theta * block_s - each_s, 0.0)
    hop_weight, found = each_s / share, []
    all_hops = sums[..., at] * hop_weight
    for way in ways:
        near, ahead = way.near, np.minimum(way.crossing, stages - 1).astype(np.intp)
        far_forward_s, far_backward_s = way.far.forward_s - near.forward_s, way.far.backward_s - near.backward_s
        hop_s = (near.forward_s + near.backward_s) * (stages - 1) + (far_forward_s + far_backward_s) * ahead
        round_s = blocks.both_s * (blocks.count + blocks.first + blocks.last) + hop_s
        total = rest + (near.forward_s + theta * near.backward_s) * all_hops
        total += (far_forward_s + theta * far_backward_s) * sums[..., ahead] * hop_weight
        none, some = total[:, 0], total[:, 1]
        rounds = np.maximum(1.0, np.floor((end_s - some) / round_s * (1 + ROUNDING) + ROUNDING) + 1)
        fewer = np.minimum(np.where(none > end_s * (1 + ROUNDING), count - 1, np.inf), rounds * stages + count - 1)
        found.append(fewer.min(axis=(0, 2)))
    return found
