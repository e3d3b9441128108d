"""Planning with money: which nodes to rent, by the market, and how to use them, by a search on each choice of nodes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import numpy as np

from hetsched.budget import part_of, require_prices
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.serving.choice import mode_of
from hetsched.serving.finalists import best_of, promises
from hetsched.serving.judge import Judge, Verdict
from hetsched.serving.search import ServingResult, allowed
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.market import Market, Rental
from hetsched.solvers.serving.workshop import Group, Workshop
from hetsched.units import BYTES_PER_GIB

MEASURED = 3  # times that promises of the steady state are measured against the simulator
TRIED = 4  # searches, on as many choices of nodes
HARDER, EASIER = 1.06, 0.8  # of a rate: asked of the next choice where one failed; of the first
MOST_FAILED = 6
PER_CLASS = 3  # divisions into equal replicas that are played, of the nodes of a class
PROMISED = 0.7  # of a rate: what promises less is not played
ROUNDED = 1e-9


class PlanOne(Protocol):
    """Plans on a cluster whose GPUs may all be used; raises InfeasibleError where nothing serves.

    starts: divisions of the GPUs to begin from, among others; share: how much of the usual work to do; rivals: whether
    the baselines are weighed too.
    """

    def __call__(
        self,
        problem: ServingProblem,
        *,
        starts: Sequence[Sequence[Group]] = (),
        share: float = 1.0,
        rivals: bool = True,
    ) -> ServingResult:
        """The best plan."""
        ...


@dataclass(eq=False)
class _Tried:
    """The choices so far, and the best plan."""

    problem: ServingProblem
    plan_one: PlanOne
    nodes: list[tuple[int, ...]]
    best: ServingResult | None = None
    failure: InfeasibleError | None = None
    steps: int = 0

    def add(self, rental: Rental, rivals: bool = False) -> ServingResult | None:
        """Plan on a choice of nodes; None where that keeps no limits. Its GPUs are all that there is."""
        self.nodes.append(rental.nodes)
        cluster = self.problem.cluster
        part = part_of(cluster, rental.nodes)
        limit = self.problem.usd_per_hour if self.problem.objective == "cost" else None
        names = [[frozenset(part.position(cluster.devices[d].name) for d in group) for group in rental.groups]]
        try:
            chosen = replace(self.problem, cluster=part, usd_per_hour=limit)
            rivals = rivals or self.problem.objective == "attainment"  # which is searched by what rivals keep
            found = self.plan_one(chosen, starts=names, share=1.0 / TRIED, rivals=rivals)
        except InfeasibleError as failure:
            self.failure = failure
            return None
        self.steps += found.steps
        if self.best is None or found.best.value > self.best.best.value:
            self.best = found
        if rivals:
            self.best = replace(self.best, baselines=found.baselines)
        return found

    def settle(self, usd_per_hour: float) -> None:
        """Plan once more on the best plan's nodes, beside the baselines on the same GPUs."""
        if self.best is not None:
            position, cluster = self.problem.cluster.position, self.problem.cluster
            groups = [frozenset(map(position, p.devices)) for p in self.best.best.draft.plan.pipelines]
            nodes = {cluster.node_numbers[device] for group in groups for device in group}
            self.add(Rental(tuple(sorted(nodes)), tuple(groups), usd_per_hour, self.best.best.rate_per_s), rivals=True)


def planned(
    problem: ServingProblem,
    plan_one: PlanOne,
    memory_fraction: float,
    reference: ReplicaTimes | None,
    *,
    seed: int = 0,
) -> ServingResult:
    """The best plan on all of the cluster, or where money counts on what `plan_renting` rents of it."""
    if problem.usd_per_hour is None and problem.objective != "cost":
        return plan_one(problem)
    return plan_renting(problem, plan_one, memory_fraction, reference, seed=seed)


