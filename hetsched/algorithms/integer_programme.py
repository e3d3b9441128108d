"""Linear programmes, of whole numbers or any, by HiGHS."""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]

STDOUT = 1  # the descriptor
MOST_NODES = 2**31 - 1
SOLVED, INFEASIBLE = 0, 2  # what `milp` says of a programme

Rows = tuple[Floats | csr_array, Floats | float, Floats]  # a matrix, and from what to what it times the variables is


@dataclass(frozen=True, slots=True)
class Point:
    """The best point found, None where there is none; and its costs.

    solved: whether it is the best; infeasible: whether there surely is none.
    """

    at: Floats | None
    costs: float
    solved: bool
    infeasible: bool


def least(
    costs: Floats,
    rows: Floats,
    limits: Floats,
    low: Floats,
    high: Floats,
    gap: float = 0.0,
    whole: int | None = None,
    most_nodes: int = MOST_NODES,
) -> Floats | None:
    """Whole numbers x of the least costs @ x, with rows @ x <= limits and low <= x <= high; None where none was found.

    costs, low, high: (variables,); rows: (limits, variables). gap: relative, how far from the least is near enough.
    whole: so many of the variables, the first ones, are whole numbers, the others any; None: all. most_nodes: of the
    search tree, a limit that is the same on any machine.
    """
    count = len(costs) if whole is None else whole
    found = solve(costs, [(rows, -inf, limits)], low, high, count, gap, most_nodes).at
    return None if found is None else np.concatenate([np.round(found[:count]), found[count:]])


def solve(
    costs: Floats,
    rows: Sequence[Rows],
    low: Floats | float,
    high: Floats | float,
    whole: int = 0,
    gap: float = 0.0,
    most_nodes: int = MOST_NODES,
) -> Point:
    """x of the least costs @ x that keeps all rows, with low <= x <= high, the first `whole` of them whole numbers.

    The rest is as for `least`.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import

    with unheard():
        found = milp(
            costs,
            integrality=(np.arange(len(costs)) < whole).astype(np.intp),
            bounds=Bounds(low, high),
            constraints=[LinearConstraint(matrix, least, most) for matrix, least, most in rows],
            options={"mip_rel_gap": gap, "node_limit": most_nodes},
        )
    value = inf if found.fun is None else float(found.fun)
    return Point(found.x, value, found.status == SOLVED, found.status == INFEASIBLE)


@contextmanager
def unheard() -> Iterator[None]:
    """What C code prints to stdout is dropped: HiGHS 1.x has prints left over, which would stand in a JSON document."""
    sys.stdout.flush()
    kept, nowhere = os.dup(STDOUT), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, STDOUT)
        os.close(kept)
        os.close(nowhere)
