"""Oracle: every split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.algorithms.pipelined_split import pipelined_split
from tests.bound.enumerate_plans import compositions


@settings(deadline=None, max_examples=400)
@given(seed=st.integers(0, 2**32), whole=st.booleans())
def test_equals_every_split(seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    k, items, repeats = int(rng.integers(1, 5)), int(rng.integers(1, 9)), int(rng.choice([1, 2, 5, 300]))
    item, extra = rng.uniform(0, 3, k), rng.uniform(0, 3, k)
    if whole:
        item, extra = item.round(), extra.round()
    most, floor = rng.integers(0, items + 3, k), float(rng.choice([0.0, 4.0]))
    every = {}
    for split in compositions(items, k):
        if all(split <= most):
            times = extra + np.array(split) * item
            every[split] = times.sum() + (repeats - 1) * max(floor, times.max())
    found = pipelined_split(item, extra, most, items, repeats, floor_s=floor)
    if not every:
        assert found is None
        return
    assert found is not None
    assert found[1] == pytest.approx(min(every.values()), rel=1e-12)
    assert every[tuple(found[0].tolist())] == pytest.approx(found[1], rel=1e-12)


def test_few_rounds_go_to_the_fastest_and_many_are_levelled() -> None:
    """One round: all but one layer where each is quickest; many: by speed, so that the slowest is as fast as can be."""
    item, extra, most = np.array([2.0, 1.0]), np.zeros(2), np.array([12, 12])
    one = pipelined_split(item, extra, most, 12, 1)
    many = pipelined_split(item, extra, most, 12, 1000)
    assert one is not None
    assert many is not None
    assert one[0].tolist() == [1, 11]
    assert many[0].tolist() == [4, 8]
    assert many[1] == 16 + 999 * 8


def test_no_workers_no_split() -> None:
    assert pipelined_split(np.zeros(0), np.zeros(0), np.zeros(0, dtype=int), 3, 2) is None
