"""Searches that hold their prices against the simulation."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest

from hetsched.catalog import find_model
from hetsched.cluster import Cluster
from hetsched.cost import COST_MODELS
from hetsched.problem import Choices, Problem
from hetsched.simulate.training import simulate_iteration
from hetsched.solvers import SOLVERS
from hetsched.solvers.archipelago import Archipelago
from hetsched.solvers.arena import Arenas, Place
from hetsched.solvers.base import LEAST_OF_PRICE
from hetsched.solvers.hierarchical import starts
from hetsched.solvers.played import Judge
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]


def arenas_of(random_cluster: MakeCluster, seed: int, batch: int = 24, cost_model: str = "roofline") -> Arenas:
    model = find_model("gpt3-xl")
    assert model is not None
    choices = Choices(micro_batch=1, schedule="1f1b", recompute=True, zero=0)
    problem = Problem(random_cluster(seed, (3, 2, 2)), model, TrainingJob(batch, 2048), choices)
    return Arenas(problem, COST_MODELS[cost_model](0.92))


def some_places(arenas: Arenas, most: int = 12) -> list[Place]:
    return list(islice(starts(arenas, np.random.default_rng(0)), most))


@pytest.mark.parametrize("objective", ["time", "cost"])
def test_a_judge_goes_by_the_iteration_as_simulated(random_cluster: MakeCluster, objective: str) -> None:
    """Much faster than its price no plan counts."""
    faster = slower = 0
    for seed in range(4):
        arenas = arenas_of(random_cluster, seed)
        cluster, places = arenas.problem.cluster, some_places(arenas)
        judge = Judge(places)
        for place in places:
            arena = replace(place.arena, problem=replace(arenas.problem, objective=objective))
            candidate = judge.candidate(Place(arena, place.standing))
            played_s = simulate_iteration(cluster, candidate.plan).iteration_s
            counts_s = max(played_s, LEAST_OF_PRICE * candidate.cost.iteration_s)
            expected = replace(candidate.cost, iteration_s=counts_s).rank(objective)[1]
            assert judge.worth(Place(arena, place.standing)) == pytest.approx(expected, rel=1e-9)
            faster += played_s < 0.999 * place.seconds
            slower += played_s > 1.001 * place.seconds
    assert faster
    assert slower


def test_what_takes_long_to_play_and_published_formulas_count_as_priced(random_cluster: MakeCluster) -> None:
    for arenas in (arenas_of(random_cluster, 0, 40_000), arenas_of(random_cluster, 0, 24, "flashflex")):
        places = some_places(arenas, 3)
        judge = Judge(places)
        for place in places:
            assert judge.worth(place) == place.seconds
            assert judge.candidate(place).played is None


def test_islands_only_rise_as_judged(random_cluster: MakeCluster) -> None:
    """By walks that the price leads, and by short ones that it does not."""
    risen = 0
    for seed in range(3):
        arenas = arenas_of(random_cluster, seed)
        places = some_places(arenas, 4)
        judge = Judge(places)
        islands = Archipelago(arenas, places, Random(0), judge=judge)
        everywhere = list(islands.islands)
        for _ in range(20):
            before = [island.worth for island in everywhere]
            islands.step()
            assert all(judge.worth(island.best) == island.worth for island in everywhere)
            after = [island.worth for island in everywhere]
            assert all(now <= then for now, then in zip(after, before, strict=True))
            risen += after != before
    assert risen > 5


@pytest.mark.parametrize("steps", [1, 3])
def test_a_drift_ends_a_few_changes_away(random_cluster: MakeCluster, steps: int) -> None:
    """Its end is at its price, and no further above the start than so many steps go; without steps it stays there."""
    arenas = arenas_of(random_cluster, 1)
    for place in some_places(arenas):
        pricer, chains = place.arena.pricer, place.standing.chains
        found = place.arena.walk(Random(7)).drift(chains, steps, 200, 0.01)
        assert pricer.stand(found.chains).seconds == pytest.approx(found.seconds, rel=1e-12)
        assert found.guide_s <= place.standing.guide_s + steps * 0.2 * place.seconds
        assert place.arena.walk(Random(7)).drift(chains, 0, 200, 0.01).chains == list(chains)


def test_auto_gives_what_it_played(random_cluster: MakeCluster) -> None:
    arenas = arenas_of(random_cluster, 2)
    found = list(
        islice(SOLVERS["auto"].search(arenas.problem, COST_MODELS["roofline"](0.92), np.random.default_rng(1)), 40)
    )
    played = [candidate for candidate in found if candidate.played is not None]
    assert len(played) > 10
    for candidate in played:
        assert candidate.played is not None
        seconds = simulate_iteration(arenas.problem.cluster, candidate.plan).iteration_s
        assert candidate.played.iteration_s == seconds
