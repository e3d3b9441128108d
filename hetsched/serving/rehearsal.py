"""Co-located plans by what their replicas do in simulation: those that promise most are measured, until the best is.

Replicas that do both phases have nothing to do with one another, so a plan keeps what they keep by themselves; one that
was played once need not be again, nor one of machines that are alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from hetsched.serving.judge import Judge
from hetsched.solvers.serving.workshop import Draft, Group, Replica, Workshop

OPTIMISM, NEARLY = 1.2, 1.06  # times what is promised, or was measured of one layout, that a group may do
PROMISING = 0.8  # of a replica's rate by the steady state: other layouts with as much are played
MOST_LAYOUTS, LIMITED_LAYOUTS = 8, 3  # of a group that are played; with an SLO each is at several rates
MOST_POOL = 300  # divisions that come into question


@dataclass(eq=False)
class Rehearsal:
    """What is known of groups: their best replica in simulation, and the rate that it keeps."""

    judge: Judge
    workshop: Workshop
    _known: dict[Group, Replica | None] = field(default_factory=dict)
    _settled: set[Group] = field(default_factory=set)  # those of which other layouts were played too

    def best(
        self, first: Sequence[Sequence[Group]], pool: Iterable[Sequence[Group]], plays: int, count: int
    ) -> list[Draft]:
        """The best drafts of divisions, by measured rates, the best first.

        One layout of each group of the `first` divisions is played, of the first of them whatever that takes; then what
        that of all with most hopes lacks: one layout of each of its groups, then others near, until about `plays`
        replicas were.
        """
        began = self.judge.plays
        promising = sorted(pool, key=self.workshop.score, reverse=True)[:MOST_POOL]
        ranked = list(dict.fromkeys(tuple(groups) for groups in (*first, *promising)))
        for number, groups in enumerate(first):
            if number and self.judge.plays - began >= plays:
                break
            for group in groups:
                if group not in self._known:
                    self._meet(group)
        while ranked and self.judge.plays - began < plays:
            ranked.sort(key=self._hopes, reverse=True)
            unknown = [group for group in ranked[0] if group not in self._known]
            unsettled = [group for group in ranked[0] if group not in self._settled]
            if not unsettled:
                break
            for group in unknown:
                self._meet(group)
            if not unknown:
                self._settle(unsettled[0])
        known = [groups for groups in ranked if all(group in self._known for group in groups)]
        known.sort(key=self._kept, reverse=True)
        return [self._draft(groups) for groups in known[:count] if self._kept(groups) > 0.0]

    def _hopes(self, groups: Sequence[Group]) -> float:
        return sum(self._hoped(group) for group in groups)

    def _hoped(self, group: Group) -> float:
        if group not in self._known:
            return self.workshop.rate_of(group) * OPTIMISM
        return self._rate(group) * (1.0 if group in self._settled else NEARLY)

    def _kept(self, groups: Sequence[Group]) -> float:
        return sum(self._rate(group) for group in groups)

    def _rate(self, group: Group) -> float:
        replica = self._known[group]
        return 0.0 if replica is None else replica.rate_per_s

    def _meet(self, group: Group) -> None:
        """Play the layout that the steady state holds to be the group's best."""
        first = self.workshop.replica(group)
        self._known[group] = None if first is None else replace(first, rate_per_s=self.judge.rate_alone(first))

    def _settle(self, group: Group) -> None:
        """Play other layouts of the group too, and keep the best: the steady state knows no order of stages."""
        self._settled.add(group)
        first = self._known[group]
        if first is None:
            return
        found = self.workshop.layouts_of(first)
        least = PROMISING * max((each.rate_per_s for each in found), default=0.0)
        found = sorted((each for each in found if each.rate_per_s >= least), key=lambda each: -each.rate_per_s)
        most = LIMITED_LAYOUTS if self.judge.problem.load.slo.limits else MOST_LAYOUTS
        played = [first, *(replace(each, rate_per_s=self.judge.rate_alone(each)) for each in found[:most])]
        self._known[group] = max(played, key=lambda each: each.rate_per_s)

    def _draft(self, groups: Sequence[Group]) -> Draft:
        made = [replica for group in groups if (replica := self._known[group]) is not None and replica.rate_per_s]
        return self.workshop.assembled(sorted(made, key=lambda replica: -replica.rate_per_s))
