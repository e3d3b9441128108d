"""The open-loop travelling salesman: the cheapest path that visits every node once, with no way back.

A pipeline's stage order is one: cost[i, j] is what a hop from group i to group j costs, and directions may differ.
"""

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

EXACT_UP_TO = 15  # nodes: held_karp takes 12 ms there and about 2.1 times more for each node on top
LARGEST_EXACT = 20  # nodes: the table holds 2^n · n floats, 168 MB there
LONGEST_SEGMENT = 3
ELEMENTS_AT_A_TIME = 1 << 16  # temporary arrays of this size stay in the processor's cache


def open_tsp(cost: Floats, rng: np.random.Generator, start: int | None = None) -> tuple[Ints, float]:
    """The cheapest path found through all nodes: proven up to 15 nodes, by local search beyond.

    cost: (n, n), [i, j] from i to j; inf forbids the hop; the diagonal is not read. `start` fixes the first node.
    Returns the order, (n,), and its length, inf where no path avoids the forbidden hops.
    """
    if len(cost) <= EXACT_UP_TO:
        return held_karp(cost, start)
    return local_search(cost, rng, start)


def path_length(cost: Floats, order: Ints) -> float:
    """The sum of cost[i, j] over the hops i to j of `order`."""
    return float(cost[order[:-1], order[1:]].sum())


def held_karp(cost: Floats, start: int | None = None) -> tuple[Ints, float]:
    """The cheapest path through all nodes, by dynamic programming over subsets.

    Held and Karp (1962), doi:10.1137/0110015: with f(S, j) the cheapest path through S that ends at j in S,
    f(S ∪ {j}, j) = min over i in S of f(S, i) + cost[i, j]. All subsets of one size are extended at a time.
    Takes and returns what open_tsp does, for at most 20 nodes.
    """
    n = _check(cost, start)
    if start is None:
        return _cheapest(cost, np.zeros(n))
    others = np.delete(np.arange(n), start)
    order, length = _cheapest(cost[np.ix_(others, others)], cost[start, others])
    return np.concatenate(([start], others[order])), length


