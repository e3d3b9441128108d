"""Oracles: bottleneck_assignment on the matrix of devices, every matching, and the cost by the formula."""

from itertools import chain, pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetsched.algorithms.assignment import bottleneck_assignment
from hetsched.algorithms.layout_annealing import Walk, random_groups
from hetsched.algorithms.stage_layout import StageLayout, Weights, class_bottleneck, device_classes

Floats = NDArray[np.float64]

SEEDS = st.integers(0, 2**32)


def by_places(rng: np.random.Generator, n: int, places: int, values: int) -> Floats:
    """(n, n), directed: devices of one place are alike; where `values` is not 0, edges are that many whole numbers."""
    shape = (places, places)
    edge = rng.integers(1, 1 + values, shape).astype(float) if values else rng.uniform(0.1, 1, shape)
    place = rng.integers(places, size=n)
    matrix: Floats = edge[np.ix_(place, place)]
    np.fill_diagonal(matrix, rng.choice([0.0, np.inf]))  # not to be read
    return matrix


def every_matching(edges: Floats) -> float:
    rows = range(len(edges))
    return min(
        max(float(edges[row, column]) for row, column in zip(rows, columns, strict=True))
        for columns in permutations(rows)
    )


def plain_datap(within: Floats, group: list[int]) -> float:
    return max(float(sum(within[a, b] for b in group if b != a)) for a in group)


def plain_cost(layout: StageLayout, groups: list[list[int]]) -> float:
    """The cost of ordered groups of devices by the module's formula."""
    hops = [bottleneck_assignment(layout.between[np.ix_(a, b)])[1] for a, b in pairwise(groups)]
    cost = max(plain_datap(layout.within, group) for group in groups) + layout.weights.hop * sum(hops)
    return cost + layout.weights.peak * max(0.0, max(hops, default=0.0) - layout.weights.peak_floor)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), seed=SEEDS, values=st.sampled_from([0, 1, 2, 4, 9]))
def test_bottleneck_of_classes_is_that_of_their_devices(data: Any, seed: int, values: int) -> None:
    needs = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    total, rooms = sum(needs), []
    while total:
        rooms.append(data.draw(st.integers(1, total)))
        total -= rooms[-1]
    rng = np.random.default_rng(seed)
    shape = (len(needs), len(rooms))
    edges = rng.integers(0, values, shape).astype(float) if values else rng.random(shape)
    devices = edges[np.ix_(np.repeat(np.arange(len(needs)), needs), np.repeat(np.arange(len(rooms)), rooms))]
    given_needs, given_rooms = list(needs), list(rooms)
    found = class_bottleneck(edges.tolist(), given_needs, given_rooms)
    assert found == bottleneck_assignment(devices)[1]
    if sum(needs) <= 6:
        assert found == every_matching(devices)
    assert (given_needs, given_rooms) == (needs, rooms)


@pytest.mark.parametrize("places", [2, 5, 14])
def test_hop_and_group_cost_are_those_of_the_devices(places: int) -> None:
    """14 places: groups of more classes than are listed, so that the matrix of devices takes over."""
    for seed in range(12):
        rng = np.random.default_rng([places, seed])
        size = 13 if places == 14 else int(rng.integers(1, 6))
        n = 2 * size + int(rng.integers(0, 4))
        layout = StageLayout(by_places(rng, n, places, 0), by_places(rng, n, n, seed % 3 * 4), 2, size)
        order = rng.permutation(n)
        a, b = order[:size].tolist(), order[size : 2 * size].tolist()
        source, target = (layout.key(layout.class_of[group].tolist()) for group in (a, b))
        for _ in range(2):  # worked out, then remembered
            assert layout.hop(source, target) == bottleneck_assignment(layout.between[np.ix_(a, b)])[1]
            assert layout.hop(target, source) == bottleneck_assignment(layout.between[np.ix_(b, a)])[1]
            assert layout.group_cost(source) == pytest.approx(plain_datap(layout.within, a), rel=1e-12)


def test_many_classes_a_side_take_the_matrix_of_devices() -> None:
    rng = np.random.default_rng(4)
    layout = StageLayout(rng.random((24, 24)), rng.random((24, 24)), 2, 12)
    assert len(layout.members_of) == 24
    groups = [list(range(12)), list(range(12, 24))]
    hop = layout.hop(*map(layout.key, groups))
    assert hop == bottleneck_assignment(layout.between[:12, 12:])[1]


