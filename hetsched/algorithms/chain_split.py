"""Split a chain of items over ordered workers, each taking a stretch: a pipeline's blocks over its stages."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def chain_split(
    item_cost: Floats,
    *,
    extra: Floats | None = None,
    item_memory: Floats | None = None,
    fixed_memory: Floats | None = None,
    capacity: Floats | None = None,
    then: Literal["squares", "sum"] = "squares",
) -> tuple[Ints, float] | None:
    """The split of n consecutive items over k workers in order, each with one item or more, of least largest time.

    item_cost: (k, n), what item j takes on worker i, not negative. Items a to b - 1 take worker i
    extra[i] + the sum of item_cost[i, a:b]; extra: (k,), 0 where not given.
    item_memory: (k, n), fixed_memory: (k,), 0 where not given, and capacity: (k,): worker i can hold the items if
    fixed_memory[i] + the sum of item_memory[i, a:b] is at most capacity[i]. Whole numbers are compared exactly.

    Among the splits of least largest time the one with the least sum of squared times is returned, which is the
    evenest, or with then="sum" the one with the least sum, which is the shortest way through a pipeline; among
    those the one that cuts earlier from the last cut back. Returns the bounds, (k + 1,), from 0 to n, and the largest
    time; None if no split fits.

    Exact, by dynamic programming over the cuts, O(k (n - k)²): the chains-on-chains problem of Bokhari (1988,
    doi:10.1109/12.2137) and Pınar and Aykanat (2004, doi:10.1016/j.jpdc.2004.05.003), with workers that differ.
    """
    item_cost = np.asarray(item_cost, dtype=np.float64)
    if item_cost.ndim != 2:
        raise ValueError(f"item_cost has shape {item_cost.shape}, not (k, n)")
    k, n = item_cost.shape
    if not (item_cost >= 0.0).all():
        raise ValueError("item_cost holds a negative number or nan")
    if k == 0 or k > n:
        return None
    time = _stretches(item_cost, _or_zeros(extra, k, "extra"))
    if capacity is not None:
        memory = item_cost * 0.0 if item_memory is None else np.asarray(item_memory, dtype=np.float64)
        if memory.shape != (k, n):
            raise ValueError(f"item_memory has shape {memory.shape}, not {(k, n)}")
        held = _stretches(memory, _or_zeros(fixed_memory, k, "fixed_memory"))
        time[held > _or_zeros(capacity, k, "capacity")[:, None, None]] = np.inf
    elif item_memory is not None or fixed_memory is not None:
        raise ValueError("memory is given without capacity")

    largest = time[0, 0]
    for worker in range(1, k):
        largest = np.maximum(largest[:, None], time[worker]).min(axis=0)
    limit = float(largest[-1])
    if limit == np.inf:
        return None
    time[time > limit] = np.inf
    if then == "squares" and limit > 0.0:
        time /= limit
        np.square(time, out=time)
    sums = [time[0, 0]]
    for worker in range(1, k - 1):
        sums.append((sums[-1][:, None] + time[worker]).min(axis=0))
    bounds = np.zeros(k + 1, dtype=np.intp)
    bounds[k] = n
    for worker in range(k - 1, 0, -1):
        end = bounds[worker + 1] - worker - 1
        bounds[worker] = worker + int((sums[worker - 1] + time[worker, :, end]).argmin())
    return bounds, limit


def _stretches(per_item: Floats, fixed: Floats) -> Floats:
    """(k, w, w) with w = n - k + 1: at [i, p, q] fixed[i] and the items from i + p to i + q, inf where p > q.

    Worker i can't begin before item i, nor end so late that the workers behind it get none.
    """
    k, n = per_item.shape
    width = n - k + 1
    upto = np.zeros((k, n + 1))
    np.cumsum(per_item, axis=1, out=upto[:, 1:])
    begin = np.arange(k)[:, None] + np.arange(width)
    before, through = np.take_along_axis(upto, begin, axis=1), np.take_along_axis(upto, begin + 1, axis=1)
    total: Floats = through[:, None, :] + (fixed[:, None] - before)[:, :, None]
    total[:, np.tri(width, k=-1, dtype=bool)] = np.inf
    return total


def _or_zeros(values: Floats | None, k: int, name: str) -> Floats:
    if values is None:
        return np.zeros(k)
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (k,) or np.isnan(array).any():
        raise ValueError(f"{name} has shape {array.shape} or holds nan: it should be ({k},) numbers")
    return array
