"""The largest flow through a network; and through one whose routes share capacities, which is a linear programme."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack, vstack

from hetsched.algorithms.integer_programme import solve

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

RESOLUTION = 2**42  # what the largest finite capacity becomes as an integer; so many of them may add up
LEAST_GAIN = 1e-9  # of the flow: rounding


def max_flow(arcs: Ints, capacities: Floats, source: int, sink: int) -> tuple[float, Floats]:
    """(the largest flow from source to sink, the flow of each arc).

    arcs: (m, 2), from node to node; capacities: (m,), not negative, infinite where nothing limits. Push-relabel after
    Goldberg and Tarjan (1988, doi:10.1145/48014.61051) on integers, by OR-Tools: exact but for the rounding of
    capacities to 2^-42 of the largest one. Raises ValueError where all arcs of a way are infinite.
    """
    from ortools.graph.python.max_flow import SimpleMaxFlow

    finite = np.isfinite(capacities)
    largest = float(capacities[finite].max(initial=0.0))
    if largest <= 0.0:
        return 0.0, np.zeros(len(arcs))
    whole = min(RESOLUTION, 2**62 // max(1, len(arcs)))
    unit = largest / whole
    limits = np.where(finite, capacities, float(capacities[finite].sum()) * 1.01) / unit
    solver = SimpleMaxFlow()
    solver.add_arcs_with_capacity(arcs[:, 0], arcs[:, 1], np.floor(limits + 0.5).astype(np.int64))
    if solver.solve(source, sink) != solver.OPTIMAL:
        raise ValueError("a way from source to sink has no limit, or the capacities are too many")
    return solver.optimal_flow() * unit, np.asarray(solver.flows(np.arange(len(arcs)))) * unit


@dataclass(frozen=True, eq=False)
class SharedNetwork:
    """Routes from sources to targets, and what they share.

    supply: (sources,), demand: (targets,), what each can send or take; ends: (routes, 2), its source and target; most:
    (routes,), what each carries alone. use: (resources, routes), what a unit of a route's flow takes of each resource,
    of which there is 1. worth: (routes,), not negative, what a unit of each route's flow counts; None: 1.
    """

    supply: Floats
    demand: Floats
    ends: Ints
    most: Floats
    use: csr_array
    worth: Floats | None = None

    def flow(self) -> tuple[float, Floats]:
        """(the largest flow, (routes,) what each route carries).

        By `max_flow`, as if nothing were shared; where that takes more of a resource than there is, by the linear
        programme that knows. So where routes are not worth the same.
        """
        if self.worth is not None:
            return self._together()
        value, flows = self._apart()
        if self.use.shape[0] and (self.use @ flows > 1.0 + LEAST_GAIN).any():
            return self._together()
        return value, flows

    def _apart(self) -> tuple[float, Floats]:
        sources, targets, routes = len(self.supply), len(self.demand), len(self.ends)
        if not routes:
            return 0.0, np.zeros(0)
        start, end = sources + targets, sources + targets + 1
        arcs = np.concatenate(
            [
                np.column_stack([np.full(sources, start), np.arange(sources)]),
                np.column_stack([self.ends[:, 0], sources + self.ends[:, 1]]),
                np.column_stack([sources + np.arange(targets), np.full(targets, end)]),
            ]
        )
        value, flows = max_flow(arcs, np.concatenate([self.supply, self.most, self.demand]), start, end)
        return value, flows[sources : sources + routes]

    def _together(self) -> tuple[float, Floats]:
        if not len(self.ends):
            return 0.0, np.zeros(0)
        rows, limits = self._rows()
        found = _programme(-self._worth, [(rows, np.full(len(limits), -np.inf), limits)], self.most)
        flows = np.zeros(len(self.ends)) if found is None else found
        return float(self._worth @ flows), flows

    @property
    def _worth(self) -> Floats:
        return np.ones(len(self.ends)) if self.worth is None else self.worth

    def levelled(self, value: float) -> Floats:
        """(routes,): a flow of that value in which no source, target or resource is used more than must be.

        First the largest share of any source's supply that is used is made least, then that of a target, both in one
        programme with the resources, which count little.
        """
        routes = len(self.ends)
        if not routes or value <= 0.0:
            return np.zeros(routes)
        rows, limits = self._rows()
        counts = (len(self.supply), len(self.demand), self.use.shape[0])
        level = csr_array(np.repeat(np.eye(3), counts, axis=0) * -limits[:, None])
        none = np.full(len(limits), -np.inf)
        total = csr_array(np.concatenate([self._worth, np.zeros(3)])[None, :])
        found = _programme(
            np.concatenate([np.zeros(routes), [1.0, 1.0, 0.1]]),
            [
                (csr_array(hstack([rows, level])), none, np.zeros(len(limits))),
                (csr_array(hstack([rows, csr_array((len(limits), 3))])), none, limits),
                (total, np.array([value * (1.0 - LEAST_GAIN)]), np.array([np.inf])),
            ],
            np.concatenate([self.most, np.ones(3)]),
        )
        return self.flow()[1] if found is None else found[:routes]

    def _rows(self) -> tuple[csr_array, Floats]:
        """What each source sends, each target takes, and what is used of each resource; and how much there is."""
        every = np.arange(len(self.ends))
        ones = np.ones(len(self.ends))
        sent = csr_array((ones, (self.ends[:, 0], every)), shape=(len(self.supply), len(every)))
        taken = csr_array((ones, (self.ends[:, 1], every)), shape=(len(self.demand), len(every)))
        limits = np.concatenate([self.supply, self.demand, np.ones(self.use.shape[0])])
        return csr_array(vstack([sent, taken, self.use])), limits


def _programme(goal: Floats, rows: Sequence[tuple[csr_array, Floats, Floats]], most: Floats) -> Floats | None:
    """The linear programme's best point from 0 to `most`, None where there is none: HiGHS."""
    found = solve(goal, rows, 0.0, most).at
    return None if found is None else np.maximum(found, 0.0)
