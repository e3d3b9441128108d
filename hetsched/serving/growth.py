"""What one more GPU of each kind would bring a serving plan: the replica it joins is laid out anew, exactly."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hetsched.cluster import Cluster, Network
from hetsched.cost.serving.accounts import Growth
from hetsched.cost.serving.plan_cost import steady_replica
from hetsched.cost.serving.reference import USUAL_LINK
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.plan import ServingPipeline, ServingPlan, Stage
from hetsched.requests import Requests
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.workshop import Workshop
from hetsched.solvers.serving.worth import Worth

MOST_NODES = 3  # of a kind on which one more GPU is tried
MOST_PARTNERS = 4  # replicas on other nodes that it may join, besides those on its own
LARGEST_BATCH = 4096


def one_more(
    cluster: Cluster,
    plan: ServingPlan,
    requests: Requests,
    memory_fraction: float,
    reference: ReplicaTimes | None,
) -> list[Growth]:
    """For each kind of GPU of the cluster the node and replica where one more brings most, the best kind first.

    Rates are within the SLO, by the steady state; requests are shared as the replicas can take them.
    """
    before = _Rates(cluster, plan, requests, memory_fraction, reference)
    found: dict[str, Growth] = {}
    for number, kind in _nodes(cluster, plan):
        larger, device = with_one_more(cluster, number, kind)
        rates = _Rates(larger, plan, requests, memory_fraction, reference)
        for growth in _joined(before, rates, number, device):
            if kind not in found or growth.after_per_s > found[kind].after_per_s:
                found[kind] = growth
    return sorted(found.values(), key=lambda growth: -growth.after_per_s)


def with_one_more(cluster: Cluster, number: int, kind: str) -> tuple[Cluster, str]:
    """The cluster with one more GPU of a kind on a node that has such, and the GPU's name.

    It is linked as its neighbours are; to a GPU that was alone by the kind's usual link.
    """
    node = cluster.nodes[number]
    gpu = next(gpu for gpu in node.gpus if gpu.kind == kind)
    grown = replace(node, gpus=(*node.gpus, gpu))
    bandwidth, latency = cluster.network.bandwidth_bytes_per_s.copy(), cluster.network.latency_s.copy()
    if len(node.gpus) == 1:
        link = gpu.link or USUAL_LINK
        bandwidth[number, number], latency[number, number] = link.bandwidth_bytes_per_s, link.latency_s
    blocks = {
        pair: tuple(_longer(block, pair, number, ends) for block, ends in zip(both, (np.inf, 0.0), strict=True))
        for pair, both in cluster.network.per_device.items()
    }
    nodes = (*cluster.nodes[:number], grown, *cluster.nodes[number + 1 :])
    network = Network(bandwidth, latency, {pair: (both[0], both[1]) for pair, both in blocks.items()})
    return replace(cluster, nodes=nodes, network=network), f"{node.name}/{len(node.gpus)}"


def _longer(block: np.ndarray, pair: tuple[int, int], number: int, itself: float) -> np.ndarray:
    """A table of GPUs with the last one of a node twice."""
    rows = [*range(block.shape[0]), *([block.shape[0] - 1] if pair[0] == number else [])]
    columns = [*range(block.shape[1]), *([block.shape[1] - 1] if pair[1] == number else [])]
    longer = block[np.ix_(rows, columns)].copy()
    if pair == (number, number):
        last = block.shape[0] - 1
        nearest = block[last - 1, last] if last else itself
        longer[last, last + 1] = longer[last + 1, last] = nearest
    return longer


def _nodes(cluster: Cluster, plan: ServingPlan) -> Iterator[tuple[int, str]]:
    """(node, kind) to try: for each kind nodes that the plan uses, no two alike, else any."""
    used = {cluster.device(name).node for pipeline in plan.pipelines for name in pipeline.devices}
    kinds = dict.fromkeys(gpu.kind for node in cluster.nodes for gpu in node.gpus)
    for kind in kinds:
        having = [k for k, node in enumerate(cluster.nodes) if any(gpu.kind == kind for gpu in node.gpus)]
        having.sort(key=lambda k: cluster.nodes[k].name not in used)
        seen: set[tuple[object, ...]] = set()
        for k in having:
            node = cluster.nodes[k]
            alike = (node.name in used, node.region, tuple(gpu.kind for gpu in node.gpus))
            if alike not in seen and len(seen) < MOST_NODES:
                seen.add(alike)
                yield k, kind


class _Rates:
    """What the plan's replicas, and others in their place, keep on a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        plan: ServingPlan,
        requests: Requests,
        memory_fraction: float,
        reference: ReplicaTimes | None,
    ) -> None:
        self.cluster, self.plan, self.memory_fraction = cluster, plan, memory_fraction
        self.worth = Worth(requests, plan.workload.slo, reference)
        problem = ServingProblem(cluster, plan.model, plan.workload, requests, plan.options)
        self.workshop = Workshop(problem, memory_fraction, reference)
        self._best: dict[tuple[str, frozenset[int]], tuple[float, list[Stage]]] = {}

    def rate(self, pipeline: ServingPipeline, stages: list[Stage] | tuple[Stage, ...]) -> float:
        """Of the pipeline with these stages: what it keeps. Its max_batch stays, but where KV memory set it."""
        plan, traffic = self.plan, self.workshop.traffic
        as_it_is, times = (
            replica_times(self.cluster, plan.model, layout, plan.precision, self.memory_fraction)
            for layout in (pipeline.stages, stages)
        )
        full = as_it_is.largest_batch(traffic.input_tokens + traffic.output_tokens) <= pipeline.max_batch
        other = replace(pipeline, stages=tuple(stages), max_batch=LARGEST_BATCH if full else pipeline.max_batch)
        return self.worth.rate_per_s(steady_replica(plan, other, times, traffic))

    def best(self, pipeline: ServingPipeline, more: tuple[str, ...] = ()) -> tuple[float, list[Stage]]:
        """The highest rate of the pipeline's GPUs and more: as it stands, or laid out anew."""
        group = frozenset(self.cluster.position(name) for name in (*pipeline.devices, *more))
        key = pipeline.role, group
        if key not in self._best:
            layouts = self.workshop.candidates(group) if self.workshop.could_hold(group) else []
            if not more:
                layouts = [list(pipeline.stages), *layouts]
            rates = [(self.rate(pipeline, stages), number) for number, stages in enumerate(layouts)]
            rate, number = max(rates, default=(0.0, -1))
            self._best[key] = rate, layouts[number] if layouts else []
        return self._best[key]

    def whole(self, changed: dict[str, float], more: float = 0.0) -> float:
        """The plan's rate, some of its replicas' changed, and one more replica: prefill and decode each take all."""
        rates = {p.name: changed.get(p.name, self.best(p)[0]) for p in self.plan.pipelines}
        by_role = {role: sum(rates[p.name] for p in self.plan.pipelines if p.role == role) for role in
                   ("both", "prefill", "decode")}  # fmt: skip
        return by_role["both"] + more + min(by_role["prefill"], by_role["decode"])


