"""What a solver is: it yields candidate plans; it never seeds, times, stops or prints. The driver does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hetsched.cost.base import Cost, CostModel
from hetsched.plan import Plan
from hetsched.problem import Problem


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and its price."""

    plan: Plan
    cost: Cost


class Solver(Protocol):
    """A frozen dataclass of its own parameters.

    `search` yields a candidate a step, each a similar piece of work; an exact solver's iterator ends, a heuristic's
    runs until it is stopped. Equal generators give equal candidates.
    """

    @property
    def name(self) -> str:
        """What `--solver` calls it."""
        ...

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Why the solver can't work on this problem, or None."""
        ...

    def steps(self, problem: Problem) -> int:
        """How many steps make a good search: about 5 CPU-seconds for 64 GPUs."""
        ...

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """Candidates, better and worse."""
        ...
