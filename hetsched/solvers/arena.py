"""A problem with one setting of its open options, as a search on chains of classes sees it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from hetsched.cost.base import CostModel
from hetsched.cost.chains import Chain, ChainPricer, Group, Standing
from hetsched.cost.traffic import GATHERED_WEIGHTS
from hetsched.plan import Options
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.chain_walk import Walk
from hetsched.solvers.draft import Limits, groups_of
from hetsched.solvers.grid import USUAL, Variant, usual_sizes, variants
from hetsched.solvers.inventory import Inventory
from hetsched.workload import TrainingJob

UNSUPPORTED = "the cost model prices grids alone"

Hand = Sequence[Sequence[Group]]  # the groups of each pipeline, in order


@dataclass(frozen=True, eq=False)
class Arena:
    """One setting, its prices, and the way back from chains to plans."""

    problem: Problem
    model: CostModel
    inventory: Inventory
    variant: Variant
    job: TrainingJob
    options: Options
    pricer: ChainPricer

    def candidate(self, chains: Sequence[Chain]) -> Candidate:
        """The plan of these chains, priced by the cost model."""
        shares = self.pricer.shares(chains)
        plan = self.inventory.plan(self.problem, self.job, self.options, chains, shares)
        return Candidate(plan, self.model.price(self.problem.cluster, plan))

    @property
    def limits(self) -> Limits:
        """What the user has fixed of the shape, and how many pipelines the micro-batch size leaves."""
        choices = self.problem.choices
        return Limits(choices.replicas, choices.stages, self.problem.most_replicas(self.variant.micro_batch))

    def walk(self, random: Random) -> Walk:
        """A walk through its plans."""
        return Walk(self.inventory, self.pricer, self.limits, random, self._rent)

    @property
    def _rent(self) -> Callable[[Sequence[Chain]], float] | None:
        return self.inventory.usd_per_hour if self.problem.objective == "cost" else None

    def worth(self, standing: Standing) -> float:
        """What the search lessens: seconds an iteration, or seconds × the price of the nodes."""
        rent = self._rent
        return standing.seconds * (rent(standing.chains) if rent else 1.0)

    def stand(self, hand: Hand) -> Standing | None:
        """The price of a hand, its layers split, each pipeline for itself or all alike; None where it does not fit."""
        split, size = self.pricer.split, len(hand)
        chains = [split(tuple(groups), size) for groups in hand]
        if not all(chain is None or self.limits.allow(chain) for chain in chains):
            return None
        trials = [] if None in chains else [[chain for chain in chains if chain is not None]]
        if len({len(groups) for groups in hand}) == 1 and len(set(map(_layers, chains))) > 1:
            slowest = tuple(max(groups, key=self.pricer.block_s) for groups in zip(*hand, strict=True))
            alike = split(slowest, size)
            if alike is not None:
                trials.append([tuple(zip(groups, _layers(alike), strict=True)) for groups in hand])
        found = [standing for chains in trials if (standing := self.pricer.stand(chains)).seconds < inf]
        return min(found, key=self.worth, default=None)


def _layers(chain: Chain | None) -> tuple[int, ...]:
    return tuple([layers for _, layers in chain or ()])


@dataclass(frozen=True, slots=True)
class Place:
    """A plan of chains and the arena it stands in."""

    arena: Arena
    standing: Standing

    @property
    def seconds(self) -> float:
        """The iteration time."""
        return self.standing.seconds

    @property
    def worth(self) -> float:
        """What a search for the problem's objective lessens."""
        return self.arena.worth(self.standing)

    def candidate(self) -> Candidate:
        """The plan, priced by the cost model."""
        return self.arena.candidate(self.standing.chains)


