"""How far a plan goes: the highest rate at which its objectives hold."""

from collections.abc import Callable

PRECISION = 0.02  # of the rate, relative
MOST_RUNS = 40


def highest_rate(holds: Callable[[float], bool], guess_per_s: float, precision: float = PRECISION) -> float:
    """The highest rate at which `holds(rate)`, within `precision` below it; 0 where it holds at none.

    It is taken to hold below a rate at which it holds. guess_per_s: where to begin; doubling or halving from there
    brackets the rate, then the bracket is halved, in the logarithm.
    """
    low, high, runs = 0.0, guess_per_s, 1
    if holds(high):
        low = high
        while high == low and runs < MOST_RUNS:
            high, runs = 2.0 * low, runs + 1
            low = high if holds(high) else low
    else:
        while not low and runs < MOST_RUNS:
            runs += 1
            if holds(high / 2.0):
                low = high / 2.0
            else:
                high /= 2.0
    while low and high > low * (1.0 + precision) and runs < MOST_RUNS:
        middle, runs = (low * high) ** 0.5, runs + 1
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
