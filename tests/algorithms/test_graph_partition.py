"""Oracles: every partition up to 9 nodes, every exchange round a cycle, networkx's Kernighan-Lin at 64 nodes."""

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetsched.algorithms.graph_partition import (
    Objective,
    cut,
    grow,
    hierarchical_order,
    improve,
    inside_weight,
    partition,
    spectral_order,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

OBJECTIVES: list[Objective] = ["bottleneck", "sum"]


def plain_inside_weight(weight: Floats, labels: Ints, objective: Objective) -> float:
    nodes = range(len(weight))
    rows = [sum(weight[i, j] for j in nodes if j != i and labels[i] == labels[j]) for i in nodes]
    return float(sum(rows) if objective == "sum" else max(rows))


def every_partition(sizes: list[int], nodes: frozenset[int]) -> Iterator[list[tuple[int, ...]]]:
    if not sizes:
        yield []
        return
    for group in combinations(sorted(nodes), sizes[0]):
        for rest in every_partition(sizes[1:], nodes - set(group)):
            yield [group, *rest]


def brute_force(weight: Floats, sizes: list[int], objective: Objective) -> float:
    return min(
        inside_weight(weight, cut(np.array([i for group in groups for i in group]), sizes), objective)
        for groups in every_partition(sizes, frozenset(range(len(weight))))
    )


def cities(n: int, count: int, seed: int) -> Floats:
    """Distances between points that stand close about a few places, in no order."""
    rng = np.random.default_rng(seed)
    place = rng.random((count, 2))[rng.permutation(n) % count] + 0.01 * rng.random((n, 2))
    distance: Floats = np.linalg.norm(place[:, None] - place[None], axis=2)
    return distance


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sizes", [[3, 3, 3], [2, 2, 2, 2], [4, 5], [4, 3, 2], [1, 3, 4], [6], [1, 1, 1]], ids=str)
def test_finds_the_best_of_every_partition(sizes: list[int], objective: Objective) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        weight = rng.random((sum(sizes), sum(sizes)))
        labels = partition(weight, sizes, rng, objective)
        assert np.bincount(labels).tolist() == sizes
        optimum = brute_force(weight, sizes, objective)
        assert inside_weight(weight, labels, objective) == pytest.approx(optimum, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    whole=st.booleans(),
    objective=st.sampled_from(OBJECTIVES),
)
def test_improving_never_harms_and_leaves_no_exchange_that_helps(
    sizes: list[int], seed: int, whole: bool, objective: Objective
) -> None:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    weight = rng.integers(0, 4, (n, n)).astype(float) if whole else rng.random((n, n))
    start = cut(rng.permutation(n), sizes)
    before = start.copy()
    labels = improve(weight, start, objective, longest_cycle=3)
    assert start.tolist() == before.tolist()
    assert np.bincount(labels, minlength=len(sizes)).tolist() == sizes
    value = inside_weight(weight, labels, objective)
    assert value == pytest.approx(plain_inside_weight(weight, labels, objective))
    assert value <= inside_weight(weight, start, objective) + 1e-9
    for length in (2, 3):
        for nodes in permutations(range(n), length):
            if len(set(labels[list(nodes)])) == length:
                moved = labels.copy()
                for node, target in pairwise((*nodes, nodes[0])):
                    moved[node] = labels[target]
                assert inside_weight(weight, moved, objective) >= value - 1e-9


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_longer_cycles_find_what_swaps_miss(objective: Objective) -> None:
    swaps: list[float] = []
    cycles: list[float] = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        weight = rng.lognormal(size=(24, 24))
        start = cut(rng.permutation(24), [4] * 6)
        for values, longest in ((swaps, 2), (cycles, 5)):
            values.append(inside_weight(weight, improve(weight, start, objective, longest_cycle=longest), objective))
    assert np.mean(cycles) < 0.97 * np.mean(swaps)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cities_are_told_apart(objective: Objective) -> None:
    weight = cities(64, 8, seed=4)
    labels = partition(weight, [8] * 8, np.random.default_rng(0), objective, starts=4)
    together = labels[:, None] == labels[None, :]
    assert weight[together].max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_two_halves_are_cut_no_worse_than_by_networkx(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bandwidth = rng.random((64, 64)) ** 3
    bandwidth = bandwidth + bandwidth.T
    np.fill_diagonal(bandwidth, 0.0)
    labels = partition(-bandwidth, [32, 32], rng, "sum")  # the most bandwidth inside is the least across
    halves = nx.community.kernighan_lin_bisection(nx.from_numpy_array(bandwidth), max_iter=100, seed=seed)
    across = bandwidth[labels == 0][:, labels == 1].sum()
    assert across <= nx.cut_size(nx.from_numpy_array(bandwidth), *halves, weight="weight")


def test_starts_have_the_sizes_asked_for() -> None:
    weight = cities(20, 4, seed=1)
    sizes = [7, 1, 4, 8]
    for order in (spectral_order(weight), hierarchical_order(weight)):
        assert sorted(order) == list(range(20))
        assert np.bincount(cut(order, sizes)).tolist() == sizes
    assert np.bincount(grow(weight, sizes, np.random.default_rng(0))).tolist() == sizes


def test_equal_seeds_give_equal_partitions() -> None:
    weight = np.random.default_rng(1).random((20, 20))
    first, second = (partition(weight, [5] * 4, np.random.default_rng(2), starts=5) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_wrong_arguments_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        partition(np.zeros((2, 3)), [2], rng)
    with pytest.raises(ValueError, match="add up to 4"):
        partition(np.zeros((4, 4)), [2, 3], rng)
    with pytest.raises(ValueError, match="inf or nan"):
        improve(np.full((2, 2), np.inf), np.array([0, 1]))
