"""The GPUs of a group as pools of machines, and which groups are alike but for the names of their machines."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np

from hetsched.cluster import Cluster
from hetsched.cost.serving.placed import degrees
from hetsched.model import ModelSpec
from hetsched.plan import Stage

MOST_STATES = 6000  # of a dynamic programme; machines that look alike share a pool until there are no more
LEAST_DEGREES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Pool:
    """Machines that a dynamic programme need not tell apart: per machine, positions in `Cluster.devices`, one kind.

    degrees: tensor-parallel degrees of its stages.
    """

    machines: tuple[tuple[int, ...], ...]
    degrees: tuple[int, ...] = (1,)

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
    most_states: int = MOST_STATES

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

    def pattern(self, stages: Sequence[Stage]) -> tuple[object, ...]:
        """Equal for replicas that are alike: whose nodes can change places so that the one becomes the other."""
        cluster = self.cluster
        first: dict[int, int] = {}
        found: list[object] = []
        for stage in stages:
            devices = [cluster.position(name) for name in stage.devices]
            held = []
            for device in devices:
                node = cluster.node_numbers[device]
                own = device if cluster.network.per_device else cluster.devices[device].gpu.kind
                held.append((first.setdefault(node, len(first)), self.node_class[node], own))
            found.append((stage.layers, tuple(held)))
        return tuple(found)

    def nodes(self, stages: Sequence[Stage]) -> list[int]:
        """The nodes of a replica, in the order in which `pattern` comes across them."""
        cluster = self.cluster
        return list(dict.fromkeys(cluster.node_numbers[cluster.position(n)] for s in stages for n in s.devices))

    def pools(self, group: Sequence[int], model: ModelSpec) -> list[Pool]:
        """The group's machines, each in a pool of its own; where that makes too many states, like ones together.

        First those of a class, then all of a kind in a region, then all of a kind; where even that makes too many, the
        narrowest stages are left out.
        """
        cluster = self.cluster
        machines: dict[tuple[int, str], list[int]] = defaultdict(list)
        for device in sorted(group):
            machines[cluster.node_numbers[device], cluster.devices[device].gpu.kind].append(device)
        regions = [node.region for node in cluster.nodes]
        pools: list[Pool] = []
        for least in LEAST_DEGREES:
            for level in range(4):
                joined: dict[tuple[object, ...], list[tuple[int, ...]]] = defaultdict(list)
                for (node, kind), devices in machines.items():
                    names = ((node, kind), (self.node_class[node], kind), (regions[node], kind), (kind,))
                    joined[names[level]].append(tuple(devices))
                pools = [Pool(tuple(several), _degrees(model, several, least)) for several in joined.values()]
                if np.prod([float(_states(pool)) for pool in pools]) <= self.most_states:
                    return pools
        return pools


def _degrees(model: ModelSpec, machines: Sequence[Sequence[int]], least: int) -> tuple[int, ...]:
    """Those that the machines allow, from `least` on, or the widest of each machine."""
    widest = {degrees(model, len(machine))[-1] for machine in machines}
    allowed = degrees(model, max(len(machine) for machine in machines))
    return tuple(degree for degree in allowed if degree >= least or degree in widest)


def _states(pool: Pool) -> int:
    """How many different numbers of GPUs may be left: multisets, for each size of machine."""
    total = 1
    for count, times in Counter(pool.counts).items():
        size = len(_left(count, pool.degrees))
        total *= comb(size + times - 1, times)
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
