"""Where one replica of equal stages would stand: on a machine of one's own, or on nodes of a cluster."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from hetsched.cluster import Cluster, Gpu, Link, Network, Node
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Stage


def one_machine(gpu: Gpu, count: int, link: Link | None) -> Cluster:
    """A machine of `count` such GPUs with that link between them (the usual one of the kind where it is None).

    Raises HetschedError where there is more than one GPU and no link is known.
    """
    link = link or gpu.link
    if link is None and count > 1:
        raise HetschedError(
            f"the link between GPUs of kind {gpu.kind} is not known", hint="give --link-gbps or --cluster"
        )
    known = link or Link(np.inf, 0.0)
    network = Network(np.array([[known.bandwidth_bytes_per_s]]), np.array([[known.latency_s]]))
    return Cluster("one machine", (Node("node", "here", (gpu,) * count),), network)


def even_stages(cluster: Cluster, gpu: Gpu, model: ModelSpec, tensor_parallel: int, depth: int) -> list[Stage]:
    """`depth` stages of `tensor_parallel` GPUs of a kind each, blocks shared evenly; a stage stays in one node.

    Nodes are taken in their order, as many stages from each as it holds. Raises HetschedError where the cluster has too
    few, or the model can't be split so.
    """
    check_split(model, tensor_parallel, depth)
    groups: list[tuple[str, ...]] = []
    for node in cluster.nodes:
        own = [f"{node.name}/{index}" for index, other in enumerate(node.gpus) if other.kind == gpu.kind]
        whole = len(own) // tensor_parallel
        groups += [tuple(own[k * tensor_parallel : (k + 1) * tensor_parallel]) for k in range(whole)]
    if len(groups) < depth:
        raise HetschedError(
            f"cluster {cluster.name} has room for {len(groups)} stages of {tensor_parallel} {gpu.kind} in one node, "
            f"{depth} are needed",
            hint="a lower --tp or --pp, or another --gpu",
        )
    return [Stage(layers, names) for layers, names in zip(even_layers(model.num_layers, depth), groups, strict=False)]


def even_layers(blocks: int, depth: int) -> list[tuple[int, int]]:
    """Blocks in `depth` ranges, none more than a block longer than another."""
    return list(pairwise(blocks * k // depth for k in range(depth + 1)))


def check_split(model: ModelSpec, tensor_parallel: int, depth: int) -> None:
    """HetschedError where the heads can't be shared out, or there are more stages than blocks."""
    if model.num_heads % tensor_parallel:
        raise HetschedError(
            f"{model.name} has {model.num_heads} attention heads: they can't be shared out over {tensor_parallel} GPUs",
            hint="--tp must divide the number of heads",
        )
    if depth > model.num_layers:
        raise HetschedError(
            f"{depth} stages for the {model.num_layers} blocks of {model.name}", hint="a stage holds at least one block"
        )


def degrees(model: ModelSpec, gpus: int) -> list[int]:
    """Tensor-parallel degrees up to that: they share out the heads, and share out or copy the KV heads, evenly."""
    heads, keys = model.num_heads, model.num_kv_heads
    fitting = (k for k in range(1, gpus + 1) if heads % k == 0 and (keys % k == 0 or k % keys == 0))
    return list(fitting)


def with_link(link: Link | None, bandwidth_bytes_per_s: float) -> Link:
    """A link of that bandwidth; its latency is the usual link's, or that of PCI Express."""
    if link is None:
        return Link(bandwidth_bytes_per_s, 1e-5)
    return replace(link, bandwidth_bytes_per_s=bandwidth_bytes_per_s, whole_node_gain=1.0)


def kind_in(cluster: Cluster, kind: str | None) -> Gpu:
    """The cluster's GPU of that kind, or its only one; HetschedError where there is none, or more than one."""
    kinds: dict[str, Gpu] = {device.gpu.kind: device.gpu for device in cluster.devices}
    if kind is None and len(kinds) == 1:
        return next(iter(kinds.values()))
    if kind is None or kind not in kinds:
        has = "several kinds of GPU" if kind is None else f"no GPU of the kind {kind}"
        raise HetschedError(f"cluster {cluster.name} has {has}", hint=f"--gpu {' or '.join(list(kinds)[:6])}")
    return kinds[kind]
