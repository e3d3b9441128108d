"""The most micro-batches of a pipeline against all its splits, played; and of several against every way to share."""

from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from hetsched.bound.capacity import Kind, Line, can_do
from hetsched.bound.links import Hop
from hetsched.bound.rounds import Blocks, Reductions, most_in_rounds
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
        args = blocks, np.array([float(depth)]), np.array([float(ahead)]), (near, far)
        end_s = least_s(blocks, depth, ahead, (near, far), reductions, count)
        assert most_in_rounds(end_s, *args, reductions, 64)[0, 0] >= count  # a split does so many by then
        assert most_in_rounds(0.6 * end_s, *args, reductions, 64)[0, 0] < count  # and it is not far from what is best


@pytest.mark.parametrize("seed", range(8))
def test_shares_of_speed(seed: int) -> None:
    """Pipelines at all speeds of a grid, of two kinds: what any of them do together is not refused."""
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
        return Kind(lines, rng.uniform(1, 8, (1, 3)), make(float(rng.uniform(0, 1))), nest)

    kinds = [kind(0), replace(kind(1), make=make(0.0)), kind(2)]
    choices = []  # speed with waste, nest, micro-batches
    for one in kinds:
        for column, depth in enumerate(stages):
            for speed in np.linspace(depth, team * depth, 9):
                count = min(
                    one.cap[0, column], *(float(line.at(np.full((1, 3), speed))[0, column]) for line in one.lines)
                )
                if count >= 1:
                    choices.append((speed + one.make.waste, one.nest, count))
    most = max(
        (
            sum(count for *_, count in chosen)
            for chosen in combinations_with_replacement(choices, replicas)
            if sum(speed for speed, *_ in chosen) <= every
            and sum(speed for speed, nest, _ in chosen if nest < 1) <= inside[0]
            and sum(speed for speed, nest, _ in chosen if nest < 2) <= inside[1]
        ),
        default=0.0,
    )
    args = kinds, stages, level, np.array([float(replicas)])
    assert most == 0 or can_do(*args, most, [inside[:1], inside[1:]], False)[0]
    assert not can_do(*args, 25.0, [inside[:1], inside[1:]], False)[0]  # more than all caps together
