"""Integer programmes equal trying everything; what C code prints meanwhile does not reach stdout."""

import ctypes
import sys
from itertools import product

import numpy as np
import pytest

from hetsched.algorithms.integer_programme import least, unheard


def test_equal_to_trying_everything() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs, rows = rng.normal(size=4), rng.integers(-3, 6, size=(2, 4)).astype(float)
        limits, high = rng.integers(-2, 9, size=2).astype(float), rng.integers(0, 4, size=4).astype(float)
        every = np.array(list(product(*(range(int(most) + 1) for most in high))), dtype=float)
        every = every[(every @ rows.T <= limits + 1e-9).all(axis=1)]
        found = least(costs, rows, limits, np.zeros(4), high)
        if found is None:
            assert not len(every)
        else:
            assert (rows @ found <= limits + 1e-9).all()
            assert costs @ found == pytest.approx((every @ costs).min(), abs=1e-9)


def test_prints_of_c_code_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    c = ctypes.CDLL(None)
    with unheard():
        c.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution")
    sys.stdout.write("ours\n")
    sys.stdout.flush()
    c.puts(b"theirs, later")
    c.fflush(None)
    assert capfd.readouterr().out == "ours\ntheirs, later\n"
