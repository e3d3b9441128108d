"""A small linear programme by the simplex method, of which only what its prices prove is believed."""

import numpy as np

from hetsched.cluster import Floats

MOST_STEPS = 60
ROUNDING = 1e-9


def can_reach(gains: Floats, uses: Floats, limits: Floats, total: float, wanted: float) -> bool:
    """Whether shares of things, none negative, which add up to `total`, may gain `wanted` within limits.

    gains: (things,), of one of each; uses: (limits, things), none negative. Any prices for the limits say what can be
    gained at most: the limits' worth, and `total` times the most that a thing gains less its price. False is thus
    proven; True may be said where it is not so, if the steps do not suffice.
    """
    rows, things = uses.shape
    if not things:
        return False
    none = -1e3 * (1.0 + float(np.abs(gains).max()))  # of what stands for things that there are too few of
    table = np.zeros((rows + 1, things + rows + 1))
    table[:rows, :things], table[rows, :things] = uses, 1.0
    table[:rows, things:-1], table[rows, -1] = np.eye(rows), 1.0
    values = np.concatenate([gains, np.zeros(rows), [none]])
    right, basis = np.append(limits, total), np.arange(things, things + rows + 1)
    for _ in range(MOST_STEPS):
        square = table[:, basis]
        try:
            amounts, prices = np.linalg.solve(square, right), np.linalg.solve(square.T, values[basis])
        except np.linalg.LinAlgError:
            return True
        worth = np.maximum(prices[:rows], 0.0)
        if worth @ limits + total * float((gains - worth @ uses).max()) < wanted:
            return False
        if values[basis] @ amounts >= wanted:
            return True
        better = values - prices @ table
        enters = int(np.argmax(better))
        if better[enters] <= ROUNDING * abs(none):
            return True
        step = np.linalg.solve(square, table[:, enters])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(step > ROUNDING, amounts / step, np.inf)
        basis[int(np.argmin(ratios))] = enters
    return True
