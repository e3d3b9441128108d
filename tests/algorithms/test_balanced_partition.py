"""Partitions against brute force: the least cut of groups of equal weight, the most between two sides."""

from itertools import combinations, product

import numpy as np
import pytest

from hetsched.algorithms.balanced_partition import balanced_groups, cut_weight, two_sides


def machines(rng: np.random.Generator, n: int) -> np.ndarray:
    """Bandwidths as clusters have them: fast inside machines, slower and uneven between."""
    machine = np.sort(rng.integers(max(2, n // 3), size=n))
    edges = rng.uniform(1, 12, (n, n))
    edges = edges + edges.T
    edges[machine[:, None] == machine[None, :]] = 200.0
    np.fill_diagonal(edges, 0.0)
    return edges


def test_bisections_near_the_least_cut_of_all_as_even() -> None:
    """60 graphs of up to 9 nodes: among all bisections no less even than the one found, 54 of them cut the least."""
    rng = np.random.default_rng(0)
    optimal = 0
    for _ in range(60):
        n = int(rng.integers(2, 10))
        edges, weights = machines(rng, n), rng.choice([16.0, 24.0, 48.0, 80.0], n)
        labels = balanced_groups(edges, weights, 2)
        uneven = abs(weights[labels == 0].sum() - weights.sum() / 2)
        assert 0 < labels.sum() < n
        assert uneven <= weights.max()
        cuts = []
        for chosen in product((0, 1), repeat=n):
            other = np.array(chosen)
            if 0 < other.sum() < n and abs(weights[other == 0].sum() - weights.sum() / 2) <= uneven + 1e-9:
                cuts.append(cut_weight(edges, other))
        found = cut_weight(edges, labels)
        optimal += found <= min(cuts) * (1 + 1e-9)
        assert found <= 1.5 * min(cuts)
    assert optimal >= 54


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8])
def test_groups_are_machines_where_they_can_be(groups: int) -> None:
    machine = np.repeat(np.arange(8), 4)
    edges = np.where(machine[:, None] == machine[None, :], 200.0, 5.0)
    labels = balanced_groups(edges, np.full(32, 80.0), groups)
    sizes = np.bincount(labels, minlength=groups)
    assert sizes.min() >= 32 / groups / 2
    if 8 % groups == 0:
        assert (sizes == 32 // groups).all()
        assert all(len(set(labels[machine == k])) == 1 for k in range(8))


def test_two_sides_equal_brute_force() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        k = int(rng.integers(2, 9))
        between = rng.uniform(0, 10, (k, k))
        between = between + between.T
        count = int(rng.integers(1, k))
        side = two_sides(between, count)
        best = max(
            between[np.ix_(chosen, [j for j in range(k) if j not in chosen])].sum()
            for chosen in combinations(range(k), count)
        )
        assert side.sum() == count
        assert between[np.ix_(side, ~side)].sum() == pytest.approx(best)


def test_many_groups_by_exchange() -> None:
    """Two halves with fast links only between them: the sides are the halves."""
    half = np.arange(30) % 2 == 0
    between = np.where(half[:, None] != half[None, :], 10.0, 1.0)
    side = two_sides(between, 15)
    assert (side == half).all() or (side == ~half).all()