def _joined(before: _Rates, after: _Rates, number: int, device: str) -> Iterator[Growth]:
    """The new GPU in each replica on its node and some others, and in one of its own."""
    cluster, plan = after.cluster, before.plan
    node = cluster.nodes[number]
    near = sorted(plan.pipelines, key=lambda p: not any(cluster.device(name).node == node.name for name in p.devices))
    own = sum(any(cluster.device(name).node == node.name for name in p.devices) for p in plan.pipelines)
    kind, whole = cluster.device(device).gpu.kind, before.whole({})
    for pipeline in near[: own + MOST_PARTNERS]:
        rate, stages = after.best(pipeline, (device,))
        joined = before.whole({pipeline.name: max(rate, before.best(pipeline)[0])})
        layout = _shown(cluster, stages) if rate > before.best(pipeline)[0] else ""
        yield Growth(kind, node.name, pipeline.name, layout, whole, joined)
    alone = frozenset([cluster.position(device)])
    replica = after.workshop.replica(alone)
    if replica is not None and any(p.role == "both" for p in plan.pipelines):
        layout = _shown(cluster, replica.stages)
        yield Growth(kind, node.name, None, layout, whole, before.whole({}, replica.rate_per_s))


def _shown(cluster: Cluster, stages: list[Stage] | tuple[Stage, ...]) -> str:
    """`8 × A40-48GB (40) → 1 × L4-24GB (40)`: GPUs and blocks of each stage."""
    kinds = [cluster.device(stage.devices[0]).gpu.kind for stage in stages]
    return " → ".join(
        f"{len(stage.devices)}\xa0×\xa0{kind}\xa0({stage.num_layers})"
        for stage, kind in zip(stages, kinds, strict=True)
    )
