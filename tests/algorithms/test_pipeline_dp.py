"""Oracle: every pipeline of the stock, every order of its stages, every split of the items."""

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pytest

from hetsched.algorithms.pipeline_dp import FIRST, LAST, MIDDLE, ONLY, Line, PipelineProgramme
from hetsched.algorithms.pipeline_limits import best_pipelines
from tests.bound.enumerate_plans import compositions

COUNTS = [(2, 1), (3,), (1, 1, 1), (2, 2), (4,), (1, 3), (2, 1, 1)]


def programme(
    rng: np.random.Generator, whole: bool, stages: int | None = None, trips: bool = False
) -> PipelineProgramme:
    """A random one; whole: small whole numbers, so that ties happen and sums are exact."""
    counts = COUNTS[int(rng.integers(len(COUNTS)))]
    types = [(kind, width) for kind, count in enumerate(counts) for width in range(1, count + 2)]
    types = [types[g] for g in sorted(rng.permutation(len(types))[: 1 + int(rng.integers(len(types)))])]
    size, items, depth = len(types), int(rng.integers(1, 8)), sum(counts)

    def draw(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.integers(low, high, shape).astype(float) if whole else rng.uniform(low, high, shape)

    most = rng.integers(0, items + 2, (4, 1, size)) + rng.integers(0, 2, (4, depth, size)) * (items // 2)
    if rng.integers(2):
        most = np.full((4, depth, size), items)
    hops = draw(0, 4, size, size) * float(rng.choice([0, 0, 1]))
    none = rng.uniform(size=(size, size)) < 0.1
    return PipelineProgramme(
        counts=counts,
        kinds=[kind for kind, _ in types],
        widths=[width for _, width in types],
        items=items,
        item_s=draw(0, 5, size),
        base_s=draw(0, 3, 4, size) * float(rng.integers(2)),
        most=np.minimum(np.sort(most, axis=1)[:, ::-1], items),
        through_s=np.where(none, np.inf, hops),
        held_s=np.where(none, np.inf, hops * float(rng.integers(2))),
        busy_s=np.where(none, np.inf, hops * float(rng.choice([0.0, 0.5, 3.0]))),
        trips=trips,
        stages=stages,
    )


def lines(of: PipelineProgramme) -> Iterator[Line]:
    """Every pipeline that fits."""
    for depth in range(1, min(sum(of.counts), of.items) + 1):
        if of.stages not in (None, depth):
            continue
        for types in product(range(len(of.kinds)), repeat=depth):
            used = [sum(of.widths[g] for g in types if of.kinds[g] == kind) for kind in range(len(of.counts))]
            if any(use > count for use, count in zip(used, of.counts, strict=True)):
                continue
            hops = list(pairwise(types))
            if any(np.isinf(of.through_s[hop]) for hop in hops):
                continue
            for split in compositions(of.items, depth):
                line = line_of(of, types, split)
                if line is not None:
                    yield line


def line_of(of: PipelineProgramme, types: tuple[int, ...], split: tuple[int, ...]) -> Line | None:
    times: list[float] = []
    hops: list[float] = []
    last = len(types) - 1
    for s, (g, count) in enumerate(zip(types, split, strict=True)):
        role = {(True, True): ONLY, (True, False): FIRST, (False, True): LAST}.get((s == 0, s == last), MIDDLE)
        if count > of.most[role, last - s, g]:
            return None
        here = float(of.base_s[role, g] + count * of.item_s[g])
        times.append(here + (of.held_s[g, types[s + 1]] if s < last else 0.0))
        hops.append(here + (of.through_s[g, types[s + 1]] if s < last else 0.0))
    busy = [of.busy_s[hop] for hop in pairwise(types)]
    own = [hops[s] - (of.through_s[types[s], types[s + 1]] if s < last else 0.0) for s in range(last + 1)]
    trips = [(sum(hops[s:u]) + own[u]) / (u - s + 1) for s in range(last + 1) for u in range(s, last + 1) if of.trips]
    return Line(types, split, float(sum(hops)), float(max(times + busy + trips)))


@pytest.mark.parametrize("block", range(10))
def test_equals_every_pipeline(block: int) -> None:
    """400 instances; for each, several numbers of rounds."""
    some = none = deep = 0
    for seed in range(40 * block, 40 * block + 40):
        rng = np.random.default_rng(seed)
        stages = int(rng.integers(1, 4)) if rng.integers(4) == 0 else None
        of = programme(rng, whole=bool(seed % 2), stages=stages)
        every = list(lines(of))
        for repeats in (1, 2, 7, 1000):
            found = best_pipelines(of, repeats)
            if not every:
                assert found == []
                none += 1
                continue
            best = min(line.seconds(repeats) for line in every)
            assert min(line.seconds(repeats) for line in found) == pytest.approx(best, rel=1e-12)
            for line in found:
                same = line_of(of, line.types, line.items)
                assert same is not None
                assert (line.sum_s, line.largest_s) == pytest.approx((same.sum_s, same.largest_s), rel=1e-12)
                assert not any(
                    other.sum_s < line.sum_s - 1e-9 and other.largest_s <= line.largest_s + 1e-12 for other in every
                )
            some += 1
            deep += any(len(line.types) > 2 for line in found)
    assert some > 40
    assert none > 0
    assert deep > 10


@pytest.mark.parametrize("block", range(5))
def test_round_trips(block: int) -> None:
    """150 instances: the least pace is exact; the best time of a number of rounds is mostly, and nearly."""
    gaps = []
    for seed in range(30 * block, 30 * block + 30):
        of = programme(np.random.default_rng(seed), whole=bool(seed % 2), trips=True)
        every = list(lines(of))
        if not every:
            assert best_pipelines(of, 5) == []
            continue
        found = best_pipelines(of, 10**6)
        assert min(line.largest_s for line in found) == pytest.approx(min(line.largest_s for line in every), rel=1e-7)
        for line in found:
            same = line_of(of, line.types, line.items)
            assert same is not None
            assert (line.sum_s, line.largest_s) == pytest.approx((same.sum_s, same.largest_s), rel=1e-12)
        for repeats in (1, 3, 9, 40):
            best = min(line.seconds(repeats) for line in every)
            if best > 0.0:
                gaps.append(min(line.seconds(repeats) for line in best_pipelines(of, repeats)) / best - 1)
    assert min(gaps) > -1e-8
    assert max(gaps) < 0.02
    assert np.mean(np.array(gaps) < 1e-7) >= 0.97