class Arenas:
    """The arenas of a problem: for each schedule and micro-batch size, from the fastest setting to the least memory.

    Empty where the cost model has no quick prices.
    """

    def __init__(self, problem: Problem, model: CostModel) -> None:
        self.problem, self.inventory = problem, Inventory(problem.cluster)
        self.ladders: list[list[Arena]] = []
        for ladder in variants(problem, model.assumes):
            rungs = [arena for variant in ladder if (arena := self._arena(model, variant)) is not None]
            if rungs:
                self.ladders.append(rungs)

    def _arena(self, model: CostModel, variant: Variant) -> Arena | None:
        problem = self.problem
        job = TrainingJob(problem.job.global_batch, problem.job.seq_len, variant.micro_batch, problem.job.dtype)
        options = Options(variant.schedule, variant.recompute, variant.zero, problem.choices.compression)
        pricer = model.chains(problem.cluster, self.inventory.members, problem.model, job, options)
        return None if pricer is None else Arena(problem, model, self.inventory, variant, job, options, pricer)

    def __bool__(self) -> bool:
        return bool(self.ladders)

    @property
    def usual(self) -> Arena:
        """One whose passes are long enough to tell fast GPUs from slow ones."""
        return self.ladders[max(0, len(self.problem.micro_batches) - USUAL)][0]

    def __iter__(self) -> Iterator[Arena]:
        return iter([arena for ladder in self.ladders for arena in ladder])

    def settle(self, hand: Hand, quick: bool = False) -> Place | None:
        """The best setting for a hand: memory is saved only as far as needed; None where no setting fits.

        quick: one micro-batch size of each schedule, or smaller ones where that does not fit.
        """
        lines = self.lines(len(hand))
        if not quick or not lines:
            return _best(_first(ladder, hand) for line in lines for ladder in line)
        usual, *smaller = usual_sizes(len(lines[0]))
        found = _best(_first(line[usual], hand) for line in lines)
        return found or next(filter(None, (_first(lines[0][at], hand) for at in smaller)), None)

    def lines(self, replicas: int) -> list[list[list[Arena]]]:
        """For each schedule the ladders of the micro-batch sizes that so many pipelines allow, in ascending order."""
        sizes, found = self.problem.micro_batches_of(replicas), dict[str, list[list[Arena]]]()
        for ladder in self.ladders:
            if ladder[0].variant.micro_batch in sizes:
                found.setdefault(ladder[0].variant.schedule, []).append(ladder)
        return list(found.values())

    def roomiest(self, place: Place) -> Place | None:
        """The same hand with all that saves memory and takes no longer, ZeRO 2, or with recomputing besides: layers
        are split anew. None where that is the setting it has.
        """
        ladder = next(ladder for ladder in self.ladders if place.arena in ladder)
        hand = hand_of(place.standing.chains)
        return _best(_at(arena, hand) for arena in _roomy(ladder) if arena is not place.arena)

    def resized(self, place: Place) -> Place:
        """The same hand with larger or smaller micro-batches, size by size as long as that is better."""
        hand = hand_of(place.standing.chains)
        line = next(line for line in self.lines(len(hand)) if any(place.arena in ladder for ladder in line))
        at = next(k for k, ladder in enumerate(line) if place.arena in ladder)
        for way in (line[at + 1 :], line[:at][::-1]):
            for ladder in way:
                other = _first(ladder, hand)
                if other is None or other.worth >= place.worth:
                    break
                place = other
        return place

    def settle_as(self, arena: Arena, hand: Hand) -> Place | None:
        """The hand with the schedule and the micro-batch size of an arena, or the largest that so many pipelines allow;
        None where it does not fit so.
        """
        lines = self.lines(len(hand))
        smaller = [ladder for line in lines for ladder in line if _alike_but_smaller(ladder[0].variant, arena.variant)]
        return _first(smaller[-1], hand) if smaller else None


def _best(places: Iterable[Place | None]) -> Place | None:
    return min((place for place in places if place is not None), key=lambda place: place.worth, default=None)


def _first(ladder: Sequence[Arena], hand: Hand) -> Place | None:
    """The first setting that fits; the last needs the least memory, so none does where that does not."""
    for number, arena in enumerate(ladder):
        place = _at(arena, hand)
        if place is not None or (number == 0 and ladder[-1].stand(hand) is None):
            return place
    return None


def _alike_but_smaller(variant: Variant, wanted: Variant) -> bool:
    return variant.schedule == wanted.schedule and variant.micro_batch <= wanted.micro_batch


def _roomy(ladder: Sequence[Arena]) -> list[Arena]:
    """Those with the most of ZeRO that takes no longer than less."""
    zeros = [arena.variant.zero for arena in ladder]
    most = max((zero for zero in zeros if zero < GATHERED_WEIGHTS), default=GATHERED_WEIGHTS)
    return [arena for arena in ladder if arena.variant.zero == most]


def _at(arena: Arena, hand: Hand) -> Place | None:
    standing = arena.stand(hand)
    return None if standing is None else Place(arena, standing)


def hand_of(chains: Sequence[Chain]) -> list[list[Group]]:
    """The groups of a plan's chains."""
    return [groups_of(chain) for chain in chains]


def replica_counts(problem: Problem) -> list[int]:
    """The numbers of pipelines to try: all up to a few, then ever fewer of them."""
    if problem.choices.replicas is not None:
        return [problem.choices.replicas]
    most = min(len(problem.cluster.devices) // (problem.choices.stages or 1), problem.job.global_batch)
    counts, at = {most}, 1.0
    while at <= most:
        counts.add(int(at))
        at += max(1.0, at / 6)
    return sorted(counts)
