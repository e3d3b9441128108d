"""What a solver is: it yields candidate plans; it never seeds, times, stops or prints. The driver does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hetsched.cost.base import Cost, CostModel
from hetsched.plan import Plan
from hetsched.problem import Problem

# Of its price: what a plan counts for at least. The price has all messages of pipelines that share a network on their
# way at once. As played some plans fall out of step and are a quarter faster; what jitter leaves of that is not known.
LEAST_OF_PRICE = 0.9


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and its price; played: what it costs as simulated, where that is known."""

    plan: Plan
    cost: Cost
    played: Cost | None = None

    def worth(self, objective: str) -> float:
        """What of its rank is not whether it fits: as played, where it was, but never far below its price."""
        price = self.cost.rank(objective)[1]
        return price if self.played is None else max(self.played.rank(objective)[1], price * LEAST_OF_PRICE)


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
