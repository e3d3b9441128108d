"""Partition a graph into groups of equal weight with the least cut; and its groups into two sides with the most.

The two partitions of HexGen-2 (Jiang et al. 2025, ICLR, arXiv 2502.07903, section 3.2): nodes are GPUs and weigh what
their memory does, edges are bandwidths. Spectral bisection (Fiedler 1973, doi:10.21136/CMJ.1973.101168), again and
again, each mended by Kernighan and Lin's sequences of swaps (1970, doi:10.1002/j.1538-7305.1970.tb01770.x).
"""

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from hetsched.algorithms.graph_partition import spectral_order

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]

MOST_SIDES = 20_000  # that are all looked at
LEAST_GAIN = 1e-9  # of the largest edge: rounding


def balanced_groups(edges: Floats, weights: Floats, groups: int) -> Ints:
    """(n,) labels: `groups` groups of about equal weight, with little of the edges cut.

    edges: (n, n), [i, j] from i to j, finite; both ways count. weights: (n,), positive. A bisection is as even as the
    order of its nodes allows, and swaps and moves leave it within half of the heaviest node of that.
    """
    if not 1 <= groups <= len(weights):
        raise ValueError(f"{len(weights)} nodes make no {groups} groups")
    both = np.array(edges + edges.T, dtype=float) / 2.0
    np.fill_diagonal(both, 0.0)
    labels = np.zeros(len(weights), dtype=np.intp)
    _divide(both, weights, np.arange(len(weights)), groups, 0, labels)
    return labels


def cut_weight(edges: Floats, labels: Ints) -> float:
    """What the edges between different groups weigh, both ways."""
    return float(edges[labels[:, None] != labels[None, :]].sum())


def _divide(both: Floats, weights: Floats, nodes: Ints, groups: int, first: int, labels: Ints) -> None:
    """Label `nodes` with `groups` numbers from `first` on."""
    if groups == 1:
        labels[nodes] = first
        return
    left = groups // 2
    among, held = both[np.ix_(nodes, nodes)], weights[nodes]
    side = bisected(among, held, left / groups, left, groups - left)
    _divide(both, weights, nodes[~side], left, first, labels)
    _divide(both, weights, nodes[side], groups - left, first + left, labels)


def bisected(among: Floats, weights: Floats, share: float, least_first: int, least_second: int) -> Mask:
    """(n,): False for the nodes of the first part, which gets about `share` of the weight.

    among: (n, n), symmetric, zero on the diagonal; least_*: nodes that each part has at least.
    """
    n, whole = len(weights), float(weights.sum())
    starts = [np.arange(n)] if n < 3 else [spectral_order(-among), np.arange(n)]
    best, best_side = np.inf, np.zeros(n, dtype=bool)
    for order in starts:
        for direction in order, order[::-1]:
            sums = np.cumsum(weights[direction])
            at = int(np.abs(sums - share * whole).argmin()) + 1
            at = min(max(at, least_first), n - least_second)
            side = np.ones(n, dtype=bool)
            side[direction[:at]] = False
            room = abs(float(sums[at - 1]) - share * whole) + float(weights.max()) / 2.0
            side = _mended(among, weights, side, share * whole, room, least_first, least_second)
            value = float(among[np.ix_(side, ~side)].sum())
            if value < best * (1.0 - LEAST_GAIN):
                best, best_side = value, side
    return best_side


def _mended(
    among: Floats, weights: Floats, side: Mask, wanted: float, room: float, least_first: int, least_second: int
) -> Mask:
    """The bisection after sequences of swaps and of moves, as long as one helps; the first part's weight stays near."""
    side = side.copy()
    while True:
        gain, better = _sequence(among, weights, side, wanted, room, least_first, least_second)
        if gain <= LEAST_GAIN * float(among.max(initial=0.0)):
            return side
        side = better


def _sequence(
    among: Floats, weights: Floats, side: Mask, wanted: float, room: float, least_first: int, least_second: int
) -> tuple[float, Mask]:
    """The best prefix of a sequence in which the best swap or move of nodes not yet touched is made, harm or not."""
    trial, free = side.copy(), np.ones(len(side), dtype=bool)
    first_weight = float(weights[~side].sum())
    total, best, best_side = 0.0, 0.0, side
    gains = np.where(trial[:, None] != trial[None, :], among, -among).sum(axis=1)  # of moving a node alone
    for _ in range(len(side)):
        a, b = np.flatnonzero(~trial & free), np.flatnonzero(trial & free)
        found: list[tuple[float, list[int], float]] = []
        if a.size and b.size:
            value = gains[a][:, None] + gains[b][None, :] - 2.0 * among[np.ix_(a, b)]
            after = first_weight - weights[a][:, None] + weights[b][None, :]
            value = np.where(np.abs(after - wanted) <= room, value, -np.inf)
            i, j = divmod(int(value.argmax()), b.size)
            found.append((float(value[i, j]), [int(a[i]), int(b[j])], float(after[i, j])))
        for nodes, sign, kept in ((a, -1.0, (~trial).sum() - least_first), (b, 1.0, trial.sum() - least_second)):
            if nodes.size and kept > 0:
                after = first_weight + sign * weights[nodes]
                value = np.where(np.abs(after - wanted) <= room, gains[nodes], -np.inf)
                k = int(value.argmax())
                found.append((float(value[k]), [int(nodes[k])], float(after[k])))
        if not found or (chosen := max(found))[0] == -np.inf:
            break
        gain, moved, first_weight = chosen
        for node in moved:
            gains[node] = -gains[node]
            others = np.where(trial == trial[node], 2.0, -2.0) * among[node]
            others[node] = 0.0
            gains += others
            trial[node] = ~trial[node]
        free[moved] = False
        total += gain
        if total > best:
            best, best_side = total, trial.copy()
    return best, best_side


def two_sides(between: Floats, count: int) -> Mask:
    """(k,): which `count` of the groups to put on one side so that the most lies between the sides.

    between: (k, k), symmetric: bandwidth between two groups. All divisions are looked at where they are few; else the
    groups that have most to all others are exchanged for others as long as that helps.
    """
    k = len(between)
    if not 0 < count < k:
        raise ValueError(f"{count} of {k} groups leave a side empty")
    if comb(k, count) <= MOST_SIDES:
        chosen = np.array(list(combinations(range(k), count)))
        masks = np.zeros((len(chosen), k))
        masks[np.arange(len(chosen))[:, None], chosen] = 1.0
        values = np.einsum("mi,ij,mj->m", masks, between, 1.0 - masks, optimize=True)
        return np.asarray(masks[int(values.argmax())] > 0.5)
    side = np.zeros(k, dtype=bool)
    side[np.argsort(-between.sum(axis=1), kind="stable")[:count]] = True
    for _ in range(k * k):
        to_side, to_rest = between[:, side].sum(axis=1), between[:, ~side].sum(axis=1)
        out = np.where(side, to_side - to_rest, -np.inf)[:, None]  # what leaving the side gains
        into = np.where(~side, to_rest - to_side, -np.inf)[None, :]
        gains = out + into + 2.0 * between
        i, j = divmod(int(gains.argmax()), k)
        if gains[i, j] <= LEAST_GAIN * float(between.max(initial=0.0)):
            break
        side[[i, j]] = side[[j, i]]
    return side
