"""How long messages take: latency and bytes over bandwidth (the α-β model, Hockney 1994), with links that are shared.

Two nodes have the bandwidth that was measured between them, whatever number of their GPUs uses it; a measured curve
says how it grows with that number. Flows that use a node's network at the same time share it evenly: a node can send,
and receive, as much at once as to the peer it is nearest to.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hetsched.cluster import Cluster

CHUNK_BYTES = 512 * 2**10  # NCCL cuts what it moves into these (NCCL_BUFFSIZE of 4 MiB over NCCL_STEPS of 8)


@dataclass(frozen=True, slots=True)
class Team:
    """Devices that work together as one stage: positions in `Cluster.devices`, all in one node but for odd plans."""

    devices: tuple[int, ...]
    node: int

    @property
    def size(self) -> int:
        """The tensor-parallel degree."""
        return len(self.devices)


def team_of(cluster: Cluster, names: Sequence[str]) -> Team:
    """The team of the devices of these names."""
    devices = tuple(cluster.index_of[name] for name in names)
    return Team(devices, int(cluster.node_of[devices[0]]))


@dataclass(slots=True)
class Lanes:
    """Flows, one for each GPU that sends, that leave, enter and join nodes at the same time."""

    out: Counter[int] = field(default_factory=Counter)
    into: Counter[int] = field(default_factory=Counter)
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, flows: Iterable[tuple[Team, Team]]) -> "Lanes":
        """The lanes of these transfers, from the first team to the second."""
        lanes = cls()
        for source, target in flows:
            if source.node != target.node:
                lanes.add(source.node, target.node, width(source, target))
        return lanes

    def add(self, source: int, target: int, count: int) -> None:
        """So many more flows from one node to another."""
        self.out[source] += count
        self.into[target] += count
        self.pairs[source, target] += count


def width(source: Team, target: Team) -> int:
    """How many flows a transfer between two teams makes: each GPU of the smaller team has one."""
    return min(source.size, target.size)


def bandwidth_bytes_per_s(cluster: Cluster, source: Team, target: Team, lanes: Lanes) -> float:
    """What a transfer between teams of two nodes gets, all its flows together, among all `lanes` in use at once."""
    own, (i, j) = width(source, target), (source.node, target.node)
    pair, out, into = (max(own, flows) for flows in (lanes.pairs[i, j], lanes.out[i], lanes.into[j]))
    share = cluster.between_bytes_per_s(i, j, pair, CHUNK_BYTES) * own / pair
    if out > pair:
        share = min(share, cluster.uplink_bytes_per_s(i, out, CHUNK_BYTES) * own / out)
    if into > pair:
        share = min(share, cluster.downlink_bytes_per_s(j, into, CHUNK_BYTES) * own / into)
    return share


def transfer_s(cluster: Cluster, source: Team, target: Team, size_bytes: float, lanes: Lanes) -> tuple[float, float]:
    """(seconds on the link, seconds after that until it is there) of a tensor that the source's devices all hold.

    Each flow carries its part, and the target's devices gather the parts among themselves (Narayanan et al. 2021, arXiv
    2104.04473, section 4.1).
    """
    latency, bandwidth = cluster.links(source.devices, target.devices)
    own = width(source, target)
    if source.node == target.node:
        occupied = size_bytes / (own * float(bandwidth.min()))
    else:
        whole = bandwidth_bytes_per_s(cluster, source, target, lanes)
        if (source.node, target.node) in cluster.network.per_device:
            whole = min(whole, own * float(bandwidth.min()))
        occupied = size_bytes / whole
    gather = gather_s(cluster, target, size_bytes) if own > 1 or target.size > 1 else 0.0
    return occupied, float(latency.max()) + gather


def gather_s(cluster: Cluster, team: Team, size_bytes: float) -> float:
    """Until each of a team's devices has all of a tensor of which each has an equal part: a ring of n - 1 steps."""
    n = team.size
    if n < 2:
        return 0.0
    latency_s, bytes_per_s = inside(cluster, team)
    return (n - 1) * (latency_s + size_bytes / n / bytes_per_s)


def team_all_reduce_s(cluster: Cluster, team: Team, size_bytes: float) -> float:
    """An all-reduce among a team's devices, of a tensor of that size on each: a ring, twice a gather."""
    return 2 * gather_s(cluster, team, size_bytes)


def inside(cluster: Cluster, team: Team, gpus: int | None = None) -> tuple[float, float]:
    """Latency in s, and bytes/s that each device of a team has to its neighbour when `gpus` of its node take part."""
    latency, bandwidth = cluster.links(team.devices, team.devices)
    slowest = float(bandwidth.min())
    measured = cluster.inside_bytes_per_s(team.node, gpus or team.size, CHUNK_BYTES)
    return float(latency.max()), slowest if measured is None else measured


def all_reduce_s(cluster: Cluster, members: Sequence[Team], size_bytes: float, lanes: Lanes) -> float:
    """All-reduce of `size_bytes` that each team holds once, over its devices: the faster of two ways.

    One ring through all teams in the order given; or, where nodes have several of them, a reduce-scatter inside each
    node, rings across the nodes, and a gather inside each node. A ring takes 2 (n - 1) steps of 1/n of the bytes, each
    as slow as its slowest link (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). Teams of unequal size reduce
    matching slices, in rings at the same time: what matters is how many bytes a link carries in all.
    """
    n = len(members)
    if n < 2:
        return 0.0
    nodes: dict[int, list[Team]] = {}
    for team in members:
        nodes.setdefault(team.node, []).append(team)
    hops = list(zip(members, [*members[1:], members[0]], strict=True))
    flat = 2 * (n - 1) * max(_step_s(cluster, a, b, size_bytes / n, lanes, len(nodes[a.node])) for a, b in hops)
    if len(nodes) < 2 or len(nodes) == n:
        return flat
    within = max(2 * (len(teams) - 1) * _inside_step_s(cluster, teams, size_bytes) for teams in nodes.values())
    first = [teams[0] for teams in nodes.values()]
    across = zip(first, [*first[1:], first[0]], strict=True)
    steps = 2 * (len(nodes) - 1)
    return min(flat, within + steps * max(_step_s(cluster, a, b, size_bytes / len(nodes), lanes, 1) for a, b in across))


def _step_s(cluster: Cluster, a: Team, b: Team, size_bytes: float, lanes: Lanes, teams: int) -> float:
    latency, bandwidth = cluster.links(a.devices, b.devices)
    if a.node == b.node:
        measured = cluster.inside_bytes_per_s(a.node, teams * max(a.size, b.size), CHUNK_BYTES)
        each = float(bandwidth.min()) if measured is None else measured
        return float(latency.max()) + size_bytes / (width(a, b) * each)
    whole = bandwidth_bytes_per_s(cluster, a, b, lanes)
    if (a.node, b.node) in cluster.network.per_device:
        whole = min(whole, width(a, b) * float(bandwidth.min()))
    return float(latency.max()) + size_bytes / whole


def _inside_step_s(cluster: Cluster, teams: Sequence[Team], size_bytes: float) -> float:
    if len(teams) < 2:
        return 0.0
    here = [*teams, teams[0]]
    return max(_step_s(cluster, a, b, size_bytes / len(teams), Lanes(), len(teams)) for a, b in pairwise(here))
