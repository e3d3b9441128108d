"""A problem with one setting of its open options, as a search on chains of classes sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from random import Random

from hetsched.cost.base import CostModel
from hetsched.cost.chains import Chain, ChainPricer, Group
from hetsched.plan import Options
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.chain_moves import Limits
from hetsched.solvers.chain_walk import Walk
from hetsched.solvers.grid import Variant, variants
from hetsched.solvers.inventory import Inventory
from hetsched.workload import TrainingJob

UNSUPPORTED = "the cost model prices grids alone"


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
        """What the user has fixed of the shape; a pipeline has at least one sequence."""
        choices = self.problem.choices
        return Limits(choices.replicas, choices.stages, most_replicas=self.problem.job.global_batch)

    def walk(self, random: Random) -> Walk:
        """A walk through its plans."""
        return Walk(self.inventory, self.pricer, self.limits, random)


def arenas(problem: Problem, model: CostModel) -> list[Arena]:
    """One for each setting allowed; empty where the cost model has no quick prices."""
    inventory = Inventory(problem.cluster)
    found = []
    for ladder in variants(problem, model.assumes):
        for variant in ladder:
            job = TrainingJob(problem.job.global_batch, problem.job.seq_len, variant.micro_batch, problem.job.dtype)
            options = Options(variant.schedule, variant.recompute, variant.zero, problem.choices.compression)
            pricer = model.chains(problem.cluster, inventory.members, problem.model, job, options)
            if pricer is not None:
                found.append(Arena(problem, model, inventory, variant, job, options, pricer))
    return found


def replica_counts(problem: Problem) -> list[int]:
    """The numbers of pipelines to try: all up to a few, then ever fewer of them, and divisors of the batch."""
    if problem.choices.replicas is not None:
        return [problem.choices.replicas]
    most = min(len(problem.cluster.devices) // (problem.choices.stages or 1), problem.job.global_batch)
    step, counts = 1.0, []
    at = 1.0
    while at <= most:
        counts.append(int(at))
        step = max(1.0, at / 12)
        at += step
    return sorted({*counts, *(count for count in (most,) if count)})


def deals(arena: Arena, replicas: int) -> list[list[Chain]]:
    """Constructive starts: the devices dealt over the pipelines in several ways, those that fit; none twice.

    Every class evenly, each device a stage of its own or a pipeline's devices of a class in groups; and by weight, the
    fastest first, each to the pipeline that has least (Graham's LPT rule, 1969, doi:10.1137/0117039), of all kinds and
    without the slowest.
    """
    hands = [_dealt(arena, replicas, wide) for wide in (False, True)]
    kinds = arena.inventory.kinds
    speeds = [1 / arena.pricer.block_s((member,)) for member in range(len(kinds))]
    slowest = sorted(set(kinds), key=lambda kind: min(s for s, k in zip(speeds, kinds, strict=True) if k == kind))
    for left_out in range(len(slowest)):
        used = set(slowest[left_out:])
        hands.append(_weighed(arena, replicas, speeds, [m for m, kind in enumerate(kinds) if kind in used]))
    found: list[list[Chain]] = []
    for hand in hands:
        chains = [arena.pricer.split(tuple(groups), replicas) for groups in hand if groups]
        fitting = [chain for chain in chains if chain is not None and arena.limits.allow(chain)]
        if len(fitting) == replicas and fitting not in found:
            found.append(fitting)
    return found


def _dealt(arena: Arena, replicas: int, wide: bool) -> list[list[Group]]:
    hands: list[list[Group]] = [[] for _ in range(replicas)]
    turn = 0
    for member, count in enumerate(arena.inventory.counts):
        each, over = divmod(count, replicas)
        for hand in hands:
            left = each
            while left:
                size = 1 << (left.bit_length() - 1) if wide else 1
                hand.append((member,) * size)
                left -= size
        for _ in range(over):
            hands[turn % replicas].append((member,))
            turn += 1
    return hands


def _weighed(arena: Arena, replicas: int, speeds: list[float], classes: list[int]) -> list[list[Group]]:
    hands: list[list[Group]] = [[] for _ in range(replicas)]
    heap = [(0.0, k) for k in range(replicas)]
    for member in sorted(classes, key=lambda member: -speeds[member]):
        for _ in range(arena.inventory.counts[member]):
            weight, k = heap[0]
            hands[k].append((member,))
            heapreplace(heap, (weight + speeds[member], k))
    return hands
