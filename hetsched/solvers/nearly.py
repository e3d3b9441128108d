"""Where nothing fits: plans that are nearest to it, from which a user learns what is lacking."""

from collections.abc import Iterator

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import on_grid, variants
from hetsched.solvers.grid_starts import start_grids
from hetsched.solvers.megatron import MANY_DEVICES, Megatron


def nearly_fitting(problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
    """Of the constructive grids with all that saves memory the nearest, of not too many devices; then the baseline's.

    The baseline's layers are split evenly, which unequal GPUs lack most memory for.
    """
    if len(problem.cluster.devices) <= MANY_DEVICES:
        least = next(variants(problem, model.assumes))[-1]
        candidates = [on_grid(problem, model, grid, least) for grid in start_grids(problem)]
        yield from sorted(candidates, key=lambda candidate: candidate.cost.rank(problem.objective))[:1]
    yield from Megatron().search(problem, model, rng)
