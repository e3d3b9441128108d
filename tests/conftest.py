"""Clusters for tests: directed networks of random links, of a given inventory."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node

KINDS = ("A100-SXM-80GB", "RTX-3090-24GB", "RTX-2080Ti-11GB", "V100-SXM2-16GB")


@pytest.fixture(scope="session")
def random_cluster() -> Callable[..., Cluster]:
    """`random_cluster(seed, counts=(2, 1))`: nodes of so many GPUs, a kind each, and no two links alike."""

    def make(
        seed: int, counts: Sequence[int] = (2, 1, 3), kinds: Sequence[str] = KINDS, priced: bool = True
    ) -> Cluster:
        rng = np.random.default_rng(seed)
        nodes = tuple(
            Node(
                f"n{place}",
                f"r{place % 2}",
                (find_gpu(kinds[place % len(kinds)], "test"),) * count,
                usd_per_hour=float(rng.uniform(0.1, 9)) if priced else None,
            )
            for place, count in enumerate(counts)
        )
        size = len(nodes), len(nodes)
        bandwidth = np.exp(rng.uniform(np.log(3e7), np.log(2e9), size))
        return Cluster("random", nodes, Network(bandwidth, rng.uniform(1e-4, 0.2, size)))

    return make
