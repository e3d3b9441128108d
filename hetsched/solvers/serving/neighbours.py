"""Groups of GPUs that are near one another: seeds of a search for replicas."""

from collections.abc import Iterator

import numpy as np
from scipy.cluster.vq import kmeans2

from hetsched.algorithms.graph_partition import hierarchical_order
from hetsched.cluster import Floats
from hetsched.solvers.serving.workshop import Group, Workshop

MESSAGE_BYTES = 1e7  # a prompt's activations between two stages: at that size links are compared


def distances_s(workshop: Workshop) -> Floats:
    """(devices, devices): seconds of a message between any two, the slower of both ways."""
    everywhere = np.arange(len(workshop.problem.cluster.devices))
    latency, bandwidth = workshop.problem.cluster.links(everywhere, everywhere)
    seconds = latency + MESSAGE_BYTES / bandwidth
    return np.maximum(seconds, seconds.T)


def most_groups(workshop: Workshop) -> int:
    """How many replicas the memory of all GPUs could hold."""
    devices = range(len(workshop.problem.cluster.devices))
    count = 1
    while workshop.could_hold_times(devices, count + 1):
        count += 1
    return count


def grown(workshop: Workshop) -> Iterator[list[Group]]:
    """For each number of groups: GPUs in the order of a clustering, cut where a group has memory enough."""
    order = near_order(workshop)
    total = most_groups(workshop)
    for count in range(1, total + 1):
        share = sum(workshop.memory_bytes(device) for device in order) / count
        groups: list[Group] = []
        current: list[int] = []
        held = 0.0
        for device in order:
            current.append(device)
            held += workshop.memory_bytes(device)
            if held >= share * (len(groups) + 1) - 1.0 and len(groups) < count - 1:
                groups.append(frozenset(current))
                current = []
        groups.append(frozenset(current))
        yield [group for group in groups if group]


def near_order(workshop: Workshop) -> list[int]:
    """The devices, near ones next to one another."""
    seconds = distances_s(workshop)
    if len(seconds) < 3:
        return list(range(len(seconds)))
    return [int(device) for device in hierarchical_order(seconds + seconds.T)]


def clustered(workshop: Workshop, count: int, rng: np.random.Generator) -> list[Group]:
    """K-means of the devices by their distances (logarithms, to all others) into at most `count` groups."""
    seconds = distances_s(workshop)
    np.fill_diagonal(seconds, seconds[seconds > 0].min(initial=1.0) / 2 if seconds.size > 1 else 1.0)
    features = np.log(np.maximum(seconds, 1e-9))
    if count >= len(features):
        return [frozenset([device]) for device in range(len(features))]
    _, labels = kmeans2(features, count, minit="++", seed=rng, missing="warn")
    groups = [frozenset(int(d) for d in np.flatnonzero(labels == label)) for label in range(count)]
    return [group for group in groups if group]
