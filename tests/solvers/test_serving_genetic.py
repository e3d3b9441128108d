"""Recombination: of all groups that a genetic search came across, the best division of the GPUs."""

from itertools import combinations, islice

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.readers import resolve_model
from hetsched.requests import sampled
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.genetic import Genetic, _recombined
from hetsched.solvers.serving.workshop import Workshop
from hetsched.workload import ServingLoad

KINDS = ("A100-SXM-40GB", "L4-24GB", "T4-16GB", "RTX-3090-24GB")


@pytest.mark.parametrize("seed", range(4))
def test_equals_every_choice_of_known_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = [find_gpu(str(kind), "test") for kind in rng.choice(KINDS, 3)]
    nodes = tuple(Node(f"n{k}", "here", (gpu,) * int(rng.integers(1, 4))) for k, gpu in enumerate(kinds))
    bandwidth, latency = np.full((3, 3), 2e9), np.full((3, 3), 2e-4)
    np.fill_diagonal(bandwidth, 2e10)
    cluster = Cluster("random", nodes, Network(bandwidth, latency))
    load = ServingLoad(300, 40)
    requests = sampled(load, 300, np.random.default_rng(0))
    problem = ServingProblem(cluster, resolve_model("llama-2-13b", "test"), load, requests)
    workshop = Workshop(problem, 0.92, None)
    list(islice(Genetic(recombined=10**6).search(workshop, rng), 60))  # the first child recombines the seeds alone
    known = workshop.known_groups()
    best, most = 0.0, len(known)
    for size in range(1, min(4, most) + 1):
        for groups in combinations(known, size):
            if sum(map(len, groups)) == len(frozenset().union(*groups)):
                best = max(best, sum(workshop.rate_of(group) for group in groups))
    assert workshop.score(_recombined(workshop)) == pytest.approx(best) or workshop.score(_recombined(workshop)) > best
    assert frozenset().union(*_recombined(workshop)) == frozenset(range(len(cluster.devices)))
