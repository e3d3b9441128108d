from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from hetsched.budget import part_of, within_budget
from hetsched.cluster import Cluster
from hetsched.errors import HetschedError, InfeasibleError
from hetsched.readers import read_cluster

SPECS = Path(__file__).parents[1] / "cluster_specs"


@pytest.fixture
def home() -> Cluster:
    return read_cluster(SPECS / "home-office.yaml")


def flops(cluster: Cluster) -> float:
    return sum(gpu.half_flops_per_s for node in cluster.nodes for gpu in node.gpus)


@pytest.mark.parametrize("budget", [0.12, 0.2, 0.25, 0.3, 0.37, 1, 7.16, 7.3, 7.41, 7.52])
def test_the_first_is_the_fastest_that_the_budget_pays_for(home: Cluster, budget: float) -> None:
    affordable = [
        subset
        for size in range(1, len(home.nodes) + 1)
        for subset in combinations(range(len(home.nodes)), size)
        if sum(home.nodes[k].usd_per_hour or 0.0 for k in subset) <= budget + 1e-9
    ]
    best = max(flops(part_of(home, subset)) for subset in affordable)
    assert flops(next(within_budget(home, budget))) == best


def test_a_budget_for_all_leaves_the_cluster_as_it_is(home: Cluster) -> None:
    assert list(within_budget(home, 100)) == [home]


def test_a_part_keeps_its_links(home: Cluster) -> None:
    part = part_of(home, [0, 2])
    assert [node.name for node in part.nodes] == ["desktop", "rented"]
    names = [device.name for device in part.devices]
    whole = [home.index_of[name] for name in names]
    here = list(range(len(names)))
    for found, expected in zip(part.links(here, here), home.links(whole, whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_no_node_is_affordable(home: Cluster) -> None:
    with pytest.raises(InfeasibleError, match="pays for no node"):
        next(within_budget(home, 0.01))


def test_a_price_is_missing() -> None:
    with pytest.raises(HetschedError, match="no price for node"):
        next(within_budget(read_cluster(SPECS / "dtfm-worldwide.yaml"), 10))
