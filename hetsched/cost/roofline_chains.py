"""The roofline for a search: plans as chains of classes, played as `play_iteration` does, what repeats remembered.

What a plan takes is looked at in turn, the cheapest first: what its pipelines take at least; with their gradients, were
the network free; as they are played; and as all share the network. A search that looks for less than a limit is told as
soon as that can't be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf
from operator import itemgetter

from hetsched.cluster import Cluster
from hetsched.cost.chain_rings import ChainRings, Rings
from hetsched.cost.chains import Chain, Group, Standing, apportion
from hetsched.cost.compute import StageWork
from hetsched.cost.hops import hops_of, may_cross
from hetsched.cost.pipeline_terms import PipelineTerms
from hetsched.cost.roofline_stages import MOST_REMEMBERED, UNCROSSED, Flow, HopLanes, RooflineStages
from hetsched.cost.roofline_terms import roofline_terms
from hetsched.cost.schedule import Hop, pace_of, play, round_trip_s
from hetsched.cost.traffic import GATHERED_WEIGHTS
from hetsched.model import ModelSpec
from hetsched.plan import Options
from hetsched.workload import TrainingJob

MEAN_WEIGHT = 0.05  # of the guide: how much the mean pipeline counts beside the slowest

_Played = tuple[object, int, tuple[int, ...]]  # what works, on how many micro-batches, over which links
_Lines = list[tuple[float, float]]  # seconds besides, and for each micro-batch: some is the least that it takes


@dataclass(frozen=True, eq=False, slots=True)
class _Facts:
    """What is remembered of a chain.

    pattern: a number, the same of chains whose stages work alike. further_s, through_s: what each further micro-batch
    takes with free links, and the first; least: what all take at least. groups: by number, and their nodes and degrees.
    cuts: where it is cut, from 0 on; holder: which stage holds each block.
    """

    works: list[StageWork]
    pattern: int
    further_s: float
    through_s: float
    least: _Lines
    groups: list[int]
    nodes: list[int]
    degrees: list[int]
    flows: list[Flow]
    cuts: list[int]
    holder: list[int]
    fits: dict[tuple[int, int], bool] = field(default_factory=dict)
    updates_s: dict[int, list[float]] = field(default_factory=dict)


class RooflineChains(RooflineStages):
    """A `ChainPricer`. members: per class, positions of its devices in the cluster."""

    def __init__(
        self,
        cluster: Cluster,
        members: Sequence[Sequence[int]],
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
        memory_fraction: float,
    ) -> None:
        super().__init__(cluster, members, model, job, options, memory_fraction)
        self._rings = ChainRings(self)
        self._facts: dict[Chain, _Facts] = {}
        self._patterns: dict[tuple[tuple[int, int], ...], int] = {}
        self._played: dict[_Played, list[float]] = {}
        self._prices: dict[tuple[Chain, ...], tuple[float, float, float]] = {}  # seconds and guide, and the limit then

    def move_s(self, chains: Sequence[Chain]) -> float:
        """See `ChainPricer`; measured."""
        return 2e-5 + sum([4e-6 * len(chain) + 5e-7 * len(chain) ** 2 for chain in chains])

    def terms(self, groups: Sequence[Group], share: int, pipelines: int) -> PipelineTerms:
        """See `ChainPricer`."""
        return roofline_terms(self, groups, share, pipelines)

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """By pace, so that the slowest ends soonest."""
        return self._shares([self._facts_of(chain) for chain in chains])

    def stand(self, chains: Sequence[Chain], limit_s: float = inf, near: Standing | None = None) -> Standing:
        """See `ChainPricer`."""
        chains, key = list(chains), tuple(chains)
        known = self._prices.get(key)
        if known is None or (known[0] == inf and limit_s > known[2]):
            if len(self._prices) > MOST_REMEMBERED:
                self._prices.clear()
            known = self._prices[key] = (*self._seconds(chains, limit_s), limit_s)
        return Standing(chains, known[0], known[1])

    # ---- one pipeline

    def _facts_of(self, chain: Chain) -> _Facts:
        facts = self._facts.get(chain)
        if facts is None:
            if len(self._facts) > MOST_REMEMBERED:
                self._facts.clear()
            facts = self._facts[chain] = self._look_at(chain)
        return facts

    def _look_at(self, chain: Chain) -> _Facts:
        works = self.stage_works(chain)
        groups = [self.number(group) for group, _ in chain]
        nodes, degrees = [self.teams[g].node for g in groups], [self.teams[g].size for g in groups]
        pattern = tuple([(self.kinds[g], count) for g, (_, count) in zip(groups, chain, strict=True)])
        flows = self.flows(groups)
        free = [self.links[self.link_number((a, b, 0, 0, 0, *UNCROSSED))].apart for a, b in pairwise(groups)]
        pace_s = pace_of(works, free)
        times = [work.forward_s + work.backward_s for work in works]
        return _Facts(
            works,
            self._patterns.setdefault(pattern, len(self._patterns)),
            max(pace_s, round_trip_s(works, free)) if may_cross(self.options) else pace_s,
            sum(times) + sum(map(_both_ways_s, free)),
            self._least(works, free),
            groups,
            nodes,
            degrees,
            flows,
            list(accumulate((count for _, count in chain), initial=0)),
            [s for s, (_, count) in enumerate(chain) for _ in range(count)],
        )

    def _least(self, works: Sequence[StageWork], hops: Sequence[Hop]) -> _Lines:
        """The least that a pipeline takes.

        A stage works on all micro-batches after the first came through the stages before it, and the last goes back
        through them. The last micro-batch that a link carries then goes through all else. In 1F1B a stage does backward
        i + k + 1 a way there and back later than backward i, as the stage k further on has done forwards no further
        than this one: so once a micro-batch went through, all but as many as there are stages take a round trip each.
        """
        lines, before = [], 0.0
        for work, hop in zip(works, [*hops, Hop()], strict=True):
            lines.append((before, work.forward_s + work.backward_s))
            before += work.forward_s + work.backward_s + _both_ways_s(hop)
        for hop in hops:
            busy = max(hop.forward_occupied_s, hop.backward_occupied_s)
            lines.append((before - busy, busy))
        if may_cross(self.options):
            trip_s = round_trip_s(works, hops)
            lines.append((before - len(works) * trip_s, trip_s))
        lines.append((before, 0.0))
        steepest = max(lines, key=itemgetter(1, 0))
        return [steepest, *(line for line in lines if line[0] > steepest[0])]  # the others are below it

    # ---- a whole plan

    def _shares(self, facts: Sequence[_Facts]) -> list[int]:
        total = max(len(facts), -(-self.job.global_batch // self.job.micro_batch))
        return apportion(total, [(line.further_s, line.through_s - line.further_s) for line in facts])

    def _seconds(self, chains: list[Chain], limit_s: float) -> tuple[float, float]:
        """The iteration time and the guide; inf where the plan breaks a limit, or is sure to be above `limit_s`."""
        beyond, size = (inf, inf), len(chains)
        facts = [self._facts_of(chain) for chain in chains]
        shares = self._shares(facts)
        least = [_most_s(line.least, share) for line, share in zip(facts, shares, strict=True)]
        if _guide_s(least, max(least)) > limit_s:
            return beyond
        for chain, line, share in zip(chains, facts, shares, strict=True):
            fits = line.fits.get((share, size))
            if fits is None:
                fits = line.fits[share, size] = self.fits(chain, share, size)
            if not fits:
                return beyond
        rings = self._rings_of(facts)
        reduced_s = self._rings.free_s(rings)
        first_s = sum(reduced_s[-2 if self.model.tied_parameters else -1 :])  # with block 0, which is done last
        if _guide_s(least, max(least) + first_s) > limit_s:
            return beyond
        works = [line.works for line in facts]
        gathers = self.options.zero == GATHERED_WEIGHTS
        if gathers:
            reduced_s, gather_s = self._rings.shared_s(rings)
            works = _with_gathers(works, rings, gather_s)
        keys = self._keys(facts, works, shares)
        if len(self._played) > MOST_REMEMBERED:
            self._played.clear()
        new = {
            key: (work, self._hops(key, work)) for key, work in zip(keys, works, strict=True) if key not in self._played
        }
        if new:
            least = [_most_s(self._least(*new[key]), key[1]) if key in new else max(self._played[key]) for key in keys]
            if _guide_s(least, max(least) + first_s) > limit_s:
                return beyond
            self._play(new)
        ends = [self._played[key] for key in keys]
        tops, updates = list(map(max, ends)), self._updates(chains, facts)
        finished = _finished_s(ends, rings, reduced_s, updates)
        if not gathers and not rings.apart:
            if _guide_s(tops, finished) > limit_s:
                return beyond
            finished = _finished_s(ends, rings, self._rings.shared_s(rings)[0], updates)
        return finished, _guide_s(tops, finished)

    def _keys(self, facts: Sequence[_Facts], works: Sequence[list[StageWork]], shares: Sequence[int]) -> list[_Played]:
        """What each pipeline is to play, its links shared with the others."""
        lanes = HopLanes([flow for line in facts for flow in line.flows])
        return [
            (line.pattern if work is line.works else tuple(work), share, tuple(self.shared_links(line.flows, lanes)))
            for line, work, share in zip(facts, works, shares, strict=True)
        ]

    def _hops(self, key: _Played, work: list[StageWork]) -> list[Hop]:
        _, share, links = key
        return hops_of([self.links[link] for link in links], work, share, self.options)

    def _play(self, new: dict[_Played, tuple[list[StageWork], list[Hop]]]) -> None:
        """From now on `_played` says when each stage has ended its last backward and its message has left."""
        for key, (work, hops) in new.items():
            self._played[key] = play(self.options.schedule, work, hops, key[1], self.options.overlap)

    def _rings_of(self, facts: Sequence[_Facts]) -> Rings:
        first = accumulate((len(line.nodes) for line in facts), initial=0)
        return self._rings.of(
            [[begin + stage for stage in line.holder] for begin, line in zip(first, facts, strict=False)],
            sorted({cut for line in facts for cut in line.cuts}),
            [group for line in facts for group in line.groups],
            [node for line in facts for node in line.nodes],
            [degree for line in facts for degree in line.degrees],
        )

    def _updates(self, chains: Sequence[Chain], facts: Sequence[_Facts]) -> list[float]:
        """The optimiser step of each stage, in all pipelines."""
        shards, found = len(chains) if self.options.zero else 1, []
        for chain, line in zip(chains, facts, strict=True):
            if shards not in line.updates_s:
                line.updates_s[shards] = self.updates_s(chain, shards)
            found += line.updates_s[shards]
        return found


def _guide_s(ends: Sequence[float], finished_s: float) -> float:
    """ends: of the pipelines' backwards; finished_s: of the whole plan."""
    return finished_s + MEAN_WEIGHT * sum(ends) / len(ends)


