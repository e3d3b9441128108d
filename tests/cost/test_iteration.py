"""The iteration put together by hand from plain loops: an independent second program for pipelines of any shape."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.cluster import Cluster
from hetsched.cost.compute import Worker, optimizer_s, stage_work
from hetsched.cost.training import Roofline
from hetsched.plan import Plan

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]

SEEDS = st.integers(0, 2**32)


@settings(deadline=None, max_examples=120)
@given(seed=SEEDS)
def test_the_breakdown_adds_up(random_cluster: MakeCluster, random_plan: MakePlan, seed: int) -> None:
    cluster = random_cluster(seed, (2, 1, 3, 2))
    cost = Roofline().price(cluster, random_plan(seed, cluster))
    assert sum(cost.breakdown_s.values()) == pytest.approx(cost.iteration_s, rel=1e-9)
    assert min(cost.breakdown_s.values()) >= -1e-9 * cost.iteration_s


Ring = tuple[list[tuple[int, int]], int]  # (pipeline, stage) of its members, and parameters


def plain_rings(plan: Plan) -> list[Ring]:
    """Who reduces how many parameters with whom: block by block, the last first, and a tied embedding last."""
    model = plan.model
    by_members: dict[tuple[int, ...], list[int]] = {}
    for block in range(model.num_layers):
        holders = tuple(
            next(s for s, stage in enumerate(pipeline.stages) if stage.layers[0] <= block < stage.layers[1])
            for pipeline in plan.pipelines
        )
        by_members.setdefault(holders, []).append(block)
    shared = model.vocab_size * model.hidden_size if model.tied_embeddings else 0
    rings: list[Ring] = []
    for holders, blocks in reversed(by_members.items()):
        parameters = model.stage_parameters((blocks[0], blocks[-1] + 1))
        parameters -= shared if 0 in blocks or model.num_layers - 1 in blocks else 0
        rings.append((list(enumerate(holders)), parameters))
    if shared:
        both = [(p, s) for p, pipeline in enumerate(plan.pipelines) for s in sorted({0, len(pipeline.stages) - 1})]
        rings.append((both, shared))
    return rings


class PlainNetwork:
    """Transfers between nodes: link, uplink and downlink are shared by as many as can go on at once.

    rounds: sets of transfers, each of which can go on at once."""

    def __init__(self, cluster: Cluster, rounds: list[list[tuple[str, str]]]) -> None:
        self.cluster = cluster
        self.rounds = [
            [(self.node(a), self.node(b)) for a, b in hops if self.node(a) != self.node(b)] for hops in rounds
        ]

    def node(self, name: str) -> int:
        return int(self.cluster.node_of[self.cluster.index_of[name]])

    def most(self, uses: Callable[[int, int], bool]) -> int:
        return max([1, *(sum(uses(i, j) for i, j in hops) for hops in self.rounds)])

    def seconds(self, here: str, there: str, size: float) -> tuple[float, float]:
        """(on the link, latency)"""
        link = self.cluster.link(self.cluster.index_of[here], self.cluster.index_of[there])
        bandwidth, (i, j) = link.bandwidth_bytes_per_s, (self.node(here), self.node(there))
        if i != j:
            both = self.cluster.network.bandwidth_bytes_per_s
            others = [k for k in range(len(both)) if k not in (i,)]
            uplink = max(both[i, k] for k in others) / self.most(lambda a, _: a == i)
            senders = [k for k in range(len(both)) if k != j]
            downlink = max(both[k, j] for k in senders) / self.most(lambda _, b: b == j)
            bandwidth = min(bandwidth / self.most(lambda a, b: (a, b) == (i, j)), uplink, downlink)
        return size / bandwidth, link.latency_s


def on_the_wire(values: float, bits: int, row: int) -> float:
    """Bytes of values of two bytes, or of fewer bits and then a scale of four bytes a row."""
    return values * 2 if bits == 16 else values * bits / 8 + values / row * 4


def plain_reductions(cluster: Cluster, plan: Plan) -> list[tuple[list[tuple[int, int]], float, float]]:
    """(members, seconds of the gradients' all-reduce, seconds of a gather of the weights) of each ring, in order."""
    name_of = {
        (p, s): pipe.stages[s].devices[0] for p, pipe in enumerate(plan.pipelines) for s in range(len(pipe.stages))
    }
    first_seen = list(dict.fromkeys(name.split("/")[0] for name in name_of.values()))
    rings = [
        (sorted(ring, key=lambda place: first_seen.index(name_of[place].split("/")[0])), parameters)
        for ring, parameters in plain_rings(plan)
    ]
    around = [[(name_of[a], name_of[b]) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)] for ring, _ in rings]
    gathers = plan.options.zero == 3
    last = len(rings) - (plan.model.tied_parameters > 0 and len(rings) > 0 and not gathers)
    if gathers:  # a device sends once to each node that it ever sends to
        nodes = {name: name.split("/")[0] for name in name_of.values()}
        sends = {(a, nodes[b]): (a, b) for hops in around for a, b in hops if nodes[a] != nodes[b]}
        together = PlainNetwork(cluster, [list(sends.values())])
    else:
        together = PlainNetwork(cluster, apart([ring for ring, _ in rings[:last]], around[:last]))
    networks = [together] * last + [PlainNetwork(cluster, [hops]) for hops in around[last:]]  # the tied one comes last
    alone = PlainNetwork(cluster, [])

    def seconds(network: PlainNetwork, ring: list[tuple[int, int]], size: float) -> float:
        names = [name_of[place] for place in ring]
        flat = 2 * (len(names) - 1) * slowest(network, names, size / len(names))
        nodes: dict[str, list[str]] = {}
        for name in names:
            nodes.setdefault(name.split("/")[0], []).append(name)
        if len(nodes) in (1, len(names)):
            return flat
        inside = max(2 * (len(n) - 1) * slowest(alone, n, size / len(n)) for n in nodes.values())
        across = [
            (a, b) for a, b in zip(names, names[1:] + names[:1], strict=True) if network.node(a) != network.node(b)
        ]
        step = max(sum(network.seconds(a, b, size / len(nodes))) for a, b in across)
        return min(flat, inside + 2 * (len(nodes) - 1) * step)

    return [
        (
            ring,
            seconds(network, ring, on_the_wire(parameters, plan.options.compression.grad_bits, 512)),
            seconds(network, ring, parameters * 2) / 2,
        )
        for (ring, parameters), network in zip(rings, networks, strict=True)
    ]


