"""Baseline `uniform`: equal tensor-parallel replicas on each node, co-located, as one would start without a planner.

Where a node can't hold the model, a replica is a pipeline of equal stages on nodes in inventory order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.cost.serving.placed import degrees, even_layers
from hetsched.plan import Stage
from hetsched.solvers.serving.workshop import Draft, Replica, Workshop


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every degree and depth, GPUs in inventory order; replicas that do not fit are left out.

    Each with requests shared evenly, and by what the replicas can do.
    """

    name: str = "uniform"
    apart: bool = False

    def steps(self, workshop: Workshop) -> int:
        """All there are."""
        return 2 * len(shapes(workshop))

    def search(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Draft | None]:
        """Two drafts for each degree and depth."""
        for degree, depth in shapes(workshop):
            replicas = list(_fitting(workshop, degree, depth))
            for even in (False, True):
                yield workshop.assembled(replicas, even=even) if replicas else None


def _fitting(workshop: Workshop, degree: int, depth: int) -> Iterator[Replica]:
    """Replicas of that shape that have room for a request."""
    groups, layers = teams(workshop, degree), even_layers(workshop.problem.model.num_layers, depth)
    for first in range(0, len(groups) - depth + 1, depth):
        chosen = groups[first : first + depth]
        replica = workshop.made([Stage(held, names) for held, names in zip(layers, chosen, strict=True)])
        if workshop.holds_a_request(replica):
            yield replica


def shapes(workshop: Workshop) -> list[tuple[int, int]]:
    """(degree, depth) of replicas that the cluster has GPUs for, and memory."""
    problem = workshop.problem
    widest = max(len(node.gpus) for node in problem.cluster.nodes)
    found = []
    for degree in degrees(problem.model, widest):
        groups = len(teams(workshop, degree))
        found += [(degree, depth) for depth in range(1, min(groups, problem.model.num_layers) + 1)]
    return [shape for shape in found if workshop.could_hold_evenly(*shape)]


def teams(workshop: Workshop, degree: int, used: frozenset[str] = frozenset()) -> list[tuple[str, ...]]:
    """GPUs of one kind in one node, `degree` at a time, in inventory order, without those in use."""
    groups = []
    for node in workshop.problem.cluster.nodes:
        kinds: dict[str, list[str]] = {}
        for index, gpu in enumerate(node.gpus):
            if f"{node.name}/{index}" not in used:
                kinds.setdefault(gpu.kind, []).append(f"{node.name}/{index}")
        for names in kinds.values():
            groups += [tuple(names[k : k + degree]) for k in range(0, len(names) - degree + 1, degree)]
    return groups
