"""The channels of a training plan: between its stages, around its gradient rings, and for ZeRO 3's weights."""

from dataclasses import dataclass
from itertools import pairwise

from hetsched.cluster import Cluster
from hetsched.cost.network import Lanes, Team, all_reduce_s, flows, transfer_s, width
from hetsched.cost.placement import Placement, Seat
from hetsched.cost.traffic import GATHERED_WEIGHTS, gradient_bytes, hop_bytes
from hetsched.simulate.network import Channel, Clock, Flow, SharedNetwork, Takes


@dataclass(frozen=True, eq=False)
class Wire:
    """From one stage to a neighbour; latency_s: until what has left is there."""

    channel: Channel
    network: SharedNetwork
    latency_s: float


class Wiring:
    """All channels of a placement, on one network, or one for each kind of traffic.

    forward, backward: [pipeline][s], between stages s and s + 1; rings: one a gradient group, and reducing: the network
    of each; gathers: by seat, the channel of each of its groups.
    """

    def __init__(self, placement: Placement, clock: Clock, kinds_apart: bool) -> None:
        self._placement = placement
        networks = [SharedNetwork(clock) for _ in range(4)] if kinds_apart else [SharedNetwork(clock)] * 4
        self.gradients, tied = networks[2], networks[3]
        there, back = hop_bytes(placement.plan)
        lines = placement.teams
        self.forward = [[self._wire(a, b, there, networks[0]) for a, b in pairwise(line)] for line in lines]
        self.backward = [[self._wire(b, a, back, networks[1]) for a, b in pairwise(line)] for line in lines]
        self.rings = [self._ring(number) for number in range(len(placement.groups))]
        gathers = placement.plan.options.zero == GATHERED_WEIGHTS
        self.reducing = [tied if group.layers is None and not gathers else self.gradients for group in placement.groups]
        self.gathers: dict[Seat, list[tuple[int, Channel]]] = {}
        if gathers:
            self._wire_gathers()
        known: dict[SharedNetwork, list[Channel]] = {network: [] for network in networks}
        for wire in (wire for wires in (self.forward, self.backward) for line in wires for wire in line):
            known[wire.network].append(wire.channel)
        for ring, network in zip(self.rings, self.reducing, strict=True):
            known[network].append(ring)
        known[self.gradients] += [channel for channels in self.gathers.values() for _, channel in channels]
        for network, channels in known.items():
            network.know(channels)
        self._channels = [channel for channels in known.values() for channel in channels]

    @property
    def shared(self) -> bool:
        """Whether any two channels were in use in one network at once."""
        return any(channel.shared for channel in self._channels)

    def _wire(self, source: Team, target: Team, size_bytes: float, network: SharedNetwork) -> Wire:
        cluster, in_parts = self._placement.cluster, self._placement.in_parts

        def takes(lanes: Lanes) -> float:
            return transfer_s(cluster, source, target, size_bytes, lanes, in_parts)[0]

        latency_s = transfer_s(cluster, source, target, size_bytes, Lanes(), in_parts)[1]
        apart = source.node != target.node
        flow = [(source.node, target.node, flows(source, target, in_parts))] if apart else []
        return Wire(Channel(takes, flow), network, latency_s)

    def _ring(self, number: int) -> Channel:
        placement = self._placement
        members = placement.members(placement.rings[number])
        size_bytes = gradient_bytes(placement.plan, placement.groups[number])
        return Channel(
            lambda lanes: all_reduce_s(placement.cluster, members, size_bytes, lanes), _flows(_around(members))
        )

    def _wire_gathers(self) -> None:
        placement = self._placement
        wide = placement.plan.workload.dtype_bytes
        for number, (group, ring) in enumerate(zip(placement.groups, placement.rings, strict=True)):
            members, size_bytes = placement.members(ring), float(group.parameters * wide)
            hops = _around(members)
            for seat, hop in zip(ring, hops, strict=True):
                channel = Channel(_gather_takes(placement.cluster, members, size_bytes, hop), _flows([hop]))
                self.gathers.setdefault(seat, []).append((number, channel))


def _gather_takes(cluster: Cluster, members: list[Team], size_bytes: float, hop: tuple[Team, Team]) -> Takes:
    """Half a ring. Each member gathers when it needs to, and what it must share is the link it sends over itself."""
    i, j = hop[0].node, hop[1].node

    def takes(lanes: Lanes) -> float:
        own = Lanes()
        if i != j:
            own.pairs[i, j], own.out[i], own.into[j] = lanes.pairs[i, j], lanes.out[i], lanes.into[j]
        return all_reduce_s(cluster, members, size_bytes, own) / 2

    return takes


def _around(members: list[Team]) -> list[tuple[Team, Team]]:
    return list(zip(members, [*members[1:], members[0]], strict=True))


def _flows(hops: list[tuple[Team, Team]]) -> list[Flow]:
    """What goes from node to node; a ring's teams are in their nodes' order, so that it enters and leaves each once."""
    return [(a.node, b.node, width(a, b)) for a, b in hops if a.node != b.node]
