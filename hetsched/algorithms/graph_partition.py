"""Partition the nodes of a weighted graph into groups of given sizes, by what the edges inside the groups weigh.

With weights that are what a pair costs in an exchange of gradients, groups are pipeline stages and the bottleneck
objective is the first level of decentralized training (Yuan et al., NeurIPS 2022, arXiv 2206.01288, section 3.2).
With bandwidths as weights, the least sum keeps fast links between groups.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Objective = Literal["bottleneck", "sum"]

SHARPNESS = 8  # of the power mean that ranks partitions whose dearest groups cost the same
ELEMENTS_AT_A_TIME = 1 << 16  # temporary arrays of this size stay in the processor's cache
PATHS_KEPT = 4096  # unfinished cycles of each length; all of them up to 64 nodes or so


def partition(
    weight: Floats,
    sizes: Sequence[int],
    rng: np.random.Generator,
    objective: Objective = "bottleneck",
    *,
    starts: int = 12,
    longest_cycle: int = 4,
) -> Ints:
    """Groups of the given sizes with little weight inside: several constructions, each improved, the best kept.

    weight: (n, n), finite, [i, j] from i to j; the diagonal is not read. sizes: they add up to n. The first two starts
    cut a hierarchical clustering and the spectral order into stretches; the others by turns grow groups from seeds that
    lie apart, and deal some of the best partition's nodes anew. Returns the labels, (n,): which group each node is in.
    """
    _check(weight)
    n = len(weight)
    if sum(sizes) != n or min(sizes, default=1) < 1:
        raise ValueError(f"the sizes {list(sizes)} should be positive and add up to {n}")
    best, best_value = cut(np.arange(n), sizes), np.inf
    for start in range(starts if n > 2 else 0):
        if start < 2:
            labels = cut(hierarchical_order(weight) if start == 0 else spectral_order(weight), sizes)
        elif start % 2 == 0:
            labels = grow(weight, sizes, rng)
        else:
            labels = best.copy()
            shaken = rng.choice(n, size=rng.integers(3, n + 1), replace=False)
            labels[shaken] = labels[rng.permutation(shaken)]
        labels = improve(weight, labels, objective, longest_cycle=longest_cycle)
        value = inside_weight(weight, labels, objective)
        if value < best_value:
            best, best_value = labels, value
    return best


def inside_weight(weight: Floats, labels: Ints, objective: Objective = "bottleneck") -> float:
    """What a partition costs.

    "sum": the weights of all edges inside groups. "bottleneck": the largest, over nodes, of the weights from that node
    to the others of its group, which is DATAP of DT-FM.
    """
    inside = np.where(labels[:, None] == labels[None, :], weight, 0.0)
    np.fill_diagonal(inside, 0.0)
    per_node = inside.sum(axis=1)
    return float(per_node.sum() if objective == "sum" else per_node.max(initial=0.0))


def improve(
    weight: Floats,
    labels: Ints,
    objective: Objective = "bottleneck",
    *,
    longest_cycle: int = 4,
    max_moves: int | None = None,
) -> Ints:
    """Move nodes round cycles of groups until no cycle of up to `longest_cycle` nodes helps; sizes stay.

    The cyclic exchange of Thompson and Orlin (1989) and Ahuja, Orlin and Sharma (2001,
    doi:10.1007/PL00011422): in the improvement graph the arc (u, v) weighs what the group of v gains when u takes the
    place of v, so a negative cycle through different groups is an exchange that helps. Two-cycles, the pair swaps of
    Kernighan and Lin (1970, doi:10.1002/j.1538-7305.1970.tb01770.x), are tried first, the best of them at a time;
    with "sum", where no cycle helps, their sequences of swaps too, whose first may harm.
    With "bottleneck" the largest group's cost never rises, and among equals a power mean of the groups' costs falls.
    """
    labels = np.array(labels, dtype=np.intp)
    _check(weight)
    weight = np.array(weight, dtype=np.float64)
    np.fill_diagonal(weight, 0.0)
    if objective == "sum":
        weight = (weight + weight.T) / 2.0
    for _ in range(labels.size**2 if max_moves is None else max_moves):
        if objective == "sum":
            arcs, least = _sum_arcs(weight, labels)
        else:
            arcs, least = _bottleneck_arcs(weight, labels)
        if cycle := _negative_cycle(arcs, labels, longest_cycle, least):
            labels[cycle] = labels[cycle[1:] + cycle[:1]]
        elif objective != "sum" or not _swap_in_sequence(weight, labels):
            break
    return labels


def _swap_in_sequence(weight: Floats, labels: Ints) -> bool:
    """A pass of Kernighan and Lin: the best swap of nodes not yet swapped, again and again even where one alone harms;
    as far as the sequence gains most, `labels` is changed. False where it never gains.
    """
    trial, total = labels.copy(), 0.0
    least = -1e-10 * float(np.abs(weight).max() * len(labels))  # a gain that is none but rounding
    best, best_labels = least, labels
    locked = np.zeros(len(labels))
    for _ in range(len(labels) // 2):
        arcs, _ = _sum_arcs(weight, trial)
        gains = arcs + arcs.T + locked[:, None] + locked[None, :]
        u, v = divmod(int(gains.argmin()), len(labels))
        if gains[u, v] == np.inf:
            break
        total += float(gains[u, v])
        trial[[u, v]] = trial[[v, u]]
        locked[[u, v]] = np.inf
        if total < best:
            best, best_labels = total, trial.copy()
    labels[:] = best_labels
    return best < least


def _sum_arcs(weight: Floats, labels: Ints) -> tuple[Floats, float]:
    """The improvement graph for the sum of symmetric weights, (n, n), and the gain that counts as one."""
    to_group = weight @ np.eye(int(labels.max()) + 1)[labels]  # (n, groups)
    taken = to_group[np.arange(len(labels)), labels]
    arcs = to_group[:, labels] - weight - taken[None, :]
    arcs[labels[:, None] == labels[None, :]] = np.inf
    return arcs, -1e-10 * float(np.abs(weight).max() * len(labels))


def _bottleneck_arcs(weight: Floats, labels: Ints) -> tuple[Floats, float]:
    """The improvement graph for the largest row sum inside a group, and the gain that counts as one.

    A group's cost c below the present maximum counts (c / maximum)^8, one at the maximum counts the number of groups
    more, and beyond it is barred: so what falls first is the maximum, or how many groups have it.
    """
    n, groups = len(labels), int(labels.max()) + 1
    to_group = weight @ np.eye(groups)[labels]
    replaced = np.empty((n, n))  # [u, v]: the cost of v's group with u in the place of v
    costs = np.zeros(groups)
    for group in range(groups):
        members = np.flatnonzero(labels == group)
        among = weight[members]  # (members, n)
        costs[group] = to_group[members, group].max(initial=0.0)
        stay = to_group[members, group][:, None] - among[:, members]  # [d, v]: what d pays without v
        np.fill_diagonal(stay, -np.inf)  # v itself has gone
        new = to_group[:, group][:, None] - weight[:, members]  # [u, v]: what u pays
        step = max(1, ELEMENTS_AT_A_TIME // max(1, new.size))
        for at in range(0, len(members), step):
            pay = stay[at : at + step, None, :] + among[at : at + step, :, None]  # [d, u, v]: what d pays
            np.maximum(new, pay.max(axis=0), out=new)
        replaced[:, members] = new
    highest = float(costs.max())
    if highest <= 0.0:
        return np.full((n, n), np.inf), 0.0
    rounding = 1e-12 * highest * n
    counted = np.power(np.clip(replaced / highest, 0.0, 1.0), SHARPNESS) + groups * (replaced >= highest - rounding)
    now = np.power(np.clip(costs / highest, 0.0, 1.0), SHARPNESS) + groups * (costs >= highest - rounding)
    arcs = counted - now[labels][None, :]
    arcs[(replaced > highest + rounding) | (labels[:, None] == labels[None, :])] = np.inf
    return arcs, -1e-9


def _negative_cycle(arcs: Floats, labels: Ints, longest: int, least: float) -> list[int]:
    """Nodes of different groups, each taking the next one's place and the last the first's; empty where none gains.

    The best two-cycle if there is one. Else paths grow arc by arc while their sum is negative, which some rotation of
    any negative cycle is, all the way: so every such cycle is found where no more than PATHS_KEPT paths are open.
    """
    if longest < 2 or not len(arcs):
        return []
    pairs = arcs + arcs.T
    u, v = divmod(int(pairs.argmin()), len(arcs))
    if pairs[u, v] < least:
        return [u, v]
    paths = np.argwhere(arcs < 0.0)
    sums = arcs[paths[:, 0], paths[:, 1]]
    for length in range(3, longest + 1):
        if len(paths) > PATHS_KEPT:
            kept = np.argsort(sums, kind="stable")[:PATHS_KEPT]
            paths, sums = paths[kept], sums[kept]
        onward = sums[:, None] + arcs[paths[:, -1]]
        for place in range(length - 1):
            onward[labels[paths[:, place]][:, None] == labels[None, :]] = np.inf
        closed = onward + arcs[:, paths[:, 0]].T
        if closed.size and closed.min() < least:
            row, node = divmod(int(closed.argmin()), len(arcs))
            return [*paths[row].tolist(), node]
        rows, nodes = np.nonzero(onward < 0.0)
        paths, sums = np.column_stack((paths[rows], nodes)), onward[rows, nodes]
    return []


def cut(order: Ints, sizes: Sequence[int]) -> Ints:
    """The labels where the first sizes[0] nodes of `order` are group 0, the next sizes[1] group 1, and so on."""
    labels = np.empty(len(order), dtype=np.intp)
    labels[order] = np.repeat(np.arange(len(sizes)), sizes)
    return labels


def spectral_order(weight: Floats) -> Ints:
    """The nodes by their place in the Fiedler vector of the graph whose affinity is the largest weight less the weight.

    Fiedler (1973), doi:10.21136/CMJ.1973.101168: nodes with little weight between them come to stand together.
    """
    from scipy.linalg import eigh

    both = (weight + weight.T) / 2.0
    affinity = both.max() - both
    np.fill_diagonal(affinity, 0.0)
    laplacian = np.diag(affinity.sum(axis=1)) - affinity
    at = min(1, len(weight) - 1)
    vector = eigh(laplacian, subset_by_index=[at, at])[1][:, 0]
    return np.argsort(vector, kind="stable")


def hierarchical_order(weight: Floats) -> Ints:
    """The leaves of an average-linkage clustering in which nodes with little weight between them join first."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    both = (weight + weight.T) / 2.0
    upper = np.triu_indices(len(weight), 1)
    return leaves_list(linkage(both[upper] - both[upper].min(), method="average")).astype(np.intp)