@settings(deadline=None, max_examples=150)
@given(n=st.integers(1, 8), places=st.integers(1, 4), values=st.integers(1, 3), seed=SEEDS)
def test_devices_are_of_a_class_where_exchanging_them_changes_no_matrix(
    n: int, places: int, values: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrices = [by_places(rng, n, places, values) for _ in range(2)]
    found = device_classes(*matrices)
    apart = ~np.eye(n, dtype=bool)
    for a in range(n):
        for b in range(a):
            swapped = np.arange(n)
            swapped[[a, b]] = b, a
            alike = all(np.array_equal(m[np.ix_(swapped, swapped)][apart], m[apart]) for m in matrices)
            assert (found[a] == found[b]) == alike
    assert sorted(set(found.tolist())) == list(range(found.max() + 1))


def test_keys_and_compositions() -> None:
    layout = StageLayout(np.ones((7, 7)), np.arange(49.0).reshape(7, 7), 2, 3)
    assert layout.composition(layout.key([5, 0, 5, 2])) == [(0, 1), (2, 1), (5, 2)]
    assert layout.composition(layout.key([])) == []
    alike = StageLayout(np.ones((7, 7)), np.ones((7, 7)), 1, 7)
    assert alike.composition(alike.key([0] * 7)) == [(0, 7)]
    assert alike.group_cost(alike.key([0] * 7)) == 6.0


def random_layout(seed: int) -> tuple[StageLayout, np.random.Generator]:
    rng = np.random.default_rng(seed)
    groups, size, idle = (int(x) for x in rng.integers([1, 1, 0], [6, 5, 4]))
    n, places = groups * size + idle, int(rng.integers(1, 6))
    place = rng.integers(places, size=n)
    shape = (places, places)
    within, between = (rng.choice([1.0, 2.0, 3.5], shape) if seed % 2 else rng.random(shape) for _ in range(2))
    weights = Weights(2.0, 5.0, 0.4) if seed % 3 == 0 else Weights()
    layout = StageLayout(within[np.ix_(place, place)], between[np.ix_(place, place)], groups, size, weights)
    return layout, rng


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_a_walk_knows_its_cost_and_its_plans_are_worth_it(seed: int) -> None:
    layout, rng = random_layout(seed)
    start = random_groups(layout, rng)
    walk = Walk(layout, start)
    counts = np.bincount(layout.class_of, minlength=len(layout.members_of)).tolist()
    met = walk.cost
    for moves in (1, 2, 30, 200):
        walk.run(rng, moves, walk.cost * 0.3, walk.cost * 0.003)
        met = min(met, walk.cost)
        keys = [layout.key(group) for group in walk.groups]
        assert walk.keys == keys
        assert walk.cost == pytest.approx(layout.cost(keys[: layout.num_groups]), rel=1e-12)
        assert [len(group) for group in walk.groups] == [len(group) for group in start]
        assert np.bincount(list(chain.from_iterable(walk.groups)), minlength=len(counts)).tolist() == counts
    assert walk.best_cost <= met * (1 + 1e-12)  # a gain of rounding is none
    devices = layout.expand(walk.best)
    assert sorted(chain.from_iterable(devices)) == list(range(len(layout.class_of)))
    assert [sorted(layout.class_of[group].tolist()) for group in devices] == [sorted(group) for group in walk.best]
    used = devices[: layout.num_groups]
    assert walk.best_cost == pytest.approx(plain_cost(layout, used), rel=1e-12)

    ordered = layout.match(used)
    assert [sorted(group) for group in ordered] == [sorted(group) for group in used]
    for a, b in pairwise(ordered):
        edges = layout.between[np.ix_(a, b)]
        value = bottleneck_assignment(edges)[1]
        assert edges.diagonal().max() == value
        if len(a) <= 4:
            rows = range(len(a))
            sums = [
                sum(edges[row, column] for row, column in zip(rows, columns, strict=True))
                for columns in permutations(rows)
                if max(edges[row, column] for row, column in zip(rows, columns, strict=True)) <= value
            ]
            assert edges.diagonal().sum() == pytest.approx(min(sums))


def test_a_walk_moves_runs_of_groups_and_idle_devices() -> None:
    """From two blocks of alike groups to the optimum, which needs all of that; the walk has met it when it is cold."""
    n, groups, size = 14, 4, 3
    place = np.arange(n) % 2
    near = np.where(place[:, None] == place[None], 0.1, 1.0)
    layout = StageLayout(near, near, groups, size)
    walk = Walk(layout, [[0, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1]])
    walk.run(np.random.default_rng(0), 4000, 0.5, 0.005)
    devices = [np.flatnonzero(place == c).tolist() for c in (0, 1)]
    best = [devices[0][:3], devices[0][3:6], devices[1][:3], devices[1][3:6]]
    mixed = [[*devices[0][2 * k : 2 * k + 2], devices[1][k]] for k in range(3)] + [[devices[0][6], *devices[1][3:5]]]
    optimum = min(plain_cost(layout, best), plain_cost(layout, mixed))
    assert walk.best_cost == pytest.approx(optimum)


def test_equal_generators_walk_alike() -> None:
    layout, _ = random_layout(7)
    ends = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        walk = Walk(layout, random_groups(layout, rng))
        walk.run(rng, 300, 1.0, 0.01)
        ends.append((walk.groups, walk.cost, walk.best))
    assert ends[0] == ends[1]


def test_nothing_to_move() -> None:
    layout = StageLayout(np.zeros((1, 1)), np.zeros((1, 1)), 1, 1)
    walk = Walk(layout, [[0]])
    walk.run(np.random.default_rng(0), 50, 1.0, 0.1)
    assert (walk.best, walk.best_cost, layout.match([[0]])) == ([[0]], 0.0, [[0]])
