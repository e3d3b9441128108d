"""Rows of a linear programme, and the most that some of its variables can add up to."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from hetsched.algorithms.integer_programme import Rows as Constraints
from hetsched.algorithms.integer_programme import solve
from hetsched.cluster import Floats, Indices

Values = Floats | Indices | NDArray[np.bool_] | float


class Rows:
    """Rows of a linear programme: coefficients times variables, none of them negative, add up to a limit at most."""

    def __init__(self) -> None:
        self._variables = 0
        self._rows: list[Indices] = []
        self._columns: list[Indices] = []
        self._values: list[Floats] = []
        self._limits: list[float] = []

    def new(self, count: int) -> Indices:
        """So many more variables."""
        self._variables += count
        return np.arange(self._variables - count, self._variables)

    def each(self, *terms: tuple[Indices, Values]) -> None:
        """A row for each position of the terms' variables, with limit 0."""
        count = len(terms[0][0])
        for columns, values in terms:
            self._add(len(self._limits) + np.arange(count), columns, values)
        self._limits += [0.0] * count

    def several(self, count: int, *terms: tuple[Indices, Indices, Values]) -> None:
        """So many rows with limit 0; of each term, which row each of its variables is in."""
        for at, columns, values in terms:
            self._add(len(self._limits) + at, columns, values)
        self._limits += [0.0] * count

    def total(self, limit: float, *terms: tuple[Indices, Values]) -> None:
        """One row that adds up all."""
        for columns, values in terms:
            self._add(np.full(len(columns), len(self._limits)), columns, values)
        self._limits.append(limit)

    def _add(self, rows: Indices, columns: Indices, values: Values) -> None:
        self._rows.append(rows)
        self._columns.append(columns)
        self._values.append(np.broadcast_to(np.asarray(values, dtype=np.float64), len(columns)))

    def most(self, *terms: tuple[Indices, Values]) -> float:
        """The most that these can add up to; -inf where nothing keeps all rows, inf where the solver does not know."""
        wanted = np.zeros(self._variables)
        for columns, values in terms:
            wanted[columns] -= values
        found = solve(wanted, [self._all()], 0.0, np.inf)
        if found.solved:
            return -found.costs
        return -np.inf if found.infeasible else np.inf

    def kept(self, whole: int, most_nodes: int) -> bool:
        """Whether all rows may be kept where the first `whole` variables are whole numbers.

        most_nodes: of the search tree; what is not known by then may be.
        """
        found = solve(np.zeros(self._variables), [self._all()], 0.0, np.inf, whole, most_nodes=most_nodes)
        return not found.infeasible

    def _all(self) -> Constraints:
        at = np.concatenate(self._rows), np.concatenate(self._columns)
        matrix = coo_array((np.concatenate(self._values), at), shape=(len(self._limits), self._variables)).tocsr()
        return matrix, -np.inf, np.array(self._limits)