def grow(weight: Floats, sizes: Sequence[int], rng: np.random.Generator) -> Ints:
    """Groups grown from seeds: each seed weighs much to those before it; then the cheapest pair of node and group with
    room, by mean weight to the group's nodes, joins.
    """
    n, groups = len(weight), len(sizes)
    both = (weight + weight.T) / 2.0
    np.fill_diagonal(both, 0.0)
    labels = np.full(n, -1, dtype=np.intp)
    totals = np.zeros((n, groups))  # to the nodes that each group has
    counts = np.zeros(groups)

    def join(node: int, group: int) -> None:
        labels[node] = group
        counts[group] += 1
        totals[:, group] += both[:, node]

    join(int(rng.integers(n)), 0)
    for group in range(1, groups):
        nearest = totals[:, :group].min(axis=1)
        nearest[labels >= 0] = -np.inf
        join(int(nearest.argmax()), group)
    for _ in range(n - groups):
        mean = totals / counts
        mean[labels >= 0] = np.inf
        mean[:, counts >= sizes] = np.inf
        join(*divmod(int(mean.argmin()), groups))
    return labels


def _check(weight: Floats) -> None:
    n = len(weight)
    if weight.shape != (n, n):
        raise ValueError(f"weight has shape {weight.shape}, not (n, n)")
    if not np.isfinite(weight[~np.eye(n, dtype=bool)]).all():
        raise ValueError("weight holds inf or nan")