def _finished_s(
    ends: Sequence[Sequence[float]], rings: Rings, reduced_s: Sequence[float], updates_s: Sequence[float]
) -> float:
    """The end of the last optimiser step."""
    times = [end for line in ends for end in line]
    for ring, seconds in zip(rings.members, reduced_s, strict=True):
        end = max([times[stage] for stage in ring]) + seconds
        for stage in ring:
            times[stage] = end
    return max([end + update for end, update in zip(times, updates_s, strict=True)])


def _with_gathers(works: Sequence[list[StageWork]], rings: Rings, gather_s: Sequence[float]) -> list[list[StageWork]]:
    """The works with ZeRO 3's gathers."""
    more = [0.0] * len(rings.nodes)
    for ring, seconds in zip(rings.members, gather_s, strict=True):
        for stage in ring:
            more[stage] += seconds
    following = iter(more)
    return [
        [
            StageWork(work.forward_s + extra, work.backward_s + extra, work.tensor_parallel_s)
            for work, extra in ((work, next(following)) for work in line)
        ]
        for line in works
    ]


def _both_ways_s(hop: Hop) -> float:
    return hop.forward_occupied_s + hop.forward_latency_s + hop.backward_occupied_s + hop.backward_latency_s


def _most_s(lines: _Lines, count: int) -> float:
    return max([besides + each * count for besides, each in lines])
