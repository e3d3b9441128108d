"""Plans as simulated, which a search can hold its prices against: what the cost model has meet on average, or at worst,
may meet more or less often in one plan than in another."""

from collections.abc import Iterable
from dataclasses import replace
from math import inf

from hetsched.cluster import Cluster
from hetsched.cost.base import CostModel
from hetsched.cost.chains import Chain
from hetsched.cost.money import plan_usd_per_hour
from hetsched.cost.training import Roofline
from hetsched.simulate.training import passes_of, simulate_iteration
from hetsched.solvers.arena import Arena, Place
from hetsched.solvers.base import Candidate

MOST_AT_ONCE = 30_000  # passes of a plan that a search plays: some tenths of a second
PASS_S = 1e-5  # of playing: measured
MOST_REMEMBERED = 2000  # plans


def is_played(model: CostModel) -> bool:
    """Whether the simulation is of what the cost model prices; a published formula stands for itself."""
    return model.name == Roofline().name


def as_played(cluster: Cluster, candidate: Candidate) -> Candidate:
    """The candidate, its iteration simulated."""
    if candidate.played is not None:
        return candidate
    seconds = simulate_iteration(cluster, candidate.plan).iteration_s
    usd_per_hour = plan_usd_per_hour(cluster, candidate.plan, seconds)
    return replace(candidate, played=replace(candidate.cost, iteration_s=seconds, usd_per_hour=usd_per_hour))


class Judge:
    """What places are worth as played, each played once; as priced where playing takes long, or says nothing.

    places: those of a search; if one of them is of too many passes to play, none is played, as prices and times as
    played are no match for each other.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._known: dict[tuple[Arena, tuple[Chain, ...]], Candidate] = {}
        self._plays = all(
            is_played(place.arena.model) and passes_of(place.candidate().plan) <= MOST_AT_ONCE for place in places
        )

    def candidate(self, place: Place) -> Candidate:
        """Its plan."""
        key = place.arena, tuple(place.standing.chains)
        found = self._known.get(key)
        if found is None:
            found = place.candidate()
            if self._plays:
                found = as_played(place.arena.problem.cluster, found)
            if len(self._known) > MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = found
        return found

    def worth(self, place: Place) -> float:
        """`Candidate.worth` of its plan."""
        return self.candidate(place).worth(place.arena.problem.objective)

    def play_s(self, place: Place) -> float:
        """About how long it takes to play a plan like this; inf where it is not played."""
        plan = self.candidate(place)
        return inf if plan.played is None else PASS_S * passes_of(plan.plan)
