"""Oracle: every way to cut the chain."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetsched.algorithms.chain_split import chain_split

Floats = NDArray[np.float64]


@st.composite
def instances(draw: st.DrawFn) -> dict[str, Any]:
    """Whole numbers, so that ties happen and sums are exact; memory in about half of them."""
    k, n = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([1, 3, 1000]))
    given: dict[str, Any] = {"item_cost": rng.integers(0, most + 1, (k, n)).astype(float)}
    if draw(st.booleans()):
        given["extra"] = rng.integers(0, most + 1, k).astype(float)
    if draw(st.booleans()):
        given["item_memory"] = rng.integers(1, 5, (k, n)).astype(float)
        given["capacity"] = rng.integers(3, 20, k).astype(float)
        if draw(st.booleans()):
            given["fixed_memory"] = rng.integers(0, 4, k).astype(float)
    return given


def splits(
    item_cost: Floats,
    extra: Floats | None = None,
    item_memory: Floats | None = None,
    fixed_memory: Floats | None = None,
    capacity: Floats | None = None,
) -> Iterator[tuple[tuple[int, ...], Floats]]:
    """The bounds and the times of every split that fits."""
    k, n = item_cost.shape
    for cuts in combinations(range(1, n), k - 1):
        bounds = (0, *cuts, n)
        stretch = [slice(bounds[i], bounds[i + 1]) for i in range(k)]
        if capacity is not None and item_memory is not None:
            fixed = np.zeros(k) if fixed_memory is None else fixed_memory
            if any(fixed[i] + item_memory[i, stretch[i]].sum() > capacity[i] for i in range(k)):
                continue
        time = np.array([item_cost[i, stretch[i]].sum() for i in range(k)])
        yield bounds, time if extra is None else time + extra


@settings(deadline=None, max_examples=300)
@given(instance=instances())
def test_equals_every_split(instance: dict[str, Any]) -> None:
    every = list(splits(**instance))
    evenest, shortest = chain_split(**instance), chain_split(**instance, then="sum")
    if not every:
        assert evenest is None
        assert shortest is None
        return
    assert evenest is not None
    assert shortest is not None
    least = min(time.max() for _, time in every)
    assert evenest[1] == shortest[1] == least
    best = [(bounds, time) for bounds, time in every if time.max() == least]
    times = dict(best)
    assert np.square(times[tuple(evenest[0])]).sum() == min(np.square(time).sum() for _, time in best)
    assert times[tuple(shortest[0])].sum() == min(time.sum() for _, time in best)


def test_workers_of_unequal_speed_get_blocks_to_suit() -> None:
    bounds, time = chain_split(np.array([[1.0], [0.5], [0.25]]) * np.ones((3, 28))) or pytest.fail("no split")
    assert bounds.tolist() == [0, 4, 12, 28]
    assert time == 4.0


def test_memory_overrides_speed() -> None:
    cost = np.array([[1.0], [0.1]]) * np.ones((2, 20))
    fits = chain_split(cost, item_memory=np.full((2, 20), 2e9), capacity=np.array([80e9, 10e9]))
    assert fits is not None
    assert fits[0].tolist() == [0, 15, 20]
    assert chain_split(cost, item_memory=np.full((2, 20), 2e9), capacity=np.array([28e9, 10e9])) is None


def test_more_workers_than_items_is_no_split() -> None:
    assert chain_split(np.ones((4, 3))) is None


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        chain_split(np.full((2, 3), -1.0))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        chain_split(np.ones(3))
    with pytest.raises(ValueError, match="extra"):
        chain_split(np.ones((2, 3)), extra=np.ones(3))
    with pytest.raises(ValueError, match="without capacity"):
        chain_split(np.ones((2, 3)), item_memory=np.ones((2, 3)))
    with pytest.raises(ValueError, match="item_memory"):
        chain_split(np.ones((2, 3)), item_memory=np.ones((2, 4)), capacity=np.ones(2))
