"""What a plan costs an hour: its nodes, and what leaves their regions."""

from itertools import pairwise

from hetsched.cluster import Cluster, Device
from hetsched.cost.traffic import gradient_bytes, gradient_groups, hop_bytes
from hetsched.plan import Plan
from hetsched.units import BYTES_PER_GB, SECONDS_PER_HOUR


def plan_usd_per_hour(cluster: Cluster, plan: Plan, iteration_s: float) -> float | None:
    """The price of the nodes that the plan uses, whole, and of its egress; None where a node's price is not known."""
    nodes = dict.fromkeys(cluster.device(name).node for pipeline in plan.pipelines for name in pipeline.devices)
    usd_per_hour = cluster.usd_per_hour(list(nodes))
    if usd_per_hour is None or not any(cluster.node(name).egress_usd_per_gb for name in nodes):
        return usd_per_hour
    return usd_per_hour + egress_usd(cluster, plan) * SECONDS_PER_HOUR / iteration_s if iteration_s else usd_per_hour


def egress_usd(cluster: Cluster, plan: Plan) -> float:
    """What one iteration's traffic between regions costs: each sender's node says how much a GB (1e9) that leaves is.

    Activations and their gradients cross once a micro-batch (in engines that do not overlap, once for each GPU of the
    stage that receives); in a ring all-reduce of n members each sends 2 (n - 1) / n
    of the gradients to the next (Patarasuk and Yuan 2009).
    """
    forward, backward = hop_bytes(plan)
    usd = 0.0
    for pipeline in plan.pipelines:
        for before, after in pairwise(pipeline.stages):
            here, there = (cluster.device(stage.devices[0]) for stage in (before, after))
            copies = (1, 1) if plan.options.overlap else (len(after.devices), len(before.devices))
            usd += pipeline.micro_batches * forward * copies[0] * _usd_per_byte(cluster, here, there)
            usd += pipeline.micro_batches * backward * copies[1] * _usd_per_byte(cluster, there, here)
    for group in gradient_groups(plan):
        devices = [cluster.device(plan.pipelines[p].stages[s].devices[0]) for p, s in group.members]
        sent = 2 * (len(devices) - 1) / len(devices) * gradient_bytes(plan, group)
        for here, there in zip(devices, [*devices[1:], devices[0]], strict=True):
            usd += sent * _usd_per_byte(cluster, here, there)
    return usd


def _usd_per_byte(cluster: Cluster, here: Device, there: Device) -> float:
    source, target = cluster.node(here.node), cluster.node(there.node)
    return source.egress_usd_per_gb / BYTES_PER_GB if source.region != target.region else 0.0
