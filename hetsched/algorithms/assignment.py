"""Assign each row to a column of its own: the smallest largest edge, or the smallest sum.

How two pipeline stages pass on their activations is one: a micro-batch takes as long as its slowest link.
"""

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

SUBSETS_UP_TO = 9  # columns: 4 µs a matrix there; beyond, a matching for each is as fast as all subsets
ELEMENTS_AT_A_TIME = 40_000  # temporary arrays of this size stay in the processor's cache


def sum_assignment(cost: Floats) -> tuple[Ints, float]:
    """The assignment of least sum, by scipy's modified Jonker-Volgenant (Crouse, 2016, doi:10.1109/TAES.2016.140952).

    cost: (n, m), n ≤ m; inf forbids an edge. Returns the column of each row, (n,), and the sum, inf where every
    assignment needs a forbidden edge.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import: not at the CLI's start

    _check_shape(cost)
    if np.isnan(cost).any() or np.isneginf(cost).any():
        raise ValueError("cost holds nan or -inf")
    try:
        rows, columns = linear_sum_assignment(cost)
    except ValueError:  # scipy's word for "infeasible": the rest was seen to above
        return np.arange(len(cost)), np.inf
    return columns, float(cost[rows, columns].sum())


def bottleneck_assignment(cost: Floats, *, then_sum: bool = False) -> tuple[Ints, float]:
    """The assignment whose largest edge is smallest; with `then_sum`, the one of least sum among those.

    cost: (n, m), n ≤ m; inf forbids an edge. Returns the column of each row, (n,), and the largest edge, inf where
    every assignment needs a forbidden edge.

    The threshold method (Garfinkel, 1971, doi:10.1287/opre.19.7.1747; Burkard, Dell'Amico and Martello, Assignment
    Problems, 2009, section 6.2), but with no bisection: where a row can't be matched below the threshold, its search
    tree reaches more rows than columns, so by Hall's theorem one of them must leave for a column outside, and the
    cheapest edge that does is the next threshold. The first is the largest of the rows' minima (and the columns', if
    square).
    """
    _check_shape(cost)
    n, m = cost.shape
    if n == 0:
        return np.zeros(0, dtype=np.intp), 0.0
    threshold = float(cost.min(axis=1).max())
    if n == m:
        threshold = max(threshold, float(cost.min(axis=0).max()))
    if math.isnan(threshold):  # minima and maxima pass it on
        raise ValueError("cost holds nan")
    column_of, threshold = _match(cost, threshold)
    if then_sum and threshold < np.inf:
        return sum_assignment(np.where(cost <= threshold, cost, np.inf))[0], threshold
    return np.array(column_of, dtype=np.intp), threshold


def _match(cost: Floats, threshold: float) -> tuple[list[int], float]:
    """Match every row by edges up to the threshold, which is raised as far as it must be. Columns are bits."""
    n, m = cost.shape
    edges = _edges(cost, threshold)
    free = (1 << m) - 1
    column_of, row_of = [-1] * n, [-1] * m
    left = []
    for row in range(n):
        if direct := edges[row] & free:
            bit = direct & -direct
            free ^= bit
            column_of[row] = bit.bit_length() - 1
            row_of[column_of[row]] = row
        else:
            left.append(row)
    for root in left:
        reached, unseen, from_row = [root], (1 << m) - 1, [-1] * m
        at, found = 0, 0
        while not found:
            if at == len(reached):
                outside = [c for c in range(m) if unseen >> c & 1]
                threshold = float(cost[np.ix_(reached, outside)].min())
                edges = _edges(cost, threshold)
                at = 0
            row = reached[at]
            at += 1
            new = edges[row] & unseen
            found = new & free
            if found:
                column = (found & -found).bit_length() - 1
                free ^= 1 << column
                from_row[column] = row
                break
            unseen &= ~new
            while new:
                bit = new & -new
                new ^= bit
                column = bit.bit_length() - 1
                from_row[column] = row
                reached.append(row_of[column])
        while column >= 0:
            row = from_row[column]
            row_of[column] = row
            column_of[row], column = column, column_of[row]
    return column_of, threshold


def _edges(cost: Floats, threshold: float) -> list[int]:
    """For each row, the columns within the threshold, as bits."""
    packed = np.packbits(cost <= threshold, axis=1, bitorder="little")
    data, width = packed.tobytes(), packed.shape[1]
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


def bottleneck_values(costs: Floats) -> Floats:
    """bottleneck_assignment's value for each of many square matrices.

    costs: (k, n, n). Returns (k,). Up to 9 columns by dynamic programming over the columns that the first rows take,
    f(S) = min over j in S of max(f(S without j), cost[|S| - 1, j]), for all matrices at a time.
    """
    k, n, m = costs.shape
    if n != m:
        raise ValueError(f"costs has shape {costs.shape}, not (k, n, n)")
    if np.isnan(costs).any():
        raise ValueError("costs holds nan")
    if n == 0:
        return np.zeros(k)
    if n > SUBSETS_UP_TO:
        return np.array([bottleneck_assignment(cost)[1] for cost in costs])
    values = np.empty(k)
    levels = _levels(n)
    step = max(1, ELEMENTS_AT_A_TIME // max([n * n, *(before.size for before, _ in levels)]))
    for at in range(0, k, step):
        part = np.ascontiguousarray(costs[at : at + step].transpose(1, 2, 0))
        best = part[0]
        for row, (before, column) in enumerate(levels, start=1):
            best = np.maximum(best[before], part[row, column]).min(axis=1)
        values[at : at + step] = best[0]
    return values


@lru_cache(maxsize=16)
def _levels(n: int) -> list[tuple[Ints, Ints]]:
    """For each size from 2 to n: where the subsets less one member stand among those of a size less, and that member.

    Both are (number of subsets, size); subsets of a size stand in lexicographic order.
    """
    place: dict[tuple[int, ...], int] = {(j,): j for j in range(n)}
    levels = []
    for size in range(2, n + 1):
        subsets = list(combinations(range(n), size))
        before = [[place[s[:i] + s[i + 1 :]] for i in range(size)] for s in subsets]
        levels.append((np.array(before), np.array(subsets)))
        place = {s: i for i, s in enumerate(subsets)}
    return levels


def _check_shape(cost: Floats) -> None:
    if cost.ndim != 2 or cost.shape[0] > cost.shape[1]:
        raise ValueError(f"cost has shape {cost.shape}, not (n, m) with n at most m")
