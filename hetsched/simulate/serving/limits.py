"""How far a plan goes: the highest rate at which its objectives hold, and what it does when it is full."""

from collections.abc import Callable

import numpy as np

from hetsched.simulate.serving.result import Counts, Floats, ServingRun

PRECISION = 0.02  # of the rate, relative
MOST_RUNS = 40
TINY = 1e-12  # seconds


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


def saturated_per_s(run: ServingRun) -> float:
    """Requests a second that a plan keeps up with, from a run in which all were there at once.

    What each replica does while it is full, over its share of the requests, is what the plan would do if the others
    were endless; the least of these is what it does. A replica that had all its requests in hand at once has shown no
    limit.
    """
    served = np.isfinite(run.finish_s)
    numbers, counts = np.unique(run.replica[served], return_counts=True)
    rates = [
        full_per_s(run.first_s[mine], run.finish_s[mine], run.requests.output_tokens[mine]) * counts.sum() / count
        for number, count in zip(numbers, counts, strict=True)
        if count > run.loads[number].peak_batch
        for mine in [served & (run.replica == number)]
    ]
    return float(min(rates, default=run.requests_per_s))


def full_per_s(first_s: Floats, finish_s: Floats, tokens: Counts) -> float:
    """Of a replica's requests, from the beginning until the last one starts: by the tokens made.

    Whole requests would mislead: those of one length end in crowds, and of many lengths the short ones end first.
    """
    until = float(np.max(finish_s, where=finish_s <= first_s.max(), initial=0.0) or finish_s.max())
    come = np.clip((until - first_s) / np.maximum(finish_s - first_s, TINY), 0.0, 1.0)
    return float(come @ tokens / tokens.mean()) / until
