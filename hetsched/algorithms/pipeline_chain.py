"""The cheapest chain of stages through pools of GPUs: an exact dynamic programme.

HexGen's recurrence (Jiang et al. 2024, arXiv 2311.11514, section 4): with the GPUs that remain, the layers left and the
pool of the last stage as its state,

    F(remaining, left, last) = min over pool t, degree k, layers x of F(...) + x · layer_s[t, k] + hop_s[last, t].

GPUs of a pool stand in machines; a stage takes `k` GPUs of one machine. All states in which equally many GPUs are in
use are worked on at once, and the minimum over x is a sliding one over whole arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

TOLERANCE = 1e-9


class Option(NamedTuple):
    """A stage of `degree` GPUs: seconds a layer, and the most layers it may hold by its place in the chain.

    most: in the middle, as the first, as the last, and as the only stage. first_s, last_s: what the first and the last
    stage take besides.
    """

    degree: int
    layer_s: float
    most: tuple[int, int, int, int]
    first_s: float = 0.0
    last_s: float = 0.0


class ChainStage(NamedTuple):
    """A stage of the result: its pool, which option of the pool, its layers, and what its machine had left before."""

    pool: int
    option: int
    layers: int
    spare: int


@dataclass(frozen=True)
class Chain:
    """The stages in order and what they take together, in seconds."""

    stages: tuple[ChainStage, ...]
    seconds: float


class _Move(NamedTuple):
    """Taking an option's GPUs from a machine, a way for which no two states lead to the same one.

    spare, after: for each state of all pools, what the machine has left, and the state after it: -1 where there is no
    such machine.
    """

    pool: int
    option: int
    spare: Ints
    after: Ints


def best_chain(
    machines: Sequence[Sequence[int]], options: Sequence[Sequence[Option]], hop_s: Floats, layers: int
) -> Chain | None:
    """The chain of least time that holds all `layers`; None where there is none.

    machines: per pool, the GPUs of each of its machines; options: per pool. hop_s: (pools, pools), [t, u] from a stage
    of t to one of u, infinite where that is not allowed.
    """
    moves, used = _moves(machines, options)
    start = int(np.flatnonzero(used == 0)[0])
    best = np.full((len(used), len(machines), layers + 1), inf)
    end = _single(options, moves, start, layers)
    for move in moves:
        if move.after[start] >= 0:
            option = options[move.pool][move.option]
            held = np.arange(1, min(option.most[1], layers) + 1)
            row = best[move.after[start], move.pool]
            row[held] = np.minimum(row[held], held * option.layer_s + option.first_s)
    for count in range(1, int(used.max()) + 1):
        states = np.flatnonzero(used == count)
        if states.size == 0 or not np.isfinite(best[states]).any():
            continue
        for pool in range(len(machines)):
            mine = [move for move in moves if move.pool == pool]
            if not any((move.after[states] >= 0).any() for move in mine):
                continue
            before = (best[states] + hop_s[None, :, pool, None]).min(axis=1)
            for move in mine:
                rows = np.flatnonzero(move.after[states] >= 0)
                if rows.size:
                    end = min(end, _ending(before, states, rows, move, options[pool][move.option], layers))
                    _go_on(best, before[rows], move.after[states[rows]], pool, options[pool][move.option])
    if end[0] == inf:
        return None
    return _traced(best, end, moves, options, hop_s, layers)


_End = tuple[float, int, ChainStage]  # seconds, the state before the last stage, and that stage
_NONE: _End = (inf, -1, ChainStage(-1, -1, 0, 0))


def _single(options: Sequence[Sequence[Option]], moves: Sequence[_Move], start: int, layers: int) -> _End:
    """The best chain of one stage."""
    end = _NONE
    for move in moves:
        option = options[move.pool][move.option]
        if move.after[start] >= 0 and option.most[3] >= layers:
            seconds = layers * option.layer_s + option.first_s + option.last_s
            end = min(end, (seconds, start, ChainStage(move.pool, move.option, layers, int(move.spare[start]))))
    return end


def _ending(before: Floats, states: Ints, rows: Ints, move: _Move, option: Option, layers: int) -> _End:
    """The best chain that ends with this move from one of these states."""
    most = min(option.most[2], layers - 1)
    if most < 1:
        return _NONE
    held = np.arange(1, most + 1)
    totals = before[rows][:, layers - held] + held * option.layer_s + option.last_s
    row, x = divmod(int(totals.argmin()), most)
    state = int(states[rows[row]])
    return float(totals[row, x]), state, ChainStage(move.pool, move.option, x + 1, int(move.spare[state]))


def _go_on(best: Floats, before: Floats, after: Ints, pool: int, option: Option) -> None:
    """Lower `best` by a stage in the middle: new[l] = min over 1 <= x <= most of before[l - x] + x · layer_s."""
    most = min(option.most[0], before.shape[1] - 1)
    if most < 1:
        return
    slope = np.arange(before.shape[1]) * option.layer_s
    # A window over [l - most, l - 1], which the filter wants as a size and the shift of its centre.
    lowest = minimum_filter1d(before - slope, size=most, axis=1, mode="constant", cval=inf, origin=most - 1 - most // 2)
    shifted = np.full_like(before, inf)
    shifted[:, 1:] = lowest[:, :-1]
    best[after, pool] = np.minimum(best[after, pool], shifted + slope)


def _traced(
    best: Floats,
    end: _End,
    moves: Sequence[_Move],
    options: Sequence[Sequence[Option]],
    hop_s: Floats,
    layers: int,
) -> Chain:
    """The stages, from the last one back: at each state the stage before is one whose time adds up."""
    seconds, state, stage = end
    stages, done = [stage], layers - stage.layers
    while done:
        last = int(np.argmin(best[state, :, done] + hop_s[:, stage.pool]))
        state, stage = _stage_before(best, moves, options, hop_s, (state, last, done))
        stages.append(stage)
        done -= stage.layers
    return Chain(tuple(reversed(stages)), seconds)


def _stage_before(
    best: Floats,
    moves: Sequence[_Move],
    options: Sequence[Sequence[Option]],
    hop_s: Floats,
    at: tuple[int, int, int],
) -> tuple[int, ChainStage]:
    """The state before, and the stage with which `at` = (state, its pool, layers done) was reached."""
    state, pool, done = at
    wanted = float(best[at])
    found, off = (-1, ChainStage(-1, -1, 0, 0)), inf
    for move in moves:
        if move.pool != pool:
            continue
        option = options[pool][move.option]
        for before in np.flatnonzero(move.after == state):
            ways = (best[before] + hop_s[:, pool, None]).min(axis=0)
            most = min(option.most[0], done - 1)
            if most >= 1:
                held = np.arange(1, most + 1)
                misses = np.abs(ways[done - held] + held * option.layer_s - wanted)
                k = int(misses.argmin())
                if misses[k] < off:
                    stage = ChainStage(pool, move.option, k + 1, int(move.spare[before]))
                    found, off = (int(before), stage), float(misses[k])
            alone = abs(done * option.layer_s + option.first_s - wanted)
            if before == 0 and done <= option.most[1] and alone < off:
                found, off = (0, ChainStage(pool, move.option, done, int(move.spare[0]))), alone
    if not off <= TOLERANCE * max(1.0, abs(wanted)):
        raise AssertionError("a chain's stages do not add up to its time")
    return found


def _moves(machines: Sequence[Sequence[int]], options: Sequence[Sequence[Option]]) -> tuple[list[_Move], Ints]:
    """All moves, and the number of GPUs in use in each state; state 0 is the one where none is.

    A pool's state is the sorted numbers of GPUs left in its machines; a state of all pools is one of each.
    """
    single = [
        _pool_moves(counts, [option.degree for option in choices])
        for counts, choices in zip(machines, options, strict=True)
    ]
    sizes = [len(used) for _, used in single]
    total = int(np.prod(sizes))
    places = np.array(np.unravel_index(np.arange(total), sizes))
    used = sum(np.asarray(pool_used)[places[pool]] for pool, (_, pool_used) in enumerate(single))
    moves = []
    strides = [int(np.prod(sizes[pool + 1 :])) for pool in range(len(sizes))]
    for pool, (pool_moves, _) in enumerate(single):
        for option, spare, step in pool_moves:
            to = step[places[pool]]
            after = np.where(to >= 0, np.arange(total) + (to - places[pool]) * strides[pool], -1)
            moves.append(_Move(pool, option, spare[places[pool]], after))
    return moves, np.asarray(used)


def _pool_moves(counts: Sequence[int], degrees: Sequence[int]) -> tuple[list[tuple[int, Ints, Ints]], list[int]]:
    """(option, GPUs left of the machine taken from, state after each state), and the GPUs in use in each state.

    A way of moving is by how many GPUs the machine has left, so that no two states meet; of one machine it is but one.
    """
    first = tuple(sorted(counts))
    states, queue = {first: 0}, [first]
    steps: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
    for state in queue:
        for option, degree in enumerate(degrees):
            for left in {left for left in state if left >= degree}:
                rest = list(state)
                rest.remove(left)
                after = tuple(sorted([*rest, left - degree]))
                if after not in states:
                    states[after] = len(states)
                    queue.append(after)
                way = left if len(first) > 1 else 0
                steps.setdefault((option, way), {})[states[state]] = states[after], left
    moves = []
    for (option, _), pairs in steps.items():
        step, spare = np.full(len(states), -1, dtype=np.intp), np.zeros(len(states), dtype=np.intp)
        step[list(pairs)] = [after for after, _ in pairs.values()]
        spare[list(pairs)] = [left for _, left in pairs.values()]
        moves.append((option, spare, step))
    whole = sum(first)
    return moves, [whole - sum(state) for state in states]
