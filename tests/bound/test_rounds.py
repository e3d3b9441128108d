"""The most micro-batches of a pipeline against all its splits, played; and of several against every way to share."""

from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from scipy.optimize import linprog

from hetsched.bound.capacity import Kind, Line, Nest, can_do
from hetsched.bound.duality import can_reach
from hetsched.bound.links import Hop
from hetsched.bound.rounds import Blocks, Reductions, Way, most_in_rounds
from hetsched.bound.speeds import Make, SpeedLevel
from hetsched.cost.compute import StageWork
from hetsched.cost.schedule import Hop as PlayedHop
from hetsched.cost.schedule import play
from tests.bound.enumerate_plans import compositions

BLOCKS = 7


def least_s(blocks: Blocks, depth: int, ahead: int, hops: tuple[Hop, Hop], reductions: Reductions, count: int) -> float:
    """The shortest time of all splits of the blocks and all places of the far hops, on the fastest teams."""
    stage_s, block_s, tied_s = (float(x[0]) for x in (reductions.stage_s, reductions.block_s, reductions.tied_s))
    best = np.inf
    for sizes in compositions(blocks.count, depth):
        extra = [0.0] * depth
        extra[0] += blocks.first
        extra[-1] += blocks.last
        works = [
            StageWork(
                size * blocks.forward_s + more * blocks.both_s / 3,
                size * blocks.backward_s + more * blocks.both_s / 1.5,
            )
            for size, more in zip(sizes, extra, strict=True)
        ]
        for far in product((False, True), repeat=depth - 1):
            if sum(far) != ahead:
                continue
            links = [PlayedHop(0.0, hops[k].forward_s, 0.0, hops[k].backward_s) for k in map(int, far)]
            ends = play("1f1b", works, links, count)
            reduced = [end + stage_s + block_s * size for end, size in zip(ends, sizes, strict=True)]
            best = min(best, max(*reduced, reduced[0] + tied_s, reduced[-1] + tied_s))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_no_split_does_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    forward_s, backward_s = float(rng.uniform(0.5, 1)), float(rng.uniform(1, 2))
    first, last = rng.uniform(0, 2, 2).tolist()
    blocks = Blocks(BLOCKS, forward_s + backward_s, forward_s, backward_s, first, last)
    hop_s = rng.uniform(0, rng.choice([0.5, 5]), 2)
    far_s = hop_s + rng.uniform(0, 5, 2)
    near, far = (Hop(float(there), float(back), 0.0) for there, back in (hop_s, far_s))
    stage_s, block_s = rng.uniform(0, rng.choice([1, 20]), (2, 1))
    reductions = Reductions(stage_s, block_s, np.zeros(1), rng.uniform(0, 9, 1))
    for depth, count in product((1, 2, 3, 5), (1, 2, 4, 7, 12)):
        ahead = int(rng.integers(depth))
        args = blocks, np.array([float(depth)]), [Way(np.array([float(ahead)]), near, far)], reductions, 64
        end_s = least_s(blocks, depth, ahead, (near, far), reductions, count)
        assert most_in_rounds(end_s, *args)[0][0, 0] >= count  # a split does so many by then
        assert most_in_rounds(0.6 * end_s, *args)[0][0, 0] < count  # and it is not far from what is best


@pytest.mark.parametrize("seed", range(8))
def test_shares_of_speed(seed: int) -> None:
    """Pipelines at all speeds of a grid, of three kinds: what any of them do together is not refused.

    Those that leave a nest have one stage outside it at most, of the fastest team.
    """
    rng = np.random.default_rng(seed)
    stages, every, replicas, team = np.array([1.0, 2.0, 3.0]), 12.0, 3, 2.5
    level = SpeedLevel(1.0, np.full(6, every / 6), np.ones(6), team, 0.1, 0.0, 0.0, ())
    inside = np.sort(rng.uniform(2, 10, 2))

    def make(waste: float) -> Make:
        return Make(team, 1.0, waste, 0.0, 0.1, 0.1, 0.0, 0.0)

    def kind(nest: int) -> Kind:
        lines = [
            Line(rng.uniform(-2, 1, (1, 3)), rng.uniform(0.5, 2, (1, 3))),
            Line(np.zeros((1, 3)), rng.uniform(0.5, 2, (1, 3))),
        ]
        return Kind(lines, rng.integers(1, 9, (1, 3)).astype(np.float64), make(float(rng.uniform(0, 1))), nest)

    kinds = [kind(0), replace(kind(1), make=make(0.0)), kind(2)]
    choices = []  # speed used of both nests and of all, micro-batches
    for one in kinds:
        for column, depth in enumerate(stages):
            for speed in np.linspace(depth, team * depth, 9):
                count = min(
                    one.cap[0, column], *(float(line.at(np.full((1, 3), speed))[0, column]) for line in one.lines)
                )
                if count >= 1:
                    used = [speed + one.make.waste] * 3
                    used[: one.nest] = [max(0.0, speed - team)] * one.nest
                    choices.append((used, count))
    limits = np.array([*inside, every])
    most = max(
        (
            sum(count for _, count in chosen)
            for chosen in combinations_with_replacement(choices, replicas)
            if (np.sum([used for used, _ in chosen], axis=0) <= limits).all()
        ),
        default=0.0,
    )
    args, nests = (kinds, stages, level, np.array([float(replicas)])), [Nest(speed[None], 1) for speed in inside]
    for roughly in (False, True):
        assert most == 0 or can_do(*args, most, nests, False, roughly)[0]
        assert not can_do(*args, 25.0, nests, False, roughly)[0]  # more than all caps together


@pytest.mark.parametrize("seed", range(20))
def test_what_can_be_reached(seed: int) -> None:
    """Against HiGHS."""
    rng = np.random.default_rng(seed)
    things, rows = int(rng.integers(1, 40)), int(rng.integers(1, 5))
    gains, uses = rng.uniform(1, 9, things).round(), rng.uniform(0, 3, (rows, things)).round()
    limits, total = rng.uniform(0, 12, rows), float(rng.integers(1, 7))
    best = linprog(-gains, A_ub=uses, b_ub=limits, A_eq=np.ones((1, things)), b_eq=[total])
    if best.status == 2:
        assert not can_reach(gains, uses, limits, total, 1e-6)
    else:
        assert best.x is not None
        most = float(gains @ best.x)
        assert can_reach(gains, uses, limits, total, most * (1 - 1e-9))
        assert not can_reach(gains, uses, limits, total, most * (1 + 1e-6))
