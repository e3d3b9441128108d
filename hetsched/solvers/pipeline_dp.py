"""Machine mixes for the pipelines, and the best pipeline of each mix by dynamic programming.

As HexGen (Jiang et al. 2024, arXiv 2311.11514) does: an outer search says how many devices of each class a pipeline
has, an inner exact programme (`algorithms.pipeline_dp`) says what to make of them: teams and their tensor-parallel
degrees, their order, and the layers of each, with devices left idle where that is better. Mixes come from the hands of
`hierarchical`, for every number of pipelines; then, without end, from moving devices between the pipelines of the best
plans.

What is exact: for a mix and m micro-batches the programme finds the least of sum + (m - 1) · pace, but for a
`tolerance`. The sum is one micro-batch's way through all stages and hops, alone on the network; the pace that of the
slowest stage, hop or 1F1B round trip; among teams of one class with a degree out of `degrees`, under the memory that
the schedule asks for at each position. That is the cost model's own time of the pipeline's passes for one micro-batch,
for GPipe under the roofline where one stage is slowest forward and backward and no hop is slower (where a hop is, two
programmes are looked at, one with too fast a pace and one with too slow), and for GPipe under `flashflex` where stages
rise and then fall. For 1F1B the pace is exact, and the time 0 to 3 % too long with many micro-batches, whose last round
trips hide behind one another. Outside it are what pipelines do to one another's links, gradients (also those of tied
embeddings), and the optimiser step. So all pipelines that the programme comes by are tried in the plan, the cost model
picks, and small changes of the chosen ones are tried too (`chain_polish`).

What is not exact: the mixes. And where the programme of a mix is larger than `most_work`, each degree is looked at
alone, and at last it is the hand's own pipelines, whose layers are split exactly (`ChainPricer.split`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf
from random import Random

import numpy as np

from hetsched.algorithms.pipeline_dp import PipelineProgramme
from hetsched.algorithms.pipeline_limits import best_pipelines
from hetsched.cost.base import CostModel
from hetsched.cost.chains import Chain, Group
from hetsched.cost.pipeline_terms import PipelineTerms
from hetsched.problem import Problem
from hetsched.solvers.arena import UNSUPPORTED, Arena, Arenas, Place, replica_counts
from hetsched.solvers.base import Candidate
from hetsched.solvers.chain_polish import Mix, polished
from hetsched.solvers.hierarchical import starts
from hetsched.solvers.megatron import WIDTHS
from hetsched.solvers.nearly import nearly_fitting

TRIALS = 4  # mixes that a step of the outer search tries
HEAT = 0.002  # of the outer search, as a share of the iteration time
KEPT = 4  # plans that it goes on from
MOST_FRONT = 12  # pipelines of a mix that are tried in a plan
POLISH = 48  # changes of single pipelines that are tried in a plan


@dataclass(frozen=True, slots=True)
class PipelineDp:
    """See the module. most_work: states times kinds of teams of one programme; 4 ns each
    for a limit on the slowest, of which a programme tries about six."""

    degrees: tuple[int, ...] = WIDTHS
    most_work: int = 2_000_000
    tolerance: float = 1e-3
    rounds: int = 30
    name: str = "pipeline-dp"

    def supports(self, problem: Problem, model: CostModel) -> str | None:
        """Every problem of a model with quick prices."""
        return None if Arenas(problem, model) else UNSUPPORTED

    def steps(self, problem: Problem) -> int:
        """About all hands, and some rounds of the outer search."""
        return 4 * len(WIDTHS) * len(replica_counts(problem)) + self.rounds

    def search(self, problem: Problem, model: CostModel, rng: np.random.Generator) -> Iterator[Candidate]:
        """The mixes of all hands; the best of them in all settings; then mixes near the best for ever."""
        arenas, random = Arenas(problem, model), Random(int(rng.integers(1 << 60)))
        dealer = Dealer(self.degrees, self.most_work, self.tolerance)
        seen: dict[tuple[Mix, ...], Place] = {}
        for start in starts(arenas, rng):
            mixes = tuple(sorted(map(mix_of, start.standing.chains)))
            if mixes in seen:
                continue
            place = dealer.deal(start.arena, mixes) or start
            seen[mixes] = place
            yield place.candidate()
        if not seen:
            yield from nearly_fitting(problem, model, rng)
            return
        best = _best_of_each_size(seen.values())[:KEPT]
        for turn, place in enumerate(best):
            for ladder in [ladder for line in arenas.lines(len(place.standing.chains)) for ladder in line]:
                other = dealer.first(ladder, [mix_of(chain) for chain in place.standing.chains])
                if other is not None:
                    yield other.candidate()
                    best[turn] = min(best[turn], other, key=lambda place: place.worth)
        walks = [MixWalk(dealer, place, random) for place in best]
        while walks:
            for walk in walks:
                yield walk.step().candidate()


def _best_of_each_size(places: Iterable[Place]) -> list[Place]:
    """The best plan of each number of pipelines, the best first."""
    found: dict[int, Place] = {}
    for place in sorted(places, key=lambda place: place.worth):
        found.setdefault(len(place.standing.chains), place)
    return list(found.values())


def mix_of(chain: Chain) -> Mix:
    """The devices of a chain."""
    return tuple(sorted(Counter(member for group, _ in chain for member in group).items()))


class Dealer:
    """Mixes to plans; it remembers the pipelines of each mix."""

    def __init__(self, degrees: Sequence[int], most_work: int, tolerance: float = 0.0) -> None:
        self.degrees, self.most_work, self.tolerance = tuple(degrees), most_work, tolerance
        self._terms: dict[tuple[int, tuple[Group, ...], int, int], PipelineTerms] = {}
        self._fronts: dict[tuple[int, Mix, int, int, int], list[Chain]] = {}

    def first(self, ladder: Sequence[Arena], mixes: Sequence[Mix]) -> Place | None:
        """The plan of these mixes in the first setting in which it fits."""
        for arena in ladder:
            place = self.deal(arena, mixes)
            if place is not None:
                return place
        return None

    def deal(self, arena: Arena, mixes: Sequence[Mix]) -> Place | None:
        """The best plan found of these mixes, one a pipeline; None where one does not fit, or is too much work."""
        size = len(mixes)
        total = max(size, -(-arena.job.global_batch // arena.job.micro_batch))
        shares, best = [-(-total // size)] * size, None
        work = self.most_work // len(set(mixes))
        for _ in range(2):  # first with even shares, then with those that suit where these are far from even
            fronts = [self.front(arena, mix, share, size, work) for mix, share in zip(mixes, shares, strict=True)]
            if not all(fronts):
                return best
            place = _chosen(arena, fronts)
            if place is not None:
                place = polished(place, mixes, POLISH)
            if place is not None and (best is None or place.seconds < best.seconds):
                best = place
            now = arena.pricer.shares([front[0] for front in fronts] if place is None else place.standing.chains)
            if all(share < 2 * then and then < 2 * share for share, then in zip(now, shares, strict=True)):
                break
            shares = now
        return best

    def front(self, arena: Arena, mix: Mix, share: int, pipelines: int, work: int) -> list[Chain]:
        """The pipelines of a mix that no other beats in both sum and slowest, the best for its share first."""
        key = id(arena), mix, share, pipelines, work
        if key not in self._fronts:
            self._fronts[key] = self._front(arena, mix, share, pipelines, work)
        return self._fronts[key]

    def _front(self, arena: Arena, mix: Mix, share: int, pipelines: int, work: int) -> list[Chain]:
        """Of all degrees; where that is too much work, of each degree alone, as far as that is not."""
        whole = self._programme(arena, mix, self.degrees, share, pipelines, work)
        found = whole or [
            made for w in self.degrees for made in self._programme(arena, mix, (w,), share, pipelines, work)
        ]
        lines = [
            (line.seconds(share), tuple((groups[g], count) for g, count in zip(line.types, line.items, strict=True)))
            for groups, programme in found
            for line in best_pipelines(programme, share, self.tolerance)
        ]
        return list(dict.fromkeys(chain for _, chain in sorted(lines)))[:MOST_FRONT]

    def _programme(
        self, arena: Arena, mix: Mix, degrees: tuple[int, ...], share: int, pipelines: int, work: int
    ) -> list[tuple[tuple[Group, ...], PipelineProgramme]]:
        """The groups and their programmes, by what hops are busy for and by what hides them; none if too much work."""
        widths = [
            {max((w for w in self.degrees if w <= min(degree, count)), default=0) for degree in degrees} - {0}
            for _, count in mix
        ]
        teams = [(kind, width) for kind, these in enumerate(widths) for width in sorted(these)]
        groups = tuple((mix[kind][0],) * width for kind, width in teams)
        terms = self.terms(arena, groups, share, pipelines)
        programmes = [
            PipelineProgramme(
                [count for _, count in mix],
                [kind for kind, _ in teams],
                [width for _, width in teams],
                arena.problem.model.num_layers,
                terms.block_s,
                terms.base_s,
                terms.most,
                terms.through_s,
                terms.held_s,
                busy_s,
                terms.trips,
                arena.problem.choices.stages,
            )
            for busy_s in (
                [terms.busy_s] if np.array_equal(terms.busy_s, terms.hidden_s) else [terms.busy_s, terms.hidden_s]
            )
        ]
        if programmes[0].states * len(teams) > work:
            return []
        return [(groups, programme) for programme in programmes]

    def terms(self, arena: Arena, groups: tuple[Group, ...], share: int, pipelines: int) -> PipelineTerms:
        """What the pricer says of stages of these groups."""
        key = id(arena), groups, share, pipelines
        if key not in self._terms:
            self._terms[key] = arena.pricer.terms(groups, share, pipelines)
        return self._terms[key]


def _chosen(arena: Arena, fronts: Sequence[list[Chain]]) -> Place | None:
    """The plan of one pipeline of each front: the first of each, then, front by front, whichever makes it better."""
    chains = [front[0] for front in fronts]
    standing = arena.pricer.stand(chains)
    alike: dict[tuple[Chain, ...], list[int]] = {}
    for position, front in enumerate(fronts):
        alike.setdefault(tuple(front), []).append(position)
    for chains_of, positions in alike.items():
        for chain in chains_of[1:]:
            chains = [chain if p in positions else other for p, other in enumerate(standing.chains)]
            trial = arena.pricer.stand(chains, standing.guide_s, standing)
            if trial.guide_s < standing.guide_s:
                standing = trial
    return Place(arena, standing) if standing.seconds < inf else None


class MixWalk:
    """Annealing on the mixes of one plan's pipelines, in its setting."""

    def __init__(self, dealer: Dealer, start: Place, random: Random) -> None:
        self.dealer, self.random, self.arena = dealer, random, start.arena
        self.here = self.best = start
        self.mixes = [Counter(dict(mix_of(chain))) for chain in start.standing.chains]

    def step(self) -> Place:
        """The best plan so far, after some trials more."""
        for _ in range(TRIALS):
            trial = self._moved()
            if trial is None:
                continue
            place = self.dealer.deal(self.arena, [tuple(sorted(mix.items())) for mix in trial])
            if place is None:
                continue
            gap = place.standing.guide_s / self.here.standing.guide_s - 1
            if gap <= 0.0 or self.random.random() < exp(-gap / HEAT):
                self.here, self.mixes = place, trial
                if place.worth < self.best.worth:
                    self.best = place
        return self.best

    def _moved(self) -> list[Counter[int]] | None:
        """The mixes with devices of one class moved between two pipelines, or swapped for some of another class.

        The idle devices count as a pipeline too.
        """
        random, counts = self.random, Counter(dict(enumerate(self.arena.inventory.counts)))
        for mix in self.mixes:
            counts.subtract(mix)
        pots = [Counter(mix) for mix in self.mixes] + [counts]
        a, b = random.randrange(len(pots)), random.randrange(len(pots))
        given = [member for member, count in pots[a].items() if count]
        if a == b or not given:
            return None
        width = random.choice(self.dealer.degrees)
        _move(pots[a], pots[b], random.choice(given), width)
        taken = [member for member, count in pots[b].items() if count]
        if random.random() < 0.5 and taken:
            _move(pots[b], pots[a], random.choice(taken), width)
        moved = [+mix for mix in pots[:-1]]
        return moved if all(moved) and moved != self.mixes else None


def _move(source: Counter[int], target: Counter[int], member: int, most: int) -> None:
    count = min(most, source[member])
    source[member] -= count
    target[member] += count
