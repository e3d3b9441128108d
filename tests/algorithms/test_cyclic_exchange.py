"""Oracles: every order of the groups, every partition, and the gain by its definition."""

from itertools import chain, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.algorithms.assignment import bottleneck_assignment
from hetsched.algorithms.cyclic_exchange import Labels, crossover, cyclic_descent, evaluate, gains, random_labels
from hetsched.algorithms.stage_layout import StageLayout

SEEDS = st.integers(0, 2**32)


def random_layout(seed: int) -> StageLayout:
    """Up to 5 groups of up to 4, up to 3 devices idle; every other one with devices that are alike."""
    rng = np.random.default_rng(seed)
    groups, size, idle = (int(x) for x in rng.integers([1, 1, 0], [6, 5, 4]))
    n = groups * size + idle
    place = rng.integers(3, size=n) if seed % 2 else np.arange(n)
    within, between = (rng.random((n + 2, n + 2))[np.ix_(place, place)] for _ in range(2))
    return StageLayout(within, between, groups, size)


def plain_cost(layout: StageLayout, groups: list[list[int]]) -> float:
    datap = max(sum(layout.within[a, b] for b in group if a != b) for group in groups for a in group)
    return float(datap) + 2 * sum(bottleneck_assignment(layout.between[np.ix_(a, b)])[1] for a, b in pairwise(groups))


def sizes(layout: StageLayout, labels: Labels) -> list[int]:
    found: list[int] = np.bincount(labels, minlength=layout.num_groups + 1).tolist()
    return found


def balanced(layout: StageLayout) -> list[int]:
    used = layout.num_groups * layout.group_size
    return [layout.group_size] * layout.num_groups + [len(layout.class_of) - used]


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_a_partition_costs_what_its_best_order_costs(seed: int) -> None:
    layout, rng = random_layout(seed), np.random.default_rng(seed)
    labels = random_labels(layout, rng)
    assert sizes(layout, labels) == balanced(layout)
    found = evaluate(layout, labels, rng)
    members = [np.flatnonzero(labels == g).tolist() for g in range(layout.num_groups)]
    assert found.cost == pytest.approx(min(plain_cost(layout, list(order)) for order in permutations(members)))
    groups = found.groups()
    assert sorted(chain.from_iterable(groups)) == list(range(len(labels)))
    assert found.cost == pytest.approx(plain_cost(layout, groups[: layout.num_groups]))


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_children_are_balanced_and_descent_never_worsens(seed: int) -> None:
    layout, rng = random_layout(seed), np.random.default_rng(seed)
    mother, father = (evaluate(layout, random_labels(layout, rng), rng) for _ in range(2))
    parents = mother.labels.copy(), father.labels.copy()
    child = crossover(layout, mother, father, rng)
    assert sizes(layout, child) == balanced(layout)
    start = evaluate(layout, child, rng)
    end = cyclic_descent(layout, start, rng)
    assert sizes(layout, end.labels) == balanced(layout)
    assert end.cost <= start.cost
    assert end.cost == pytest.approx(plain_cost(layout, end.groups()[: layout.num_groups]))
    for before, after in zip(parents, (mother.labels, father.labels), strict=True):
        np.testing.assert_array_equal(before, after)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_a_child_of_twins_is_their_twin(seed: int) -> None:
    """A father whose groups are the mother's under other names gives nothing new."""
    layout, rng = random_layout(seed), np.random.default_rng(seed)
    mother = evaluate(layout, random_labels(layout, rng), rng)
    names = np.append(rng.permutation(layout.num_groups), layout.num_groups)
    father = evaluate(layout, names[mother.labels], rng)
    np.testing.assert_array_equal(crossover(layout, mother, father, rng), mother.labels)


def test_children_mix_their_parents() -> None:
    """Where a device stands with all its parents' mates in common, it is from one of them: some from each."""
    rng = np.random.default_rng(0)
    layout = StageLayout(rng.random((12, 12)), rng.random((12, 12)), 3, 4)
    mother = evaluate(layout, np.repeat([0, 1, 2], 4), rng)
    father = evaluate(layout, np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0]), rng)
    children = {tuple(crossover(layout, mother, father, rng).tolist()) for _ in range(40)}
    assert len(children) > 5


def test_descents_beat_as_many_draws() -> None:
    """Of 16 devices in 4 groups: 10 descents gain a twentieth on average."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        layout = StageLayout(rng.random((16, 16)), rng.random((16, 16)), 4, 4)
        starts = [evaluate(layout, random_labels(layout, rng), rng) for _ in range(10)]
        ends = [cyclic_descent(layout, start, rng).cost for start in starts]
        costs = [start.cost for start in starts]
        assert np.mean(ends) < 0.95 * np.mean(costs)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_gain_by_its_definition(seed: int) -> None:
    layout = random_layout(seed)
    labels = random_labels(layout, np.random.default_rng(seed))
    groups = int(labels.max()) + 1
    found, within = gains(layout.within, labels, groups), layout.within
    for device, own in enumerate(labels):
        mates = [within[device, b] for b in range(len(labels)) if labels[b] == own and b != device]
        cheapest = min(mates, default=0.0)
        for g in range(groups):
            others = [within[device, b] for b in range(len(labels)) if labels[b] == g and b != device]
            if g != own:
                assert found[device, g] == pytest.approx(float(np.mean(others)) - cheapest)
