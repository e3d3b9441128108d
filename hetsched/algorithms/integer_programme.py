"""Integer linear programmes, by HiGHS."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STDOUT = 1  # the descriptor
MOST_NODES = 2**31 - 1


def least(
    costs: Floats,
    rows: Floats,
    limits: Floats,
    low: Floats,
    high: Floats,
    time_limit_s: float = inf,
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
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import

    with unheard():
        found = milp(
            costs,
            integrality=(np.arange(len(costs)) < count).astype(np.intp),
            bounds=Bounds(low, high),
            constraints=LinearConstraint(rows, ub=limits),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap, "node_limit": most_nodes},
        )
    return None if found.x is None else np.concatenate([np.round(found.x[:count]), found.x[count:]])


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
