"""Solver `pipeline-dp`: the exact layouts of one replica of all GPUs; and of groups of near ones, for each number.

HexGen's inner problem by itself. The groups are those of a clustering of the network, cut where it is slowest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.solvers.serving.neighbours import grown
from hetsched.solvers.serving.workshop import BATCHES, Draft, Workshop


@dataclass(frozen=True, slots=True)
class PipelineDp:
    """The single replica's whole Pareto set up to `points` of it, then as many replicas as could hold the model."""

    step: float = 0.1
    name: str = "pipeline-dp"
    apart: bool = False

    def steps(self, workshop: Workshop) -> int:
        """Its iterator ends."""
        return 10**6

    def search(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Draft | None]:
        """Single replicas first."""
        everything = range(len(workshop.problem.cluster.devices))
        for batch, rounds in BATCHES:
            for stages in workshop.layouts.pareto(everything, batch, rounds, self.step):
                yield workshop.assembled([workshop.made(stages)])
        for groups in grown(workshop):
            yield workshop.draft(groups)
