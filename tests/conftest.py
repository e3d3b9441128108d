"""Clusters and plans for tests: directed networks of random links, and pipelines of any shape on them."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

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


@pytest.fixture(scope="session")
def random_plan() -> Callable[..., Plan]:
    """`random_plan(seed, cluster)`: pipelines of any depth, split and batch; `grid=(2, 3)`: two of three stages."""

    def make(seed: int, cluster: Cluster, name: str = "gpt2", grid: tuple[int, int] | None = None) -> Plan:
        rng = np.random.default_rng(seed)
        model, devices = find_model(name), [device.name for device in cluster.devices]
        assert model is not None
        depths = [grid[1]] * grid[0] if grid else _depths(rng, len(devices), model.num_layers)
        line = iter(rng.permutation(devices).tolist())
        pipelines = []
        for number, depth in enumerate(depths):
            cuts = np.sort(rng.choice(np.arange(1, model.num_layers), depth - 1, replace=False)).tolist()
            bounds = list(pairwise([0, *cuts, model.num_layers]))
            stages = tuple(Stage(layers, (next(line),)) for layers in bounds)
            pipelines.append(Pipeline(f"p{number}", stages, int(rng.integers(1, 12))))
        size = int(rng.choice([1, 2, 4]))
        sequences = sum(pipeline.micro_batches for pipeline in pipelines) * size
        job = TrainingJob(sequences - int(rng.integers(size)), 2 ** int(rng.integers(4, 11)), size)
        bits = Compression(*rng.choice([4, 8, 16], 3).tolist())
        schedule = str(rng.choice(["1f1b", "gpipe"]))
        options = Options(schedule, bool(rng.integers(2)), int(rng.integers(4)), bits)
        return Plan(model, job, tuple(pipelines), options)

    return make


def _depths(rng: np.random.Generator, devices: int, most: int) -> list[int]:
    depths: list[int] = []
    left = int(rng.integers(1, devices + 1))
    while left:
        depths.append(int(rng.integers(1, min(left, most) + 1)))
        left -= depths[-1]
    return depths
