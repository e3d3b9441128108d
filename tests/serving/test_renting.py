"""What is rented for the money equals trying every choice of nodes and every division of their GPUs."""

from collections.abc import Iterator
from functools import cache, partial
from itertools import chain, combinations

import numpy as np
import pytest

from hetsched.budget import part_of
from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.readers import resolve_model
from hetsched.requests import sampled
from hetsched.serving.judge import Judge
from hetsched.serving.renting import plan_renting
from hetsched.serving.search import plan_serving
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.genetic import Genetic
from hetsched.solvers.serving.market import Market
from hetsched.solvers.serving.workshop import Group, Workshop
from hetsched.workload import Limit, ServingLoad, Slo

MODEL = resolve_model("llama-2-13b", "test")  # 26 GB: an A100 holds it; L4s and T4s must be two and more
OFFERS = (
    ("A100-SXM-40GB", 1, 3.7),
    ("L4-24GB", 1, 0.7),
    ("L4-24GB", 2, 2.0),
    ("T4-16GB", 1, 0.5),
    ("RTX-3090-24GB", 2, 1.1),
)


def market_of(seed: int, most_gpus: int) -> Cluster:
    """Nodes drawn from the offers, several of some, prices varied."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = []
    while True:
        kind, count, usd = OFFERS[int(rng.integers(len(OFFERS)))]
        price = round(usd * float(rng.uniform(0.7, 1.4)), 2)
        several = [
            Node(f"n{len(nodes) + k}", "here", (find_gpu(kind, "test"),) * count, price)
            for k in range(int(rng.integers(1, 3)))
        ]
        if sum(len(node.gpus) for node in [*nodes, *several]) > most_gpus:
            break
        nodes += several
    size = len(nodes), len(nodes)
    bandwidth, latency = np.full(size, 2e9), np.full(size, 2e-4)
    np.fill_diagonal(bandwidth, 2e10)
    np.fill_diagonal(latency, 1e-5)
    return Cluster("market", tuple(nodes), Network(bandwidth, latency))


def problem_of(cluster: Cluster, objective: str, usd: float | None, rate: float | None, slo: Slo) -> ServingProblem:
    load = ServingLoad(300, 40, rate, slo=slo)
    requests = sampled(load, 400, np.random.default_rng(0))
    return ServingProblem(cluster, MODEL, load, requests, objective=objective, usd_per_hour=usd)


def divisions(devices: list[int]) -> Iterator[list[Group]]:
    """All ways to divide them into groups, some left idle."""
    if not devices:
        yield []
        return
    first, rest = devices[0], devices[1:]
    for groups in divisions(rest):
        yield groups  # the first stays idle
        yield [*groups, frozenset([first])]
        for k, group in enumerate(groups):
            yield [*groups[:k], group | {first}, *groups[k + 1 :]]


def usd_of(cluster: Cluster, groups: list[Group]) -> float:
    nodes = {cluster.node_numbers[device] for group in groups for device in group}
    return sum(cluster.nodes[node].usd_per_hour or 0.0 for node in nodes)


@pytest.mark.parametrize("seed", range(12))
def test_the_integer_programme_equals_every_division(seed: int) -> None:
    """With every group known as a design: the most for a budget, and the least money for a rate.

    Groups that take two machines where one has the room are no designs, and left out here too.
    """
    cluster = market_of(seed, 6)
    slo = Slo(tpot=Limit(0.15)) if seed % 2 else Slo()
    workshop = Workshop(problem_of(cluster, "throughput", None, None, slo), 0.92, None)
    market, everything = Market(workshop), list(range(len(cluster.devices)))
    known = list(market._designs.values())
    every_group = chain.from_iterable(combinations(everything, k) for k in range(1, len(everything) + 1))
    market.learn(frozenset(group) for group in every_group)
    priced = [
        (usd_of(cluster, groups), sum(workshop.rate_of(group) for group in groups))
        for groups in divisions(everything)
        if not any(market._scattered(workshop.inventory.key(sorted(group))) for group in groups)
    ]
    whole, short = sum(node.usd_per_hour or 0.0 for node in cluster.nodes), Market(workshop)
    assert list(short._designs.values()) == known
    for share in (0.3, 0.6, 1.0):
        best = max(rate for usd, rate in priced if usd <= whole * share + 1e-9)
        found = market.most(whole * share)
        assert (0.0 if found is None else found.rate_per_s) == pytest.approx(best, rel=1e-3)
        if found is None:
            continue
        assert found.usd_per_hour <= whole * share + 1e-9
        assert found.usd_per_hour == pytest.approx(usd_of(cluster, list(found.groups)))
        assert sum(workshop.rate_of(group) for group in found.groups) == pytest.approx(found.rate_per_s)
        few = short.most(whole * share)  # of the designs that it thinks of by itself
        assert few is not None
        assert few.rate_per_s >= 0.85 * best
        least = min(usd for usd, rate in priced if rate >= 0.7 * best)
        cheap = market.cheapest(0.7 * best)
        assert cheap is not None
        assert cheap.rate_per_s >= 0.7 * best * (1 - 1e-6)
        assert cheap.usd_per_hour == pytest.approx(least)


@cache
def simulated(seed: int, rate: float | None) -> list[tuple[float, float, bool]]:
    """($/hour, requests/s, whether the SLO is kept) of every division of every choice of nodes, by the simulator."""
    cluster = market_of(seed, 4)
    objective, slo = ("throughput", Slo()) if rate is None else ("cost", Slo(ttft=Limit(2.0, 95.0)))
    problem = problem_of(cluster, objective, None, rate, slo)
    workshop, judge = Workshop(problem, 0.92, None), Judge(problem, None)
    found, seen = [], set()
    for groups in divisions(list(range(len(cluster.devices)))):
        replicas = [workshop.replica(group) for group in groups if workshop.rate_of(group) > 0.0]
        made = [workshop.made(replica.stages) for replica in replicas if replica is not None]
        key = tuple(sorted(workshop.inventory.key(sorted(group)) for group in groups))
        if made and len(made) == len(groups) and key not in seen:
            seen.add(key)
            verdict = judge.verdict(workshop.assembled(made))
            assert verdict is not None
            assert verdict.usd_per_hour is not None
            found.append((verdict.usd_per_hour, verdict.rate_per_s, verdict.keeps))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_most_requests_for_a_budget(seed: int, share: float) -> None:
    """Not below 97 % of the best of all, as the simulator has them, and never over the budget."""
    cluster, every = market_of(seed, 4), simulated(seed, None)
    money = share * sum(node.usd_per_hour or 0.0 for node in cluster.nodes)
    best = max((rate for usd, rate, _ in every if usd <= money), default=0.0)
    problem = problem_of(cluster, "throughput", money, None, Slo())
    search = partial(plan_serving, solver=Genetic(), memory_fraction=0.92, reference=None)
    if not best:
        with pytest.raises(InfeasibleError, match="pays for no nodes"):
            plan_renting(problem, search, 0.92, None)
        return
    found = plan_renting(problem, search, 0.92, None)
    assert found.best.usd_per_hour is not None
    assert found.best.usd_per_hour <= money
    assert found.best.rate_per_s >= 0.97 * best
    assert found.baseline is None or found.best.value >= found.baseline.value


@pytest.mark.parametrize("seed", range(4))
def test_least_money_for_a_rate(seed: int) -> None:
    """What keeps a rate and its limits costs no more than the cheapest of all that do."""
    cluster, rate = market_of(seed, 4), 3.0
    least = min((usd for usd, _, keeps in simulated(seed, rate) if keeps), default=None)
    problem = problem_of(cluster, "cost", None, rate, Slo(ttft=Limit(2.0, 95.0)))
    search = partial(plan_serving, solver=Genetic(), memory_fraction=0.92, reference=None)
    if least is None:
        with pytest.raises(InfeasibleError):
            plan_renting(problem, search, 0.92, None)
        return
    found = plan_renting(problem, search, 0.92, None)
    assert found.best.keeps
    assert found.best.usd_per_hour is not None
    assert found.best.usd_per_hour <= least * 1.001


def test_a_node_without_a_price_is_named() -> None:
    cluster = market_of(0, 4)
    unpriced = Cluster("odd", (Node("free", "here", cluster.nodes[0].gpus),), part_of(cluster, [0]).network)
    problem = problem_of(unpriced, "throughput", 5.0, None, Slo())
    with pytest.raises(HetschedError, match="has no price for node free"):
        plan_renting(problem, partial(plan_serving, solver=Genetic(), memory_fraction=0.92, reference=None), 0.92, None)
