"""Co-located plans by what their replicas do in simulation: those that promise most are measured, until the best is.

Replicas that do both phases have nothing to do with one another, so a plan keeps what they keep by themselves; one that
was played once need not be again, nor one of machines that are alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hetsched.serving.judge import Judge
from hetsched.solvers.serving.workshop import Draft, Group, Replica, Workshop

OPTIMISM = 1.2  # times what is promised, measured so far, a replica may do
PROMISING = 0.8  # of a replica's rate by the steady state: other layouts with as much are played
MOST_LAYOUTS, LIMITED_LAYOUTS = 8, 3  # of a group that are played; with an SLO each is at several rates
MOST_POOL = 300  # divisions that come into question


@dataclass(eq=False)
class Rehearsal:
    """What is known of groups: their best replica in simulation, and the rate that it keeps."""

    judge: Judge
    workshop: Workshop
    _known: dict[Group, Replica | None] = field(default_factory=dict)

    def best(self, pool: Iterable[Sequence[Group]], plays: int, count: int) -> list[Draft]:
        """The best drafts of divisions, by measured rates, the best first; about `plays` replicas are played."""
        ranked = sorted(pool, key=self.workshop.score, reverse=True)[:MOST_POOL]
        began = self.judge.plays
        while ranked:
            ranked.sort(key=self._hopes, reverse=True)
            unknown = [group for group in ranked[0] if group not in self._known]
            if not unknown or self.judge.plays - began >= plays:
                break
            for group in unknown:
                self._known[group] = self._measured(group)
        known = [groups for groups in ranked if all(group in self._known for group in groups)]
        return [self._draft(groups) for groups in known[:count] if any(self._known[group] for group in groups)]

    def _hopes(self, groups: Sequence[Group]) -> float:
        return sum(self._hoped(group) for group in groups)

    def _hoped(self, group: Group) -> float:
        if group in self._known:
            replica = self._known[group]
            return 0.0 if replica is None else replica.rate_per_s
        return self.workshop.rate_of(group) * OPTIMISM

    def _measured(self, group: Group) -> Replica | None:
        """The group's layout that does best by itself in simulation: the steady state knows no order of stages."""
        first = self.workshop.replica(group)
        if first is None:
            return None
        found = self.workshop.layouts_of(first)
        if not found:
            return None
        most = LIMITED_LAYOUTS if self.judge.problem.load.slo.limits else MOST_LAYOUTS
        least = PROMISING * max(each.rate_per_s for each in found)
        found = sorted((each for each in found if each.rate_per_s >= least), key=lambda each: -each.rate_per_s)
        rates = [self.judge.rate_alone(self.workshop.made(each.stages)) for each in found[:most]]
        return replace(found[int(np.argmax(rates))], rate_per_s=max(rates)) if max(rates) > 0.0 else None

    def _draft(self, groups: Sequence[Group]) -> Draft:
        made = [replica for group in groups if (replica := self._known[group]) is not None]
        return self.workshop.assembled(sorted(made, key=lambda replica: -replica.rate_per_s))
