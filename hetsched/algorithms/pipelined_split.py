"""Split like items over ordered workers that work as a pipeline: many rounds cost the slowest, the first costs all."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def pipelined_split(
    item_s: Floats, extra_s: Floats, most: Ints, items: int, repeats: int, *, floor_s: float = 0.0
) -> tuple[Ints, float] | None:
    """How many of `items` like items each of k workers takes, one or more, so that `repeats` rounds end soonest.

    Worker i takes t_i = extra_s[i] + count · item_s[i] a round and holds at most most[i]; all of shape (k,). A pipeline
    of r rounds takes sum t_i + (r - 1) · max t_i: the first round goes through all workers, and each further one
    follows as soon as the slowest lets it (GPipe, arXiv 1811.06965; Alpa, arXiv 2201.12023, eq. 2). The maximum is no
    less than floor_s, what else sets a pace. Returns the counts, (k,), and those seconds; None where no split fits.

    Exact. Under a limit on the maximum the least sum gives each worker one item and the rest to the fastest as far as
    they can, since each further item on a worker costs the same; all limits that can matter, the times t_i(count), are
    tried at once: O(k² · items) with arrays.
    """
    k = len(item_s)
    if k == 0 or k > items or (most < 1).any() or most.sum() < items:
        return None
    time = extra_s[:, None] + np.arange(1, items + 1) * item_s[:, None]  # (k, items)
    limits = np.unique(time[np.arange(items) < most[:, None]])
    limits = limits[limits >= max(floor_s, time[:, 0].max())]
    if floor_s > time[:, 0].max():
        limits = np.concatenate(([floor_s], limits))
    room = np.stack([np.searchsorted(row, limits, side="right") for row in time], axis=1)  # (limits, k)
    spare = np.minimum(room, most) - 1
    fits = spare.sum(axis=1) >= items - k
    if not fits.any():
        return None
    limits, spare = limits[fits], spare[fits]
    order = np.argsort(item_s, kind="stable")
    before = np.cumsum(spare[:, order], axis=1) - spare[:, order]
    more = np.clip(items - k - before, 0, spare[:, order])
    seconds = more @ item_s[order] + (repeats - 1) * limits
    best = int(seconds.argmin())
    counts = np.ones(k, dtype=np.intp)
    counts[order] += more[best]
    taken = extra_s + counts * item_s
    return counts, float(taken.sum() + (repeats - 1) * max(floor_s, taken.max()))
