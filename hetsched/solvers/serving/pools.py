"""The GPUs of a group as pools of machines, and which groups are alike but for the names of their machines."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hetsched.cluster import Cluster
from hetsched.cost.serving.placed import degrees
from hetsched.model import ModelSpec

MOST_STATES = 6000  # of a dynamic programme; machines that look alike share a pool until there are no more


@dataclass(frozen=True)
class Pool:
    """Machines that a dynamic programme need not tell apart: per machine, positions in `Cluster.devices`, one kind."""

    machines: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """GPUs of each machine."""
        return tuple(len(machine) for machine in self.machines)


@dataclass(frozen=True, eq=False)
class Inventory:
    """A cluster's nodes by class: nodes of a class can change places without anything being different.

    That is so where they have equal GPUs and, for each other node, equal links both ways.
    """

    cluster: Cluster

    @cached_property
    def node_class(self) -> tuple[int, ...]:
        """(nodes,): the first node of the class of each."""
        classes: list[int] = []
        for node in range(len(self.cluster.nodes)):
            like = (other for other in dict.fromkeys(classes) if self._alike(other, node))
            classes.append(next(like, node))
        return tuple(classes)

    def _alike(self, i: int, j: int) -> bool:
        a, b = self.cluster.nodes[i], self.cluster.nodes[j]
        network = self.cluster.network
        if [gpu.kind for gpu in a.gpus] != [gpu.kind for gpu in b.gpus] or a.usd_per_hour != b.usd_per_hour:
            return False
        if any(i in pair or j in pair for pair in network.per_device):
            return False
        order = np.arange(len(self.cluster.nodes))
        order[[i, j]] = j, i
        return all(
            np.array_equal(table[[i, j]], table[[j, i]][:, order]) and np.array_equal(table[:, i], table[order, j])
            for table in (network.bandwidth_bytes_per_s, network.latency_s)
        )

    def key(self, group: Sequence[int]) -> tuple[tuple[int, str, int], ...]:
        """Equal for groups that are alike: by machine, its class, the kind and the number of GPUs."""
        cluster = self.cluster
        held: dict[tuple[int, str], int] = defaultdict(int)
        for device in group:
            held[cluster.node_numbers[device], cluster.devices[device].gpu.kind] += 1
        return tuple(sorted((self.node_class[node], kind, count) for (node, kind), count in held.items()))

    def pools(self, group: Sequence[int], model: ModelSpec) -> list[Pool]:
        """The group's machines, each in a pool of its own; where that makes too many states, like ones together.

        First those of a class, then all of a kind in a region, then all of a kind.
        """
        cluster = self.cluster
        machines: dict[tuple[int, str], list[int]] = defaultdict(list)
        for device in sorted(group):
            machines[cluster.node_numbers[device], cluster.devices[device].gpu.kind].append(device)
        regions = [node.region for node in cluster.nodes]
        pools: list[Pool] = []
        for level in range(4):
            joined: dict[tuple[object, ...], list[tuple[int, ...]]] = defaultdict(list)
            for (node, kind), devices in machines.items():
                names = ((node, kind), (self.node_class[node], kind), (regions[node], kind), (kind,))
                joined[names[level]].append(tuple(devices))
            pools = [Pool(tuple(several)) for several in joined.values()]
            if np.prod([float(_states(pool, model)) for pool in pools]) <= MOST_STATES:
                break
        return pools


def _states(pool: Pool, model: ModelSpec) -> int:
    """At most so many different numbers of GPUs left: multisets, counted for machines of the mean size."""
    sizes = [len(_left(count, tuple(degrees(model, count)))) for count in pool.counts]
    by_size: dict[int, int] = defaultdict(int)
    for size in sizes:
        by_size[size] += 1
    total = 1
    for size, times in by_size.items():
        ways = 1
        for k in range(times):
            ways = ways * (size + k) // (k + 1)
        total *= ways
    return total


def _left(count: int, allowed: tuple[int, ...]) -> set[int]:
    """The numbers of GPUs that may be left of a machine."""
    left, queue = {count}, [count]
    for number in queue:
        for degree in allowed:
            if number >= degree and number - degree not in left:
                left.add(number - degree)
                queue.append(number - degree)
    return left
