"""Replicas with a KV cache of any size, and plans of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from hetsched.catalog import find_model
from hetsched.cluster import Cluster
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.plan import ServingOptions, ServingPipeline, ServingPlan, Stage, equal_routes
from hetsched.requests import Requests
from hetsched.workload import ServingLoad

GPT2 = find_model("gpt2")
assert GPT2 is not None
MODEL = GPT2
DEFAULTS = ServingOptions()
CUTS = {1: (0, 12), 2: (0, 5, 12), 3: (0, 3, 8, 12), 4: (0, 2, 5, 9, 12)}


def stages_on(devices: Sequence[str]) -> tuple[Stage, ...]:
    cuts = CUTS[len(devices)]
    return tuple(Stage((cuts[k], cuts[k + 1]), (device,)) for k, device in enumerate(devices))


@pytest.fixture(scope="session")
def serving_cluster(random_cluster: Callable[..., Cluster]) -> Cluster:
    return random_cluster(3, (2, 2, 3, 1, 2, 2, 1, 3))


@pytest.fixture(scope="session")
def serving_plan(serving_cluster: Cluster) -> Callable[..., tuple[ServingPlan, dict[str, ReplicaTimes]]]:
    """`serving_plan([(1, 500, 4)])`: a plan, and its replicas' times, of (depth, KV capacity in tokens, max_batch)."""

    def make(
        shapes: Sequence[tuple[int, int, int]],
        options: ServingOptions = DEFAULTS,
        roles: Sequence[str] = (),
        overhead_s: float = 2e-4,
    ) -> tuple[ServingPlan, dict[str, ReplicaTimes]]:
        names = iter([device.name for device in serving_cluster.devices])
        pipelines, times = [], {}
        for number, (depth, capacity, max_batch) in enumerate(shapes):
            stages = stages_on([next(names) for _ in range(depth)])
            role = roles[number] if roles else "both"
            pipelines.append(ServingPipeline(f"r{number}", stages, max_batch, role))
            found = replica_times(serving_cluster, MODEL, stages)
            rooms = tuple((capacity + 0.5) * stage.kv_bytes_per_token for stage in found.stages)
            times[f"r{number}"] = replace(found, kv_room_bytes=rooms, overhead_s=overhead_s)
            assert times[f"r{number}"].kv_capacity_tokens == capacity
        return ServingPlan(MODEL, ServingLoad(), tuple(pipelines), equal_routes(pipelines), options), times

    return make


def random_requests(
    seed: int, count: int, mean_gap_s: float, longest_prompt: int = 200, longest_output: int = 60
) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests(
        np.cumsum(rng.exponential(mean_gap_s, count)),
        rng.integers(1, longest_prompt + 1, count),
        rng.integers(1, longest_output + 1, count),
    )