def apart(rings: list[list[tuple[int, int]]], around: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """The hops of every set of rings no two of which have a stage in common: a stage is in one ring at a time."""
    sets: list[list[int]] = [[]]
    for number, ring in enumerate(rings):
        sets += [[*others, number] for others in sets if not any(set(ring) & set(rings[other]) for other in others)]
    return [[hop for number in chosen for hop in around[number]] for chosen in sets]


def slowest(network: PlainNetwork, names: list[str], size: float) -> float:
    """A step of a ring: as slow as its slowest hop."""
    return max(sum(network.seconds(a, b, size)) for a, b in zip(names, names[1:] + names[:1], strict=True))


def plain_iteration(cluster: Cluster, plan: Plan) -> float:
    """The iteration of pipelines that do one micro-batch each: no stage ever waits for another micro-batch."""
    job, model, bits = plan.workload, plan.model, plan.options.compression
    values = job.micro_batch * job.seq_len * model.hidden_size
    rings = plain_reductions(cluster, plan)
    gather: dict[tuple[int, int], float] = {}
    if plan.options.zero == 3:  # weights come before each pass: half an all-reduce
        for ring, _, seconds in rings:
            for place in ring:
                gather[place] = gather.get(place, 0.0) + seconds
    names = [[stage.devices[0] for stage in pipeline.stages] for pipeline in plan.pipelines]
    hops = [hop for line in names for hop in pairwise(line)]
    forth, back = PlainNetwork(cluster, [hops]), PlainNetwork(cluster, [[(b, a) for a, b in hops]])
    free: dict[tuple[int, int], float] = {}
    for p, (pipeline, line) in enumerate(zip(plan.pipelines, names, strict=True)):
        works = [
            stage_work(Worker(cluster.device(name).gpu), model, job, stage.layers, plan.options.recompute)
            for name, stage in zip(line, pipeline.stages, strict=True)
        ]
        time = sum(work.forward_s + gather.get((p, s), 0.0) for s, work in enumerate(works))
        time += sum(
            sum(forth.seconds(a, b, on_the_wire(values, bits.activation_bits, model.hidden_size)))
            for a, b in pairwise(line)
        )
        for s in reversed(range(len(works))):
            time += works[s].backward_s + gather.get((p, s), 0.0)
            free[p, s] = time
            if s:
                size = on_the_wire(values, bits.activation_grad_bits, model.hidden_size)
                on_the_link, latency = back.seconds(line[s], line[s - 1], size)
                free[p, s] += on_the_link
                time += on_the_link + latency
    for ring, seconds, _ in rings:
        end = max(free[place] for place in ring) + seconds
        free.update(dict.fromkeys(ring, end))
    shards = len(plan.pipelines) if plan.options.zero else 1
    return max(
        time + optimizer_s(Worker(cluster.device(names[p][s]).gpu), model, plan.pipelines[p].stages[s].layers, shards)
        for (p, s), time in free.items()
    )


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_an_iteration_by_hand(random_cluster: MakeCluster, random_plan: MakePlan, seed: int) -> None:
    """Pipelines of unequal depth and split, one micro-batch each."""
    cluster = random_cluster(seed, (2, 1, 3, 2))
    plan = random_plan(seed, cluster)
    size = plan.workload.micro_batch
    single = replace(
        plan,
        workload=replace(plan.workload, global_batch=size * len(plan.pipelines)),
        pipelines=tuple(replace(pipeline, micro_batches=1) for pipeline in plan.pipelines),
    )
    found = Roofline().price(cluster, single).iteration_s
    assert found == pytest.approx(plain_iteration(cluster, single), rel=1e-9)
