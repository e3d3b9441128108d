"""Oracles: every permutation up to 6 rows, networkx's bipartite matching by threshold at 12 to 64."""

from itertools import permutations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hetsched.algorithms.assignment import bottleneck_assignment, bottleneck_values, sum_assignment

Floats = NDArray[np.float64]

ELEMENTS = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, 7.25, np.inf])
SHAPES = st.tuples(st.integers(1, 6), st.integers(0, 2)).map(lambda s: (s[0], min(6, s[0] + s[1])))
COSTS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=ELEMENTS))


def every_assignment(cost: Floats) -> Floats:
    """The edges of every assignment: (assignments, n)."""
    n, m = cost.shape
    edges: Floats = cost[np.arange(n), np.array(list(permutations(range(m), n)))]
    return edges


def networkx_value(cost: Floats) -> float:
    """The least threshold below which networkx matches every row."""
    n = len(cost)
    thresholds = np.unique(cost)
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(n))
        graph.add_edges_from((int(i), int(n + j)) for i, j in np.argwhere(cost <= thresholds[middle]))
        matched = nx.bipartite.hopcroft_karp_matching(graph, top_nodes=range(n))
        low, high = (low, middle) if sum(i in matched for i in range(n)) == n else (middle + 1, high)
    return float(thresholds[low])


@settings(deadline=None, max_examples=200)
@given(cost=COSTS)
def test_equals_every_assignment(cost: Floats) -> None:
    rows = np.arange(len(cost))
    edges = every_assignment(cost)
    largest = edges.max(axis=1)
    for then_sum in (False, True):
        columns, value = bottleneck_assignment(cost, then_sum=then_sum)
        assert len(set(columns.tolist())) == len(cost)
        assert value == largest.min() == cost[rows, columns].max()
    if np.isfinite(value):
        assert cost[rows, columns].sum() == edges[largest == value].sum(axis=1).min()
    columns, total = sum_assignment(cost)
    assert total == edges.sum(axis=1).min() == cost[rows, columns].sum() or not np.isfinite(total)
    assert np.isfinite(total) == np.isfinite(edges.sum(axis=1).min())


@pytest.mark.parametrize("decimals", [1, 2, 15])
@pytest.mark.parametrize("shape", [(12, 12), (31, 31), (40, 64), (64, 64)])
def test_equals_networkx(shape: tuple[int, int], decimals: int) -> None:
    rng = np.random.default_rng(shape[0] + decimals)
    for skew in (0.0, 1.0):  # skewed: some rows are far from everything
        cost = np.round(rng.random(shape) + skew * rng.random((shape[0], 1)), decimals)
        columns, value = bottleneck_assignment(cost)
        assert len(set(columns.tolist())) == shape[0]
        assert cost[np.arange(shape[0]), columns].max() == value == networkx_value(cost)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 10, 12])
def test_many_at_once_equal_one_by_one(n: int) -> None:
    rng = np.random.default_rng(n)
    costs = rng.random((300, n, n))
    costs[::3] = np.round(costs[::3], 1)
    costs[::5][rng.random(costs[::5].shape) < 0.3] = np.inf
    assert bottleneck_values(costs).tolist() == [bottleneck_assignment(cost)[1] for cost in costs]


def test_empty_inputs() -> None:
    assert bottleneck_assignment(np.zeros((0, 3)))[1] == 0.0
    assert bottleneck_values(np.zeros((0, 4, 4))).shape == (0,)
    assert bottleneck_values(np.zeros((3, 0, 0))).tolist() == [0.0] * 3


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        bottleneck_assignment(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        sum_assignment(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\)"):
        bottleneck_values(np.zeros((1, 2, 3)))
    cost = np.zeros((3, 4))
    cost[1, 2] = np.nan
    for assignment in (bottleneck_assignment, sum_assignment):
        with pytest.raises(ValueError, match="nan"):
            assignment(cost)
    with pytest.raises(ValueError, match="nan"):
        bottleneck_values(np.full((1, 2, 2), np.nan))
