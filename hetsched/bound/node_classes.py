"""The nodes of a cluster in classes: what their teams do at best, and what their networks carry."""

from dataclasses import dataclass, replace

import numpy as np

from hetsched.bound.links import Links
from hetsched.bound.speeds import SpeedLevel
from hetsched.cluster import Cluster, Floats

MOST_CLASSES = 10
ALIKE = 1.05  # how many times as fast networks are that count as like, at first
ROUNDING = 1e-9

Teams = tuple[tuple[int, tuple[tuple[float, int], ...]], ...]
Equals = tuple[int, Teams]


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes of equal GPUs and like networks.

    teams: for each kind of GPU in one of them, how many there are, and (blocks a second, degree) of the teams they may
    form; hop_bytes_per_s, ring_bytes_per_s: the most that one sends or receives, in messages and in rings; latency_s:
    the least to another node.
    """

    count: int
    gpus: int
    teams: Teams
    hop_bytes_per_s: float
    ring_bytes_per_s: float
    latency_s: float

    @property
    def blocks_per_s(self) -> float:
        """The most that one's stages can do."""
        return sum(count * self._best(teams) for count, teams in self.teams)

    def with_gathers(self, gather_s: float) -> "NodeClass":
        """The same where a block takes so many GPU seconds more."""
        teams = tuple((count, tuple((1 / (1 / v + gather_s / d), d) for v, d in some)) for count, some in self.teams)
        return replace(self, teams=teams)

    @property
    def least_share(self) -> float:
        """Of that, what the slowest GPU adds that is in a team."""
        return min(best for _, teams in self.teams if (best := self._best(teams)) > 0) / self.blocks_per_s

    @staticmethod
    def _best(teams: tuple[tuple[float, int], ...]) -> float:
        return max((speed / degree for speed, degree in teams), default=0.0)


def node_classes(links: Links, level: SpeedLevel, hop_bytes: tuple[float, float]) -> list[NodeClass]:
    """The cluster's nodes that may have a stage, `MOST_CLASSES` of them at most where GPUs allow."""
    kinds: dict[Equals, list[Floats]] = {}
    networks = links.of_nodes(hop_bytes)
    for number, node in enumerate(links.cluster.nodes):
        teams = tuple(
            (
                node.gpus.count(gpu),
                tuple((t.blocks_per_s, t.degree) for t in level.teams if t.gpu == gpu and number in t.nodes),
            )
            for gpu in dict.fromkeys(node.gpus)
        )
        if any(team for _, team in teams):
            kinds.setdefault((len(node.gpus), teams), []).append(networks[number])
    ratio = ALIKE
    while True:
        classes = [found for key, nodes in kinds.items() for found in _alike(key, nodes, ratio)]
        if len(classes) <= MOST_CLASSES or ratio > 1e6:
            return classes
        ratio *= ratio


def forward_share(cluster: Cluster, level: SpeedLevel, hop_bytes: tuple[float, float]) -> float:
    """phi: the least that the way there is of the way there and back, of stages and of links."""
    share = min(0.5, *(team.forward_share for team in level.teams))
    there, back = hop_bytes
    network, curves = cluster.network, cluster.measured.curves.between
    alike = len({node.gpus[0].kind for node in cluster.nodes}) == 1 and there == back
    even = np.allclose(network.bandwidth_bytes_per_s, network.bandwidth_bytes_per_s.T, rtol=ROUNDING, atol=0)
    even = even and np.allclose(network.latency_s, network.latency_s.T, rtol=ROUNDING, atol=0)
    if not even or network.per_device or (curves and not alike):
        return 0.0
    return min(share, there / (there + back))


def _alike(equals: Equals, nodes: list[Floats], ratio: float) -> list[NodeClass]:
    """These nodes, of equal GPUs, by their networks: those not `ratio` slower than the fastest of a class are of it."""
    found: list[list[Floats]] = []
    for network in sorted(nodes, key=lambda network: -network[0]):
        if found and found[-1][0][0] <= network[0] * ratio:
            found[-1].append(network)
        else:
            found.append([network])
    gpus, teams = equals
    return [
        NodeClass(
            len(group),
            gpus,
            teams,
            max(one[0] for one in group),
            max(one[1] for one in group),
            min(one[2] for one in group),
        )
        for group in found
    ]
