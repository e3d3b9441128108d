"""What a serving solver is: it yields drafts of plans; it never seeds, times, stops, simulates or prints."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from hetsched.solvers.serving.workshop import Draft, Workshop


class ServingSolver(Protocol):
    """A frozen dataclass of its own parameters; `search` yields a draft a step, None for a step that made none."""

    @property
    def name(self) -> str:
        """What `--solver` calls it."""
        ...

    @property
    def apart(self) -> bool:
        """Whether its plans may have replicas that prefill and others that decode."""
        ...

    def steps(self, workshop: Workshop) -> int:
        """How many steps make a good search."""
        ...

    def search(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Draft | None]:
        """Drafts, better and worse; equal generators give equal ones."""
        ...
