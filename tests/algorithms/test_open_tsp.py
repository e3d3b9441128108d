"""Oracles: every permutation up to 7 nodes, held_karp at 12 to 16, OR-Tools' routing solver at 24 to 40."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from ortools.constraint_solver import pywrapcp, routing_enums_pb2

from hetsched.algorithms.open_tsp import held_karp, local_search, open_tsp, path_length

Floats = NDArray[np.float64]

COSTS = st.integers(1, 7).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.25, 1e-3, np.inf]))
)


def brute_force(cost: Floats, start: int | None) -> float:
    orders = np.array([o for o in permutations(range(len(cost))) if start is None or o[0] == start])
    return float(cost[orders[:, :-1], orders[:, 1:]].sum(axis=1).min())


def instance(n: int, kind: str, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    if kind == "asymmetric":
        return rng.random((n, n))
    place = rng.random((n, 2))
    distance: Floats = np.linalg.norm(place[:, None] - place[None], axis=2)
    if kind == "uneven":  # a plane with a wind: the way back costs more
        distance = distance * (1.0 + 0.5 * (place[:, None, 0] > place[None, :, 0]))
    return distance


def ortools_length(cost: Floats) -> float:
    """The length of the routing solver's path, found by its default local search from the cheapest arcs."""
    n = len(cost)
    scaled = np.zeros((n + 1, n + 1), dtype=np.int64)
    scaled[:n, :n] = np.round(cost * 1e6)
    manager = pywrapcp.RoutingIndexManager(n + 1, 1, n)
    routing = pywrapcp.RoutingModel(manager)
    transit = routing.RegisterTransitMatrix(scaled.tolist())
    routing.SetArcCostEvaluatorOfAllVehicles(transit)
    parameters = pywrapcp.DefaultRoutingSearchParameters()
    parameters.first_solution_strategy = routing_enums_pb2.FirstSolutionStrategy.PATH_CHEAPEST_ARC
    return float(routing.SolveWithParameters(parameters).ObjectiveValue()) / 1e6


@pytest.mark.parametrize("kind", ["asymmetric", "euclidean", "uneven"])
@pytest.mark.parametrize("n", range(1, 8))
def test_held_karp_equals_every_permutation(n: int, kind: str) -> None:
    cost = instance(n, kind, seed=n)
    for start in [None, *range(n)]:
        order, length = held_karp(cost, start)
        assert sorted(order) == list(range(n))
        assert start is None or order[0] == start
        assert length == pytest.approx(path_length(cost, order), rel=1e-12)
        assert length == pytest.approx(brute_force(cost, start), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(cost=COSTS, fixed=st.booleans(), seed=st.integers(0, 99))
def test_ties_and_forbidden_hops(cost: Floats, fixed: bool, seed: int) -> None:
    np.fill_diagonal(cost, np.inf)
    start = seed % len(cost) if fixed else None
    order, length = held_karp(cost, start)
    assert length == pytest.approx(brute_force(cost, start), rel=1e-12)
    assert path_length(cost, order) == length or not np.isfinite(length)
    found, found_length = local_search(cost, np.random.default_rng(seed), start, restarts=8)
    assert sorted(found) == list(range(len(cost)))
    assert start is None or found[0] == start
    assert found_length == pytest.approx(path_length(cost, found), rel=1e-12)
    assert found_length >= length * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["asymmetric", "euclidean", "uneven"])
@pytest.mark.parametrize("n", [12, 14, 16])
def test_local_search_is_within_one_percent_of_the_optimum(n: int, kind: str) -> None:
    for seed in range(3):
        cost = instance(n, kind, seed)
        start = None if seed == 0 else seed
        optimum = held_karp(cost, start)[1]
        order, length = local_search(cost, np.random.default_rng(seed), start)
        assert length == path_length(cost, order)
        assert optimum * (1 - 1e-12) <= length <= optimum * 1.01


@pytest.mark.parametrize("kind", ["asymmetric", "euclidean", "uneven"])
@pytest.mark.parametrize("n", [24, 40])
def test_local_search_is_no_longer_than_the_routing_solver(n: int, kind: str) -> None:
    cost = instance(n, kind, seed=n)
    order, length = open_tsp(cost, np.random.default_rng(1))
    assert sorted(order) == list(range(n))
    assert length <= ortools_length(cost) * 1.0001


def test_a_path_without_forbidden_hops_is_found() -> None:
    rng = np.random.default_rng(3)
    cost = np.full((24, 24), np.inf)
    hidden = rng.permutation(24)
    cost[hidden[:-1], hidden[1:]] = 1.0
    free = rng.random((24, 24)) < 0.3
    cost[free] = 2.0
    assert np.isfinite(local_search(cost, rng)[1])


def test_equal_seeds_give_equal_paths() -> None:
    cost = instance(20, "asymmetric", seed=5)
    first, second = (local_search(cost, np.random.default_rng(7), restarts=4) for _ in range(2))
    assert first[0].tolist() == second[0].tolist()
    assert first[1] == second[1]


def test_the_diagonal_is_not_read() -> None:
    cost = instance(10, "asymmetric", seed=2)
    expected = held_karp(cost)[1]
    np.fill_diagonal(cost, -5.0)
    assert held_karp(cost)[1] == expected
    assert local_search(cost, np.random.default_rng(0))[1] == pytest.approx(expected, rel=1e-12)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        held_karp(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="nan"):
        held_karp(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="start is 3"):
        held_karp(np.zeros((3, 3)), start=3)
    with pytest.raises(ValueError, match="at most 20"):
        held_karp(np.zeros((21, 21)))
