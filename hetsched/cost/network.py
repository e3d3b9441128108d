"""How long messages take: latency and bytes over bandwidth (the α-β model, Hockney 1994), with links that are shared.

Two nodes have the bandwidth that was measured between them, whatever number of their GPUs uses it; a measured curve
says how it grows with that number. Flows that use a node's network at the same time share it evenly: a node can send,
and receive, as much at once as to the peer it is nearest to.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hetsched.cluster import Cluster

CHUNK_BYTES = 512 * 2**10  # NCCL's collectives pass these on (NCCL_BUFFSIZE of 4 MiB over NCCL_STEPS of 8)


@dataclass(frozen=True, slots=True)
class Team:
    """Devices that work together as one stage: positions in `Cluster.devices`.

    node: that of the first; spans: whether others stand elsewhere, which only plans by hand have.
    """

    devices: tuple[int, ...]
    node: int
    spans: bool = False

    @property
    def size(self) -> int:
        """The tensor-parallel degree."""
        return len(self.devices)


def team_of(cluster: Cluster, names: Sequence[str]) -> Team:
    """The team of the devices of these names; HetschedError where the cluster lacks one."""
    devices = tuple(cluster.position(name) for name in names)
    nodes = [cluster.node_numbers[device] for device in devices]
    return Team(devices, nodes[0], len(set(nodes)) > 1)


@dataclass(slots=True)
class Lanes:
    """Flows, one for each GPU that sends, that leave, enter and join nodes at the same time."""

    out: dict[int, int] = field(default_factory=Counter)
    into: dict[int, int] = field(default_factory=Counter)
    pairs: dict[tuple[int, int], int] = field(default_factory=Counter)

    @classmethod
    def of(cls, transfers: Iterable[tuple[Team, Team]], parts: bool = True) -> "Lanes":
        """The lanes of these transfers, from the first team to the second; parts: see `transfer_s`."""
        lanes = cls()
        for source, target in transfers:
            if source.node != target.node:
                lanes.add(source.node, target.node, flows(source, target, parts))
        return lanes

    def add(self, source: int, target: int, count: int) -> None:
        """So many more flows from one node to another."""
        self.out[source] += count
        self.into[target] += count
        self.pairs[source, target] += count


RingStep = Callable[[int, int, float, int], float]


def width(source: Team, target: Team) -> int:
    """How many flows a transfer between two teams makes: each GPU of the smaller team has one."""
    return min(source.size, target.size)


def flows(source: Team, target: Team, parts: bool) -> int:
    """How many flows a hop of a pipeline makes: a part from each pair of GPUs, or the whole to each that receives."""
    return width(source, target) if parts else target.size


def bandwidth_bytes_per_s(cluster: Cluster, i: int, j: int, own: int, lanes: Lanes, message_bytes: float) -> float:
    """What `own` flows from node i to node j get together, among all `lanes` in use at once.

    Lanes that count fewer flows than the transfer itself makes give it no more than the whole of a network.
    """
    pair = max(lanes.pairs[i, j], own)
    out, into = max(lanes.out[i], pair), max(lanes.into[j], pair)
    share = cluster.between_bytes_per_s(i, j, pair, message_bytes) * own / pair
    if out > pair:
        share = min(share, cluster.uplink_bytes_per_s(i, out, message_bytes) * own / out)
    if into > pair:
        share = min(share, cluster.downlink_bytes_per_s(j, into, message_bytes) * own / into)
    return share


def transfer_s(
    cluster: Cluster, source: Team, target: Team, size_bytes: float, lanes: Lanes, parts: bool = True
) -> tuple[float, float]:
    """(seconds on the link, seconds after that until it is there) of a tensor that the source's devices all hold.

    parts: each flow carries its part, and the target's devices gather the parts among themselves (Narayanan et al.
    2021, arXiv 2104.04473, section 4.1), as the bundled executor does. Else each of the target's devices gets the whole
    tensor over the network, as in engines without that.
    """
    latency_s, each = _worst_link(cluster, source, target)
    own = flows(source, target, parts)
    moved_bytes = size_bytes if parts else size_bytes * target.size
    if source.node == target.node:
        whole = width(source, target) * each
    else:
        whole = bandwidth_bytes_per_s(cluster, source.node, target.node, own, lanes, moved_bytes / own)
        if _has_own_links(cluster, source, target):
            whole = min(whole, width(source, target) * each)
    return moved_bytes / whole, latency_s + (gather_s(cluster, target, size_bytes) if parts else 0.0)


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
    latency_s, slowest = _worst_link(cluster, team, team)
    measured = None if team.spans else cluster.inside_bytes_per_s(team.node, gpus or team.size, CHUNK_BYTES)
    return latency_s, slowest if measured is None else measured


def _worst_link(cluster: Cluster, a: Team, b: Team) -> tuple[float, float]:
    """The longest latency and the least bandwidth of a link from a device of one team to one of another."""
    if not _has_own_links(cluster, a, b):
        network = cluster.network
        return network.latency_s.item(a.node, b.node), network.bandwidth_bytes_per_s.item(a.node, b.node)
    latency, bandwidth = cluster.links(a.devices, b.devices)
    return float(latency.max()), float(bandwidth.min())


def _has_own_links(cluster: Cluster, a: Team, b: Team) -> bool:
    """Whether the links between the teams' devices may differ from those of their nodes."""
    return a.spans or b.spans or (a.node, b.node) in cluster.network.per_device


