"""The flow of requests through a serving plan: what each replica, each KV route and each network carries at most.

Phase 2 of HexGen-2 (Jiang et al. 2025, ICLR, arXiv 2502.07903, section 3.3): source → prefill → decode → sink, where a
node's capacity is the requests a second that a replica can do, and an edge's what a KV route can carry. Which stages
hold which blocks on either side decides which links carry what, and routes that use the same node's network share it.
A flow is a bound of means: no queue, no latency, no KV that waits. The request simulator decides.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from hetsched.algorithms.max_flow import Floats, SharedNetwork
from hetsched.cluster import Cluster
from hetsched.cost.network import Lanes
from hetsched.cost.serving.kv_transfer import TYPICAL_TOKENS, KvPart, kv_parts, part_s
from hetsched.cost.serving.plan_cost import MEMORY_FRACTION, steady_replica, traffic_of
from hetsched.cost.serving.replica import replica_times
from hetsched.cost.serving.steady import Traffic
from hetsched.plan import ServingPlan

FULL = 1.0 - 1e-6  # of a capacity


class Wire(NamedTuple):
    """A network that routes may share: from a node to another; or all that leaves, or enters, a node (None)."""

    source: int | None
    target: int | None

    def words(self, cluster: Cluster) -> str:
        """`a → b`, `the network out of a`, `the network into b`."""
        if self.source is None:
            return f"the network into {cluster.nodes[self.target or 0].name}"
        if self.target is None:
            return f"the network out of {cluster.nodes[self.source].name}"
        return f"{cluster.nodes[self.source].name} → {cluster.nodes[self.target].name}"


@dataclass(frozen=True, slots=True)
class KvUse:
    """What the KV cache of one request takes on a route.

    busy_s: until the next one may follow; whole_s: until all of it is there; wires: seconds on each network it uses.
    """

    busy_s: float
    whole_s: float
    wires: tuple[tuple[Wire, float], ...]


def kv_use(cluster: Cluster, parts: Sequence[KvPart], tokens: float) -> KvUse:
    """A route's use by a prompt of so many tokens; its parts are sent at once and share networks with one another."""
    lanes = Lanes.of((part.source, part.target) for part in parts)
    times = [part_s(cluster, part, lanes) for part in parts]
    sent: dict[tuple[int, int], tuple[float, int]] = {}
    for part in parts:
        if part.between_nodes:
            pair = part.source.node, part.target.node
            size, flows = sent.get(pair, (0.0, 0))
            sent[pair] = size + tokens * part.bytes_per_token, flows + part.flows
    wires: dict[Wire, float] = {}
    for (i, j), (size, flows) in sent.items():
        message_bytes = size / tokens * TYPICAL_TOKENS / flows
        wires[Wire(i, j)] = size / cluster.between_bytes_per_s(i, j, flows, message_bytes)
        for end, most in (
            (Wire(i, None), cluster.uplink_bytes_per_s(i, flows, message_bytes)),
            (Wire(None, j), cluster.downlink_bytes_per_s(j, flows, message_bytes)),
        ):
            wires[end] = wires.get(end, 0.0) + size / most
    return KvUse(
        max(tokens * per_token_s for per_token_s, _ in times),
        max(tokens * per_token_s + latency_s for per_token_s, latency_s in times),
        tuple(wires.items()),
    )


def carried_per_s(cluster: Cluster, plan: ServingPlan, tokens: float) -> float:
    """Requests a second, with prompts of so many tokens, whose KV a plan's routes carry with its shares, at most.

    No part of a route goes faster than it would alone, and networks carry what they can.
    """
    entry = plan.shares(None)
    stages = {pipeline.name: pipeline.stages for pipeline in plan.pipelines}
    slowest, wires = 0.0, dict[Wire, float]()
    for route in plan.routes:
        if route.source is not None:
            share = entry.get(route.source, 0.0) * route.share
            parts = kv_parts(cluster, plan.model, plan.precision, stages[route.source], stages[route.target])
            alone_s = max(tokens * part_s(cluster, part, Lanes())[0] for part in parts)
            slowest = max(slowest, share * alone_s)
            for wire, seconds in kv_use(cluster, parts, tokens).wires:
                wires[wire] = wires.get(wire, 0.0) + share * seconds
    busy_s = max([slowest, *wires.values()])
    return 1.0 / busy_s if busy_s else float("inf")


