"""Constructive grids: devices in the order of a clustering of the network, on all of them or on parts."""

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from hetsched.algorithms.graph_partition import hierarchical_order
from hetsched.problem import Problem
from hetsched.solvers.grid import Grid
from hetsched.solvers.megatron import rank_orders

MOST_COUNTS = 8


def start_grids(problem: Problem) -> Iterator[Grid]:
    """Devices in network order on every grid; and on the grids of parts of them, nearest or fastest first."""
    devices = problem.cluster.devices
    near = network_order(problem)
    fast = sorted(near, key=lambda d: -devices[d].gpu.flops_per_s(problem.job.dtype))
    lines = [near, fast] if fast != near else [near]
    for count in device_counts(problem):
        for replicas, stages in problem.grids(count):
            for line in lines:
                for order in rank_orders(replicas, stages):
                    yield [[line[rank] for rank in row] for row in order]


def device_counts(problem: Problem) -> list[int]:
    """How many devices to start with: all; the fastest kinds; the largest regions; at most `MOST_COUNTS` of these."""
    cluster, job = problem.cluster, problem.job
    speeds = Counter(device.gpu.flops_per_s(job.dtype) for device in cluster.devices)
    regions = Counter(cluster.node(device.node).region for device in cluster.devices)
    by_speed = accumulate(count for _, count in sorted(speeds.items(), reverse=True))
    by_region = accumulate(sorted(regions.values(), reverse=True))
    counts = sorted({*by_speed, *by_region, len(cluster.devices)}, reverse=True)
    least = (problem.choices.replicas or 1) * (problem.choices.stages or 1)
    counts = [count for count in counts if count >= least]
    step = -(-len(counts) // MOST_COUNTS)
    return counts[::step]


def network_order(problem: Problem) -> list[int]:
    """The devices in the order of a clustering of the network: near ones next to one another."""
    everywhere = np.arange(len(problem.cluster.devices))
    if len(everywhere) < 3:
        return [int(device) for device in everywhere]
    latency, bandwidth = problem.cluster.links(everywhere, everywhere)
    seconds = latency + 1e8 / bandwidth
    return [int(device) for device in hierarchical_order(seconds + seconds.T)]
