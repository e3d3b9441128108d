"""Which of several replicas a request goes to."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hetsched.errors import HetschedError

ROUTINGS = ("shares", "random", "least-loaded")


class Router(Protocol):
    """Chooses among the targets of one source, which are positions."""

    def choose(self, under_way: Sequence[int]) -> int:
        """The target of the next request; under_way: how many requests each position has and has not finished."""
        ...


class Shares:
    """In turn, so that after any number of requests each target has its share, give or take one (as nginx does)."""

    def __init__(self, shares: Mapping[int, float]) -> None:
        self._targets, self._shares = list(shares), list(shares.values())
        self._owed = [0.0] * len(shares)

    def choose(self, under_way: Sequence[int]) -> int:
        owed, best = self._owed, 0
        for k, share in enumerate(self._shares):
            owed[k] += share
            if owed[k] > owed[best]:
                best = k
        owed[best] -= 1.0
        return self._targets[best]


class Random:
    """By chance, with the shares as probabilities: each target sees a thinned stream of the source's requests."""

    def __init__(self, shares: Mapping[int, float], rng: np.random.Generator) -> None:
        self._targets = list(shares)
        self._bounds = np.cumsum(list(shares.values()))
        self._rng = rng

    def choose(self, under_way: Sequence[int]) -> int:
        at = int(np.searchsorted(self._bounds, self._rng.random() * self._bounds[-1], side="right"))
        return self._targets[min(at, len(self._targets) - 1)]


class LeastLoaded:
    """To the target with the fewest requests under way for its share, the larger share first; shares of 0 get none."""

    def __init__(self, shares: Mapping[int, float]) -> None:
        self._targets = [(target, share) for target, share in shares.items() if share > 0.0]

    def choose(self, under_way: Sequence[int]) -> int:
        return min(self._targets, key=lambda item: ((under_way[item[0]] + 1) / item[1], -item[1]))[0]


def router(routing: str, shares: Mapping[int, float], rng: np.random.Generator) -> Router:
    """The router of a name of `ROUTINGS` for {target: share}."""
    match routing:
        case "shares":
            return Shares(shares)
        case "random":
            return Random(shares, rng)
        case "least-loaded":
            return LeastLoaded(shares)
    raise HetschedError(f"routing is {routing!r}", hint=f"use one of: {', '.join(ROUTINGS)}")