def _cheapest(cost: Floats, first: Floats) -> tuple[Ints, float]:
    """The cheapest path where beginning at node j costs first[j]."""
    n = len(cost)
    if n == 0:
        return np.zeros(0, dtype=np.intp), 0.0
    if n > LARGEST_EXACT:
        raise ValueError(f"held_karp takes at most {LARGEST_EXACT} nodes, not {n}: use local_search")
    levels = _levels(n)
    table = np.full((n, n), np.inf)  # [j, s]: f(S_s, j) for the subsets of one size, here the single nodes
    np.fill_diagonal(table, first)
    tables = [table]
    hops = cost[:, :, None]
    for before, member in levels:
        extended = np.empty((n, table.shape[1]))
        step = max(1, ELEMENTS_AT_A_TIME // (n * n))
        for at in range(0, table.shape[1], step):
            (table[:, None, at : at + step] + hops).min(axis=0, out=extended[:, at : at + step])
        table = np.full((n, len(before)), np.inf)
        table[member, np.arange(len(before))[:, None]] = extended[member, before]
        tables.append(table)
    end = int(table[:, 0].argmin())
    length = float(table[end, 0])
    if not np.isfinite(length):
        return np.arange(n), length
    order = [end]
    subset = 0
    for (before, member), table in zip(reversed(levels), reversed(tables[:-1]), strict=True):
        subset = int(before[subset, np.flatnonzero(member[subset] == end)[0]])
        end = int((table[:, subset] + cost[:, end]).argmin())
        order.append(end)
    return np.array(order[::-1]), length


@lru_cache(maxsize=8)
def _levels(n: int) -> list[tuple[Ints, Ints]]:
    """For each size k from 2 to n: where the subsets less one member stand among those of size k - 1, and that member.

    Both are (number of subsets, k).
    """
    levels: list[tuple[Ints, Ints]] = []
    place = np.zeros(1 << n, dtype=np.intp)
    place[1 << np.arange(n)] = np.arange(n)
    for size in range(2, n + 1):
        member = np.array(list(combinations(range(n), size)), dtype=np.intp)
        bits = np.left_shift(1, member)
        subsets = bits.sum(axis=1)
        levels.append((place[subsets[:, None] - bits], member))
        place[subsets] = np.arange(len(subsets))
    return levels


def local_search(
    cost: Floats, rng: np.random.Generator, start: int | None = None, restarts: int = 16, rounds: int | None = None
) -> tuple[Ints, float]:
    """A short path through all nodes: Or-opt and 2-opt from many starts at once, each shaken and improved again.

    `restarts` paths (half from nearest neighbour, half random) go down together by their best moves: a segment of up
    to three nodes moved elsewhere, either way round (Or, 1976), or any segment reversed (Croes, 1958,
    doi:10.1287/opre.6.6.791), with what the reversal changes inside the segment counted. Then `rounds` times (n where
    not said) each path has two neighbouring segments exchanged, which is the double bridge of Martin, Otto and Felten
    (1991) cut open, goes down again, and keeps the better. Takes and returns what open_tsp does.
    """
    n = _check(cost, start)
    if n < 3:
        return held_karp(cost, start)
    closed, home = _close(cost, start)
    paths = np.empty((restarts, n + 1), dtype=np.intp)
    for row in range(restarts):
        paths[row] = _nearest_neighbour(closed, home, rng) if row % 2 == 0 else _random_path(n, home, start, rng)
    paths = _descend(closed, paths)
    lengths = _lengths(closed, paths)
    for _ in range(n if rounds is None else rounds):
        shaken = _descend(closed, np.array([_shake(path, rng) for path in paths]))
        shorter = _lengths(closed, shaken)
        better = shorter < lengths
        paths[better], lengths[better] = shaken[better], shorter[better]
    order = paths[int(lengths.argmin()), 1:]
    return order, path_length(cost, order)


def _close(cost: Floats, start: int | None) -> tuple[Floats, int]:
    """The cost of closed tours through one node more, `home`, which stands before the start and after the end.

    Forbidden hops take a cost that no tour without them reaches, so that differences stay finite.
    """
    n = len(cost)
    hops = cost.astype(np.float64)
    np.fill_diagonal(hops, 0.0)
    finite = np.isfinite(hops)
    forbidden = 1.0 + 2.0 * n * float(np.abs(hops[finite]).max(initial=0.0))
    closed = np.zeros((n + 1, n + 1))
    closed[:n, :n] = np.where(finite, hops, forbidden)
    if start is not None:
        closed[n, :] = forbidden * n
        closed[n, start] = 0.0
    return closed, n


def _nearest_neighbour(closed: Floats, home: int, rng: np.random.Generator) -> Ints:
    """From home on, always to the nearest node not yet visited; ties fall by chance."""
    path = [home]
    left = rng.permutation(home)
    while len(left):
        nearest = int(closed[path[-1], left].argmin())
        path.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return np.array(path)


def _random_path(n: int, home: int, start: int | None, rng: np.random.Generator) -> Ints:
    order = rng.permutation(n)
    if start is not None:
        order = np.concatenate(([start], order[order != start]))
    return np.concatenate(([home], order))


def _shake(path: Ints, rng: np.random.Generator) -> Ints:
    """Exchange two neighbouring segments; home stays first."""
    a, b, c = np.sort(rng.choice(np.arange(1, len(path) + 1), size=3, replace=False))
    return np.concatenate((path[:a], path[b:c], path[a:b], path[c:]))


def _lengths(closed: Floats, paths: Ints) -> Floats:
    lengths: Floats = closed[paths, np.roll(paths, -1, axis=1)].sum(axis=1)
    return lengths


def _descend(closed: Floats, paths: Ints) -> Ints:
    """Apply the best move of each path, (r, m), until none of them has one that shortens it."""
    paths = paths.copy()
    least = -1e-11 * float(np.abs(closed).max())  # smaller gains are rounding
    rows = np.arange(len(paths))
    while len(rows):
        current = paths[rows]
        change, first, last, after, turned = _best_moves(closed[current[:, :, None], current[:, None, :]])
        for row in np.flatnonzero(change < least):
            i, j, k = int(first[row]), int(last[row]) + 1, int(after[row]) + 1
            path = current[row]
            segment = path[i:j][::-1] if turned[row] else path[i:j]
            parts = (path[:k], segment, path[k:i], path[j:]) if k <= i else (path[:i], path[j:k], segment, path[k:])
            paths[rows[row]] = np.concatenate(parts)
        rows = rows[change < least]
    return paths


def _best_moves(hop: Floats) -> tuple[Floats, Ints, Ints, Ints, Ints]:
    """The best move of each tour: the change of its length, then the move.

    hop: (r, m, m), the cost from the node at one position to the node at another. A move takes the segment at
    positions first to last, never position 0, and puts it after position `after`, turned round or not. A reversal on
    the spot has after = first - 1.
    """
    r, m, _ = hop.shape
    onward = np.roll(hop, -1, axis=2)  # [i, k]: from i to the position behind k
    ahead = np.diagonal(onward, axis1=1, axis2=2)  # [k]: the tour's own hop from k
    arrive = hop.swapaxes(1, 2) - ahead[:, None, :]  # [i, k]: from k to i, less the hop that is cut there
    back = np.diagonal(hop, offset=-1, axis1=1, axis2=2)  # [k]: from k + 1 to k
    turn = np.zeros((r, m))  # [j] - [i]: what turning the hops between i and j adds
    np.cumsum(back - ahead[:, :-1], axis=1, out=turn[:, 1:])
    moves = []
    for length in range(1, min(LONGEST_SEGMENT, m - 2) + 1):
        i, j = np.arange(1, m - length + 1), np.arange(length, m)
        closing = onward[:, i - 1, j] - ahead[:, i - 1] - ahead[:, j]
        barred = _inside(m, length)
        moves.append((arrive[:, i] + onward[:, j] + (closing[:, :, None] + barred), length, 0))
        if length > 1:
            closing = closing + turn[:, j] - turn[:, i]
            moves.append((arrive[:, j] + onward[:, i] + (closing[:, :, None] + barred), length, 1))
    reversal = onward + turn[:, None, :] - turn[:, :, None] - ahead[:, None, :]  # [i, j]; i may be any but 0
    reversal[:, 1:] += hop[:, :-1] - ahead[:, :-1, None]
    moves.append((reversal + _not_after(m), 0, 1))

    change = np.full(r, np.inf)
    first, last, after, turned = (np.zeros(r, dtype=np.intp) for _ in range(4))
    for value, length, turning in moves:
        flat = value.reshape(r, -1)
        at = flat.argmin(axis=1)
        found = flat[np.arange(r), at]
        row, column = np.divmod(at, m)
        better = found < change
        i, j, k = (row + 1, row + length, column) if length else (row, column, row - 1)
        change[better], turned[better] = found[better], turning
        first[better], last[better], after[better] = i[better], j[better], k[better]
    return change, first, last, after, turned


@lru_cache(maxsize=16)
def _inside(m: int, length: int) -> Floats:
    """Inf at [i - 1, k] where position k lies in or just before the segment of that length from i, else 0."""
    i, k = np.arange(1, m - length + 1)[:, None], np.arange(m)[None, :]
    return np.where((k >= i - 1) & (k < i + length), np.inf, 0.0)


@lru_cache(maxsize=16)
def _not_after(m: int) -> Floats:
    """Inf at [i, j] unless 0 < i < j."""
    i, j = np.arange(m)[:, None], np.arange(m)[None, :]
    return np.where((i > 0) & (i < j), 0.0, np.inf)


def _check(cost: Floats, start: int | None) -> int:
    n = len(cost)
    if cost.shape != (n, n):
        raise ValueError(f"cost has shape {cost.shape}, not (n, n)")
    if np.isnan(cost).any():
        raise ValueError("cost holds nan")
    if start is not None and not 0 <= start < n:
        raise ValueError(f"start is {start}, not one of the {n} nodes")
    return n
