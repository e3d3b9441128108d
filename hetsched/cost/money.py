"""What a plan costs an hour: its nodes, and what leaves their regions."""

from collections.abc import Sequence
from itertools import pairwise

from hetsched.cluster import Cluster, Device
from hetsched.cost.compute import all_reduces
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.traffic import GATHERED_WEIGHTS, gradient_bytes, gradient_groups, hop_bytes
from hetsched.plan import Plan, Stage
from hetsched.units import BYTES_PER_GB, SECONDS_PER_HOUR


def plan_usd_per_hour(cluster: Cluster, plan: Plan, iteration_s: float) -> float | None:
    """The price of the nodes that the plan uses, whole, and of its egress; None where a node's price is not known."""
    nodes = dict.fromkeys(cluster.device(name).node for pipeline in plan.pipelines for name in pipeline.devices)
    usd_per_hour = cluster.usd_per_hour(list(nodes))
    if usd_per_hour is None or not any(cluster.node(name).egress_usd_per_gb for name in nodes):
        return usd_per_hour
    return usd_per_hour + egress_usd(cluster, plan) * SECONDS_PER_HOUR / iteration_s if iteration_s else usd_per_hour


def egress_usd(cluster: Cluster, plan: Plan) -> float:
    """What one iteration's traffic between regions costs: each sender's node says what a GB (1e9) that leaves is."""
    return _hops_usd(cluster, plan) + _stages_usd(cluster, plan) + _gradients_usd(cluster, plan)


def _hops_usd(cluster: Cluster, plan: Plan) -> float:
    """Activations and their gradients cross once a micro-batch.

    In engines that do not overlap, once for each GPU of the stage that receives.
    """
    forward, backward = hop_bytes(plan)
    usd = 0.0
    for pipeline in plan.pipelines:
        for before, after in pairwise(pipeline.stages):
            here, there = (cluster.device(stage.devices[0]) for stage in (before, after))
            copies = (1, 1) if plan.options.overlap else (len(after.devices), len(before.devices))
            usd += pipeline.micro_batches * forward * copies[0] * _usd_per_byte(cluster, here, there)
            usd += pipeline.micro_batches * backward * copies[1] * _usd_per_byte(cluster, there, here)
    return usd


def _stages_usd(cluster: Cluster, plan: Plan) -> float:
    """What tensor-parallel devices of different regions tell one another, each micro-batch.

    All-reduces of hidden states; and, where hops go in parts, a gather of what came.
    """
    usd, hidden, came = 0.0, hidden_bytes(plan.model, plan.workload), hop_bytes(plan)
    for pipeline, number, stage in plan.stages:
        around_usd = _around_usd(cluster, [cluster.device(name) for name in stage.devices])
        if around_usd:
            sent = 2 * sum(all_reduces(plan.model, stage.layers, plan.options.recompute)) * hidden
            if plan.options.overlap:
                sent += (came[0] if number else 0.0) + (came[1] if number + 1 < len(pipeline.stages) else 0.0)
            size = len(stage.devices)
            usd += pipeline.micro_batches * sent * (size - 1) / size * around_usd
    return usd


def _gradients_usd(cluster: Cluster, plan: Plan) -> float:
    """In a ring all-reduce of n members each sends 2 (n - 1) / n of the gradients on (Patarasuk and Yuan 2009).

    With ZeRO 3 each pass of each micro-batch gathers weights: (n - 1) / n of them come to a member from the one before.
    """
    usd, rank = 0.0, {name: k for k, name in enumerate(n for names in plan.devices_by_node.values() for n in names)}
    for group in gradient_groups(plan):
        ring = sorted(group.members, key=lambda seat: rank[_stage(plan, seat).devices[0]])
        devices = [cluster.device(_stage(plan, seat).devices[0]) for seat in ring]
        share = (len(ring) - 1) / len(ring)
        usd += 2 * share * gradient_bytes(plan, group) * _around_usd(cluster, devices)
        if plan.options.zero == GATHERED_WEIGHTS:
            for (p, _), before, device in zip(ring, [devices[-1], *devices], devices, strict=False):
                weights = 2 * plan.pipelines[p].micro_batches * group.parameters * plan.workload.dtype_bytes
                usd += share * weights * _usd_per_byte(cluster, before, device)
    return usd


def _stage(plan: Plan, seat: tuple[int, int]) -> Stage:
    return plan.pipelines[seat[0]].stages[seat[1]]


def _around_usd(cluster: Cluster, ring: Sequence[Device]) -> float:
    """Of a byte that goes from each to the next."""
    if len({cluster.node(device.node).region for device in ring}) == 1:
        return 0.0
    return sum(_usd_per_byte(cluster, *pair) for pair in pairwise([*ring, ring[0]]))


def _usd_per_byte(cluster: Cluster, here: Device, there: Device) -> float:
    source, target = cluster.node(here.node), cluster.node(there.node)
    return source.egress_usd_per_gb / BYTES_PER_GB if source.region != target.region else 0.0
