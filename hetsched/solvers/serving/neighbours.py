"""Groups of GPUs that are near one another: seeds of a search for replicas."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.cluster.vq import kmeans2

from hetsched.algorithms.graph_partition import hierarchical_order
from hetsched.cluster import Floats
from hetsched.solvers.serving.workshop import Group, Workshop

MANY_GROUPS, COUNTS = 32, 16  # up to so many groups all numbers are tried; else so many of them
LARGEST = 10  # times the memory that a model needs
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


def group_counts(workshop: Workshop, few: int, several: int) -> list[int]:
    """Numbers of groups to try: all up to the most where that is at most `few`; else so many, in even proportions.

    Where there are many to choose from none makes groups of more than `LARGEST` times the memory that a model needs.
    """
    most = most_groups(workshop)
    if most <= few:
        return list(range(1, most + 1))
    return sorted({int(count) for count in np.rint(np.geomspace(max(1, most // LARGEST), most, several))})


def grown(workshop: Workshop, counts: Sequence[int] | None = None) -> Iterator[list[Group]]:
    """For each number of groups: GPUs in the order of a clustering, cut where a group has memory enough.

    counts: None for those of `group_counts`.
    """
    order = near_order(workshop)
    for count in counts or group_counts(workshop, MANY_GROUPS, COUNTS):
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