def plan_renting(
    problem: ServingProblem,
    plan_one: PlanOne,
    memory_fraction: float,
    reference: ReplicaTimes | None,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> ServingResult:
    """The best plan within `problem.usd_per_hour`, or for the least money; a node costs its whole price.

    plan_one: plans on each choice of nodes. The baseline is the best that equal replicas on nodes of one kind do for
    the money. Raises HetschedError where a node has no price, and InfeasibleError where the money pays for nothing that
    serves.
    """
    began = clock()
    require_prices(problem.cluster, "--objective cost" if problem.usd_per_hour is None else "--budget-usd-per-hour")
    money = inf if problem.usd_per_hour is None else problem.usd_per_hour
    workshop = Workshop(problem, memory_fraction, reference)
    market = Market(workshop)
    judge = Judge(problem, reference, seed=seed)
    tried = _Tried(problem, plan_one, [])
    if problem.objective == "cost":
        _cheapest(market, judge, tried, money)
    else:
        _most(market, judge, tried, money)
    tried.settle(money)
    baseline = _baseline(market, judge, money)
    if baseline is not None and not allowed(problem, baseline):
        baseline = None
    if tried.best is None and baseline is None:
        raise tried.failure or _nothing(problem, market)
    best = tried.best
    if best is None or (baseline is not None and baseline.value > best.best.value):
        if baseline is None or not (baseline.keeps or problem.objective == "attainment"):
            raise tried.failure or _nothing(problem, market)
        modes = {mode_of(baseline.draft.plan): baseline}
        best = ServingResult(baseline, {}, modes, "uniform" if best is None else best.solver, seed, 0, 0.0)
    if best.best.usd_per_hour is None or best.best.usd_per_hour > money * (1 + ROUNDED):
        raise AssertionError(f"a plan for ${best.best.usd_per_hour} an hour where ${money} is the most")
    rivals = [verdict for verdict in (baseline, best.baseline) if verdict is not None]
    rival = max(rivals, key=lambda verdict: verdict.value, default=None)
    baselines = {**best.baselines, "uniform": rival}
    return replace(best, baselines=baselines, steps=tried.steps, seconds=clock() - began)


def _most(market: Market, judge: Judge, tried: _Tried, money: float) -> None:
    """The choice that promises most, others near it, and one with the designs that the searches came across."""
    first = _measured(market, judge, lambda: market.most(money))
    if first is None:
        return
    for rental in [first, *market.near(first, money)[: TRIED - 3]]:
        tried.add(rental)
    if tried.best is not None:
        market.learn(_groups(market, tried.best.best))
        last = market.most(money)
        if last is not None:
            tried.add(last)


def _cheapest(market: Market, judge: Judge, tried: _Tried, money: float) -> None:
    """From what is promised to do with little, more and more until a choice keeps the rate; then ever cheaper ones."""
    rate = judge.problem.load.rate_per_s or 0.0
    first = _measured(market, judge, lambda: market.cheapest(rate, money) or market.most(money))
    if first is None:
        return
    wanted, failed = rate * EASIER, 0
    while failed < MOST_FAILED:
        limit = money if tried.best is None else (tried.best.best.usd_per_hour or 0.0) * (1 - 1e-6)
        rental = market.cheapest(wanted, limit)
        if rental is None and tried.best is None and failed == 0:
            rental = market.most(money)
        if rental is None:
            return
        if rental.nodes in tried.nodes or tried.add(rental) is None:
            failed += rental.nodes not in tried.nodes[:-1]
            wanted = max(wanted, rental.rate_per_s) * HARDER


def _measured(market: Market, judge: Judge, choose: Callable[[], Rental | None]) -> Rental | None:
    """A choice by rates that the simulator has confirmed: designs of the last one are played, and it is made anew."""
    seen: dict[int, list[float]] = {}
    rental = choose()
    for _ in range(MEASURED):
        if rental is None:
            return None
        known = [replica for group in rental.groups if (replica := market.workshop.replica(group)) is not None]
        untrusted = [market.workshop.made(replica.stages) for replica in known]
        for depth, shares in promises(judge, untrusted).items():
            seen.setdefault(depth, []).extend(shares)
        market.workshop.trust({depth: float(np.median(shares)) for depth, shares in seen.items()})
        before, rental = rental, choose()
        if rental is not None and rental.nodes == before.nodes:
            break
    return rental


def _groups(market: Market, verdict: Verdict) -> list[Group]:
    """Of a verdict's replicas, in the market's cluster."""
    position = market.cluster.position
    return [frozenset(position(name) for name in pipeline.devices) for pipeline in verdict.draft.plan.pipelines]


def _baseline(market: Market, judge: Judge, money: float) -> Verdict | None:
    """Equal replicas on nodes of one class, as many as the money pays for; for least money as few as keep the rate."""
    problem, best = judge.problem, None
    cost = problem.objective == "cost"
    for nodes in market.uniform_rentals(money):
        for size in range(1, len(nodes) + 1) if cost else [len(nodes)]:
            part = replace(problem, cluster=part_of(problem.cluster, sorted(nodes[:size])), usd_per_hour=None)
            usd = sum(node.usd_per_hour or 0.0 for node in part.cluster.nodes)
            if cost and best is not None and best.keeps and usd >= (best.usd_per_hour or 0.0):
                break
            workshop, before = Workshop(part, market.workshop.memory_fraction, judge.reference), best
            wanted = problem.load.rate_per_s or 0.0
            if problem.objective == "throughput":
                wanted = 0.0 if best is None else best.rate_per_s
            best = best_of("uniform", replace(judge, problem=part), workshop, PROMISED * wanted, best, PER_CLASS)
            if cost and best is not before and best is not None and best.keeps:
                break
    return best


def _nothing(problem: ServingProblem, market: Market) -> HetschedError:
    """Why the money pays for nothing, and what the cheapest that holds the model costs."""
    usd = market.cheapest_that_holds()
    needed = problem.model.parameters * problem.precision.weight_bytes / BYTES_PER_GIB
    what = f"{problem.model.name}, whose weights take {needed:.0f} GiB,"
    if usd is None:
        return InfeasibleError(
            f"no nodes of {problem.cluster.name} together hold {what} and a request",
            hint="more GPUs or larger ones, or --weight-bits",
        )
    if problem.usd_per_hour is not None and usd > problem.usd_per_hour * (1 + ROUNDED):
        return InfeasibleError(
            f"${problem.usd_per_hour:g} an hour pays for no nodes of {problem.cluster.name} that hold {what} "
            f"the cheapest that do cost ${usd:.2f}",
            hint=f"--budget-usd-per-hour {usd:.2f} or more, or fewer --weight-bits",
        )
    return InfeasibleError(
        f"no replica of {problem.model.name} on nodes of {problem.cluster.name} keeps the SLO, however little "
        "is asked of it",
        hint="larger limits or faster GPUs",
    )
