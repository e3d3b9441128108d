"""DT-FM's five scenarios: GPT3-XL on 64 GPUs as 8 replicas × 8 stages, with the paper's messages.

Yuan et al. 2022, arXiv 2206.01288 (NeurIPS 2022); the reference costs under its formula
are the best known to us: its released scheduler reaches 49.2184 and 34.8020 s after 5,000 candidates, a plain simulated
annealing all five. None is proven optimal.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hetsched.catalog import find_model
from hetsched.cluster import Cluster, Network
from hetsched.cost.published.dtfm import DtFm
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.search import AnyOf, MaxSteps, Progress, solve
from hetsched.solvers import SOLVERS
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"
TOLERANCE = 1.0005  # the references have five or six digits
REFERENCE_S = {
    "dtfm-datacenter": 3.4398,
    "dtfm-spot": 49.5039,
    "dtfm-universities": 16.0868,
    "dtfm-regional": 34.802,
    "dtfm-worldwide": 49.2184,
}


def shuffled(cluster: Cluster, seed: int) -> Cluster:
    """The same nodes in another order: inventory order happens to be a good plan for some of the scenarios."""
    order = np.random.default_rng(seed).permutation(len(cluster.nodes))
    at = np.ix_(order, order)
    network = Network(cluster.network.bandwidth_bytes_per_s[at], cluster.network.latency_s[at])
    return replace(cluster, nodes=tuple(cluster.nodes[n] for n in order), network=network)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scenario", REFERENCE_S)
@pytest.mark.parametrize("order", ["inventory", "shuffled"])
def test_auto_reaches_the_reference_in_its_default_steps(scenario: str, seed: int, order: str) -> None:
    cluster, model = read_cluster(SPECS / f"{scenario}.yaml"), find_model("gpt3-xl")
    assert model is not None
    if order == "shuffled":
        cluster = shuffled(cluster, seed)
    problem = Problem(cluster, model, TrainingJob(512, 2048), Choices(replicas=8, stages=8, published_batch=True))
    target = REFERENCE_S[scenario] * TOLERANCE

    def reached(progress: Progress) -> bool:
        return progress.best is not None and progress.best.cost.iteration_s <= target

    auto = SOLVERS["auto"]
    result = solve(problem, auto, DtFm(), seed=seed, stop=AnyOf((MaxSteps(auto.steps(problem)), reached)))
    assert result.cost.iteration_s <= target