def all_reduce_s(cluster: Cluster, members: Sequence[Team], size_bytes: float, lanes: Lanes) -> float:
    """All-reduce of `size_bytes` that each team holds once, over its devices, as `ring_all_reduce_s` says.

    Teams of unequal size reduce matching slices, in rings at the same time: what matters is how many bytes a link
    carries in all.
    """

    def step(a: int, b: int, part_bytes: float, teams: int) -> float:
        return step_s(cluster, members[a], members[b], part_bytes, lanes, teams)

    return ring_all_reduce_s([team.node for team in members], size_bytes, step)


def ring_all_reduce_s(nodes: Sequence[int], size_bytes: float, step: RingStep) -> float:
    """The faster of two ways to all-reduce among members, `nodes` being the node of each in ring order.

    One ring through all of them; or, where nodes have several, a reduce-scatter inside each node, rings across the
    nodes, and a gather inside each node. A ring takes 2 (n - 1) steps of 1/n of the bytes, each as slow as its slowest
    link (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). step(a, b, bytes, teams): from member a to member b,
    where so many of the ring are in the first one's node.
    """
    n = len(nodes)
    if n < 2:
        return 0.0
    places: dict[int, list[int]] = {}
    for member, node in enumerate(nodes):
        places.setdefault(node, []).append(member)
    around = list(zip(range(n), [*range(1, n), 0], strict=True))
    flat = 2 * (n - 1) * max([step(a, b, size_bytes / n, len(places[nodes[a]])) for a, b in around])
    if len(places) < 2 or len(places) == n:
        return flat
    within = max(_within_s(members, size_bytes, step) for members in places.values())
    part, steps = size_bytes / len(places), 2 * (len(places) - 1)
    return min(flat, within + steps * max([step(a, b, part, 1) for a, b in around if nodes[a] != nodes[b]]))


def _within_s(members: Sequence[int], size_bytes: float, step: RingStep) -> float:
    size = len(members)
    if size < 2:
        return 0.0
    steps = [step(a, b, size_bytes / size, size) for a, b in pairwise([*members, members[0]])]
    return 2 * (size - 1) * max(steps)


def step_s(cluster: Cluster, a: Team, b: Team, size_bytes: float, lanes: Lanes, teams: int) -> float:
    """One step of a ring, from a team to the next; teams: how many of the ring are in the first one's node."""
    latency_s, bytes_per_s = step_link(cluster, a, b, lanes, teams)
    return latency_s + size_bytes / bytes_per_s


def step_link(cluster: Cluster, a: Team, b: Team, lanes: Lanes, teams: int) -> tuple[float, float]:
    """Latency in s and bytes/s of a step of a ring."""
    latency_s, each = _worst_link(cluster, a, b)
    if a.node == b.node:
        measured = cluster.inside_bytes_per_s(a.node, teams * max(a.size, b.size), CHUNK_BYTES)
        return latency_s, width(a, b) * (each if measured is None else measured)
    whole = bandwidth_bytes_per_s(cluster, a.node, b.node, width(a, b), lanes, CHUNK_BYTES)
    if _has_own_links(cluster, a, b):
        whole = min(whole, width(a, b) * each)
    return latency_s, whole
