"""The fastest that messages and all-reduces can be inside the parts of a cluster, and between them.

A part is a set of nodes: one node, a region, or all. What the best link of a kind can't do, no link of it can. Shared
links only do less: a transfer of `own` flows gets own / n of what the n flows between two nodes have together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hetsched.bound.speeds import fastest_link, inside_bytes_per_s
from hetsched.cluster import Cluster, Floats, Indices
from hetsched.cost.network import CHUNK_BYTES

MOST_GPUS = 64  # that a curve inside a node may have been measured for
GROUPINGS = 4


@dataclass(frozen=True, slots=True)
class Hop:
    """The least seconds that a message takes to the next stage, and its gradient back; busy_s: both on the link."""

    forward_s: float
    backward_s: float
    busy_s: float


@dataclass(frozen=True, eq=False)
class Links:
    """The best that teams have inside the nodes of a cluster and between them, one of two of `widest` GPUs at most.

    In a hierarchical all-reduce such a team sends to other nodes, or it stands between two teams in its node.
    """

    cluster: Cluster
    widest: int

    @cached_property
    def sizes(self) -> Indices:
        """(nodes,): GPUs of each."""
        return np.array([len(node.gpus) for node in self.cluster.nodes])

    @cached_property
    def inside(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """For hops and for rings: lists of (latency in s, bytes/s of a whole team) of the nodes."""
        hops, rings, known = set(), set(), {}
        for node in np.flatnonzero(self.sizes > 1):
            latency, bandwidth = fastest_link(self.cluster, int(node))
            size = int(self.sizes[node])
            key = self.cluster.nodes[node].gpus[0].kind, latency, bandwidth
            if key not in known:
                known[key] = max(inside_bytes_per_s(self.cluster, int(node), gpus) for gpus in range(1, MOST_GPUS + 1))
            half = min(max(1, size // 2), self.widest)  # the smaller of two teams in one node has half of it at most
            hops.add((latency, bandwidth * half))
            rings.add((latency, known[key] * half))
        return list(hops), list(rings)

    @cached_property
    def hops(self) -> tuple[Floats, Floats]:
        """(nodes, nodes) least latency in s, and most bytes/s of a message, from each node to each other."""
        return self._between(self.widest)

    @cached_property
    def rings(self) -> tuple[Floats, Floats]:
        """The same of a step of a ring."""
        return self._between(max(self.widest, (int(self.sizes.max()) - 1) // 2))

    def _between(self, most: int) -> tuple[Floats, Floats]:
        network, nodes = self.cluster.network, self.cluster.nodes
        latency, bandwidth = network.latency_s.copy(), network.bandwidth_bytes_per_s.copy()
        widest = np.minimum(np.minimum(self.sizes[:, None], self.sizes[None, :]), most)
        for (i, j), (block_bandwidth, block_latency) in network.per_device.items():
            latency[i, j] = block_latency.min()
            best = block_bandwidth.max() * widest[i, j]
            bandwidth[i, j] = min(best, bandwidth[i, j]) if bandwidth[i, j] > 0 else best
        if self.cluster.measured.curves.between:
            flows = max(int(self.sizes.max()), *(key[2] for key in self.cluster.measured.curves.between))
            known: dict[tuple[str, str, int], float] = {}
            for i, j in np.ndindex(widest.shape):
                key = nodes[i].gpus[0].kind, nodes[j].gpus[0].kind, int(widest[i, j])
                curve = self.cluster.measured.curves.between_nodes(key[0], key[1], 1)
                if i != j and curve is not None:
                    if key not in known:
                        known[key] = max(
                            self.cluster.between_bytes_per_s(i, j, n, CHUNK_BYTES) * min(key[2], n) / n
                            for n in range(1, flows + 1)
                        )
                    bandwidth[i, j] = known[key]
        return latency, bandwidth

    @cached_property
    def gathering(self) -> float:
        """Bytes/s that a GPU has at most in a ring, inside a node or as the only one that leaves it."""
        inside = [
            max(inside_bytes_per_s(self.cluster, int(node), gpus) for gpus in range(1, MOST_GPUS + 1))
            for node in np.flatnonzero(self.sizes > 1)
        ]
        network = self.rings[1][~np.eye(len(self.sizes), dtype=np.bool_)]
        return float(max(*inside, *network, 0.0))

    def of_nodes(self, hop_bytes: tuple[float, float]) -> Floats:
        """(nodes, 3): the most bytes/s that each sends or receives, in messages and in rings, and the least latency.

        hop_bytes: of messages forwards and back.
        """
        if hop_bytes not in self._of_nodes:
            found = [self._of_node(node, hop_bytes) for node in range(len(self.cluster.nodes))]
            self._of_nodes[hop_bytes] = np.array(found)
        return self._of_nodes[hop_bytes]

    @cached_property
    def _of_nodes(self) -> dict[tuple[float, float], Floats]:
        return {}

    def _of_node(self, node: int, hop_bytes: tuple[float, float]) -> tuple[float, float, float]:
        cluster = self.cluster
        flows = {key[2] for key in cluster.measured.curves.between} or {1}  # a curve holds for fewer flows too
        sizes = {size / own for own in range(1, int(self.sizes[node]) + 1) for size in hop_bytes}
        ways = cluster.uplink_bytes_per_s, cluster.downlink_bytes_per_s
        hop = max(way(node, count, size) for way in ways for count in flows for size in sizes)
        ring = max(way(node, count, CHUNK_BYTES) for way in ways for count in flows)
        latency, others = cluster.network.latency_s, np.arange(len(cluster.nodes)) != node
        return hop, ring, float(min(latency[node, others].min(), latency[others, node].min()))


@dataclass(frozen=True, eq=False)
class Reach:
    """The best links of a cluster whose nodes are divided into parts: inside one of them, and between them.

    part: (nodes,) of each node.
    """

    links: Links
    part: Indices

    @cached_property
    def part_sizes(self) -> Indices:
        """(parts,): GPUs of each."""
        return np.bincount(self.part, weights=self.links.sizes).astype(np.intp)

    def _pairs(self, across: bool, rings: bool) -> tuple[Floats, Floats]:
        """(n, 2), forth and back: latencies and bandwidths of node pairs, between parts or within one."""
        latency, bandwidth = self.links.rings if rings else self.links.hops
        wanted = (self.part[:, None] != self.part[None, :]) == across
        np.fill_diagonal(wanted, val=False)
        i, j = np.nonzero(wanted)
        rows = np.stack([latency[i, j], latency[j, i], bandwidth[i, j], bandwidth[j, i]], axis=1)
        rows = np.unique(rows, axis=0) if len(rows) else rows
        return rows[:, :2], rows[:, 2:]

    @cached_property
    def _messages(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        return self._pairs(False, False), self._pairs(True, False)

    @cached_property
    def _steps(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        return self._pairs(False, True), self._pairs(True, True)

    def hop(self, across: bool, forward_bytes: float, backward_bytes: float) -> Hop | None:
        """The best hop between parts, or inside one; None where there is no such hop."""
        latency, bandwidth = self._messages[across]
        if not across and self.links.inside[0]:
            inside = np.array(self.links.inside[0])
            latency = np.concatenate([latency, np.repeat(inside[:, :1], 2, axis=1)])
            bandwidth = np.concatenate([bandwidth, np.repeat(inside[:, 1:], 2, axis=1)])
        if not len(latency):
            return None
        forth, back = forward_bytes / bandwidth[:, 0], backward_bytes / bandwidth[:, 1]
        return Hop(
            float((latency[:, 0] + forth).min()), float((latency[:, 1] + back).min()), float((forth + back).min())
        )

    def ring_s(self, across: bool, members: Floats, size_bytes: float) -> Floats:
        """(len(members),): the least seconds of an all-reduce of so many teams that stand in several parts, or in one.

        A ring of n takes 2 (n - 1) steps of 1/n of the bytes over each of its links. In a hierarchical one only the k
        nodes form such a ring, of k parts of the bytes; 2 (k - 1) (latency + bytes / (k bandwidth)) grows with k, so
        the fewest nodes that hold the members say the least of both. inf where no part holds so many.
        """
        least = np.full(len(members), np.inf)
        fewest = np.maximum(2, np.ceil(members / self.links.sizes.max()))
        latency, bandwidth = self._steps[across]
        if len(latency):
            step = (latency[:, 0] + size_bytes / (fewest[:, None] * bandwidth[:, 0])).min(axis=1)
            least = 2 * (fewest - 1) * step
        if not across:
            for ring_latency, ring_bandwidth in self.links.inside[1]:
                step = ring_latency + size_bytes / (members * ring_bandwidth)
                least = np.where(members <= self.links.sizes.max(), np.minimum(least, 2 * (members - 1) * step), least)
            least = np.where(members <= self.part_sizes.max(), least, np.inf)
        return np.where(members < 2, 0.0, least)


def reaches(cluster: Cluster, divisions: Sequence[Indices], widest: int) -> Sequence[Reach]:
    """The best links of each of these divisions; widest: see `Links`."""
    links = Links(cluster, widest)
    return [Reach(links, part) for part in divisions]


def divisions_of(cluster: Cluster, message_bytes: float) -> list[Indices]:
    """The divisions to look at: into nodes, where these have several GPUs, into regions, and into groups of regions.

    Each is (nodes,), the part of each node. Groups are joined by the link between them that is the fastest for messages
    of this size, one by one; of the divisions on the way, those are taken where the next link is slowest next to the
    one before.
    """
    links = Links(cluster, max(len(node.gpus) for node in cluster.nodes))
    numbers = {region: number for number, region in enumerate(cluster.regions)}
    region = np.array([numbers[node.region] for node in cluster.nodes])
    parts = [region, *_grouped(links, region, message_bytes)]
    if any(len(node.gpus) > 1 for node in cluster.nodes) and len(numbers) < len(cluster.nodes):
        parts.append(np.arange(len(cluster.nodes)))
    return parts


def _grouped(links: Links, region: Indices, message_bytes: float) -> list[Indices]:
    """Parts of nodes by groups of regions."""
    latency, bandwidth = links.hops
    with np.errstate(divide="ignore"):
        speed = 1 / (latency + message_bytes / bandwidth)
    count = int(region.max()) + 1
    best = np.zeros((count, count))
    np.maximum.at(best, (region[:, None], region[None, :]), speed)
    best = np.maximum(best, best.T)
    group, found, before = np.arange(count), [], np.inf
    for _ in range(count - 1):
        apart = np.where(group[:, None] != group[None, :], best, 0.0)
        i, j = np.unravel_index(np.argmax(apart), apart.shape)
        found.append((float(apart[i, j]) / before, group.copy()))
        before = float(apart[i, j])
        group[group == group[j]] = group[i]
    steps = sorted(found[1:], key=lambda step: step[0])[:GROUPINGS]
    return [np.unique(groups[region], return_inverse=True)[1] for fall, groups in steps if fall < 1]