@dataclass(frozen=True, eq=False)
class KvNetwork:
    """Prefill and decode replicas by what they do, requests a second, and the ways between them by their positions.

    keeps: (decode replicas,), what a request that is decoded there counts, as it takes the place of others; None: 1.
    """

    prefill_per_s: Floats
    decode_per_s: Floats
    ways: Mapping[tuple[int, int], KvUse]
    keeps: Floats | None = None

    @cached_property
    def wires(self) -> list[Wire]:
        """The networks that more than one way uses: one's own is part of its capacity."""
        counts = Counter(wire for use in self.ways.values() for wire, _ in use.wires)
        return [wire for wire, count in counts.items() if count > 1]

    @cached_property
    def most_per_s(self) -> Floats:
        """(ways,): what each carries alone."""
        busy_s = np.array([_own_s(use) for use in self.ways.values()])
        return np.asarray(1.0 / np.maximum(busy_s, 1e-12))

    @cached_property
    def network(self) -> SharedNetwork:
        """As arrays; flows are in the order of `ways`, resources in that of `wires`."""
        ends = np.array(list(self.ways), dtype=np.intp).reshape(-1, 2)
        row = {wire: number for number, wire in enumerate(self.wires)}
        uses = [use.wires for use in self.ways.values()]
        rows = np.array([row.get(wire, -1) for wires in uses for wire, _ in wires], dtype=np.intp)
        seconds = np.array([seconds for wires in uses for _, seconds in wires], dtype=float)
        columns = np.repeat(np.arange(len(uses)), [len(wires) for wires in uses])
        shared = rows >= 0
        shape = (len(self.wires), len(self.ways))
        use = csr_array((seconds[shared], (rows[shared], columns[shared])), shape=shape)
        worth = None if self.keeps is None else self.keeps[ends[:, 1]]
        return SharedNetwork(self.prefill_per_s, self.decode_per_s, ends, self.most_per_s, use, worth)

    @cached_property
    def flow(self) -> tuple[float, Floats]:
        """(requests a second, (ways,) on each way)."""
        return self.network.flow()

    def levelled(self) -> Floats:
        """(ways,): a flow as large, that loads replicas of a side by equal shares as far as it can."""
        return self.network.levelled(self.flow[0])

    def loads(self, flows: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """(prefill replicas, decode replicas, ways, wires): what share of its capacity each is used."""
        ends = self.network.ends
        sent = np.bincount(ends[:, 0], flows, len(self.prefill_per_s))
        taken = np.bincount(ends[:, 1], flows, len(self.decode_per_s))
        return (
            sent / np.maximum(self.prefill_per_s, 1e-12),
            taken / np.maximum(self.decode_per_s, 1e-12),
            flows / self.most_per_s,
            np.asarray(self.network.use @ flows),
        )


def _own_s(use: KvUse) -> float:
    return max([use.busy_s, *(seconds for _, seconds in use.wires)])


@dataclass(frozen=True, slots=True)
class FlowNode:
    """A replica in a flow; one that does both phases by the whole requests that it does, capacity likewise."""

    name: str
    role: str
    capacity_per_s: float
    flow_per_s: float


@dataclass(frozen=True, slots=True)
class FlowEdge:
    """A KV route in a flow; kv_s: until a mean request's KV is all there. narrowest: what it would fill first."""

    source: str
    target: str
    capacity_per_s: float
    flow_per_s: float
    kv_s: float
    narrowest: str


@dataclass(frozen=True)
class ServingFlow:
    """The largest flow of requests through a plan's replicas, whatever its shares say; requests a second.

    full: the names of replicas, `a → b` of routes, and networks, that are full.
    """

    value_per_s: float
    nodes: tuple[FlowNode, ...]
    edges: tuple[FlowEdge, ...]
    full: tuple[str, ...]


def serving_flow(
    cluster: Cluster, plan: ServingPlan, memory_fraction: float = MEMORY_FRACTION, traffic: Traffic | None = None
) -> ServingFlow:
    """The flow through a plan. traffic: of its trace, where it has one that was read.

    Raises HetschedError where the plan names a device that the cluster lacks.
    """
    traffic = traffic or traffic_of(plan)
    capacity = {}
    for pipeline in plan.pipelines:
        times = replica_times(cluster, plan.model, pipeline.stages, plan.precision, memory_fraction)
        capacity[pipeline.name] = steady_replica(plan, pipeline, times, traffic).capacity_per_s
    sides = {role: [p for p in plan.pipelines if p.role == role] for role in ("prefill", "decode", "both")}
    handed = {route.target for route in plan.routes if route.source is not None}
    taking = [b for b in sides["both"] if b.name in handed]  # a request decoded there takes the place of others
    targets, decodes = [*sides["decode"], *taking], dict(capacity)
    for pipeline in taking:
        times = replica_times(cluster, plan.model, pipeline.stages, plan.precision, memory_fraction)
        decodes[pipeline.name] = steady_replica(plan, replace(pipeline, role="decode"), times, traffic).capacity_per_s
    whole_per_s = np.array([capacity[d.name] if d.role == "both" else 0.0 for d in targets])
    demand = np.array([decodes[d.name] for d in targets])
    ways = {
        (i, j): kv_use(cluster, kv_parts(cluster, plan.model, plan.precision, p.stages, d.stages), traffic.input_tokens)
        for i, p in enumerate(sides["prefill"])
        for j, d in enumerate(targets)
    }
    keeps = np.maximum(0.0, 1.0 - whole_per_s / np.maximum(demand, 1e-12)) if taking else None
    network = KvNetwork(np.array([capacity[p.name] for p in sides["prefill"]]), demand, ways, keeps)
    value, flows = network.flow[0], network.levelled()
    sent, taken, _, used = network.loads(flows)
    load = {p.name: share for p, share in zip([*sides["prefill"], *targets], [*sent, *taken], strict=True)}
    load |= {b.name: 1.0 - load.get(b.name, 0.0) for b in sides["both"]}  # with whole requests
    nodes = [
        FlowNode(p.name, p.role, capacity[p.name], float(load[p.name] * capacity[p.name]))
        for p in (*sides["prefill"], *sides["decode"], *sides["both"])
    ]
    edges = [
        FlowEdge(
            sides["prefill"][i].name,
            targets[j].name,
            float(most),
            float(flow),
            use.whole_s,
            _narrowest(cluster, use),
        )
        for ((i, j), use), most, flow in zip(ways.items(), network.most_per_s, flows, strict=True)
    ]
    full = [n.name for n in nodes if n.flow_per_s >= n.capacity_per_s * FULL or (n.name in handed and n.role == "both")]
    full += [f"{e.source} → {e.target}" for e in edges if e.flow_per_s >= e.capacity_per_s * FULL]
    full += [wire.words(cluster) for wire, share in zip(network.wires, used, strict=True) if share >= FULL]
    whole = value + sum(capacity[b.name] for b in sides["both"])
    return ServingFlow(whole, tuple(nodes), tuple(edges), tuple(full))


def _narrowest(cluster: Cluster, use: KvUse) -> str:
    wire, seconds = max(use.wires, key=lambda item: item[1], default=(None, 0.0))
    if wire is None or seconds < use.busy_s * FULL:
        return "a link between GPUs"
    return wire.words(cluster)
